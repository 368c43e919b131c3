"""Train VDN, QMIX or IQL: python recipes/train.py CONFIG.yaml [key.sub=value ...]

It leaves runs/NAME with config.yaml, metrics.csv, weights.pt and summary.json.
"""

from collections.abc import Sequence
from pathlib import Path

from support.command_line import training_arguments

if __name__ == "__main__":
    arguments = training_arguments(__doc__)  # before torch is imported: mistakes are told at once

import torch
from support.components import (
    build_agent,
    build_collector,
    build_env,
    build_exploration,
    build_loss,
    build_mixer,
    build_replay,
    build_update,
    check_finite,
    choose_device,
    evaluation_is_due,
    mean_outputs,
    set_threads,
    stream_seed,
)
from support.evaluation import Evaluation
from support.memory import check_room
from support.run_folder import CONFIG_FILE, REPLAY_FOLDER, run_stem
from support.training_report import TrainingReport
from torchrl.envs import RewardSum

from qmix_trl import Learner, load_config, make_policy, save_config, save_weights, with_memory
from qmix_trl.errors import exit_on_mistake
from qmix_trl.keys import EPISODE_REWARD, REWARD
from qmix_trl.logs import make_run_folder
from qmix_trl.native.networks.ahead import build_ahead


def train(config_path: str, overrides: Sequence[str], runs: str) -> Path:
    """Train as the file and the overrides say; return the run's folder.

    Args:
        config_path: a YAML file.
        overrides: ``key.sub=value``, the value in YAML.
        runs: the folder in which the run's folder is made.

    Raises:
        ConfigError: if the configuration has a mistake.
        MachineError: if the machine lacks the device, or the run does not fit into its memory.
        DivergedError: if the loss is no longer finite.
        WrongStepError: if a step differs from VMAS's; the run's folder has both traces.
    """
    config = load_config(config_path, overrides)
    device = choose_device(config.runtime.device)
    set_threads(config.runtime.threads)
    check_room(config, device, Path(runs))
    if device.type == "cpu":
        build_ahead()  # in a thread, while the environments are built

    env_seed = stream_seed(config.seed, "env")
    reset_when_done = config.collection.rows == "slices"
    env = build_env(
        config, device, n_envs=config.env.n_envs, seed=env_seed, reset_when_done=reset_when_done
    )
    shadow = env.shadow if config.env.family == "vmas" else None
    evaluation = Evaluation(config, device)

    torch.manual_seed(stream_seed(config.seed, "weights"))  # the networks draw their weights
    agent = build_agent(config, evaluation.dims, device)
    mixer = build_mixer(config, evaluation.dims, device)

    explore = build_exploration(config, device)
    env = with_memory(env, agent).append_transform(RewardSum([REWARD], [EPISODE_REWARD]))
    collector = build_collector(config, env, make_policy(agent, explore))  # of batches [E, T]
    folder = make_run_folder(Path(runs), config.name, stem=run_stem(Path(config_path)))
    replay = build_replay(config, device, folder / REPLAY_FOLDER)  # of batches [B, T]
    update = build_update(config, build_loss(config, agent, mixer))
    learner = Learner(update, replay, n_steps=config.update.per_batch)

    save_config(config, folder / CONFIG_FILE)
    parts = {"engine": env, "collector": collector, "update": learner}
    frames = n_updates = 0
    with TrainingReport(config, folder, device, parts, shadow, evaluation.baselines()) as report:
        for batch in collector:
            frames += batch.numel()
            explore.step(batch.numel())
            replay.extend(batch)
            outputs = learner()  # [K], of K updates
            n_updates += len(outputs)
            means = mean_outputs(outputs)
            check_finite(means, n_updates, folder)
            collector.update_policy_weights_()
            greedy = None
            if evaluation_is_due(config, frames):
                greedy = evaluation.greedy(agent)
                save_weights(folder, agent, mixer)
            report.write(frames, batch, means, explore.epsilon, greedy)
    collector.shutdown()
    report.end(n_updates)
    return folder


if __name__ == "__main__":
    with exit_on_mistake():
        train(arguments.config, arguments.overrides, arguments.runs)
