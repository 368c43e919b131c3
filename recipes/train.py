"""Train VDN, QMIX or IQL: python recipes/train.py CONFIG.yaml [key.sub=value ...]

It leaves runs/NAME with config.yaml, metrics.csv, weights.pt and summary.json.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from support.components import (
    CONFIG_FILE,
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
    compare,
    engine_line,
    n_batches,
    run_stem,
    set_threads,
    stream_seed,
    summarize,
    update_line,
)
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import RewardSum

from qmix_trl import (
    GreedyAction,
    NoOpPolicy,
    RandomPolicy,
    env_dims,
    episode_returns,
    load_config,
    make_policy,
    save_config,
    save_weights,
    with_memory,
)
from qmix_trl.collect import finished_returns
from qmix_trl.errors import exit_on_mistake
from qmix_trl.keys import EPISODE_REWARD, REWARD
from qmix_trl.logs import Column, RunLog, make_run_folder, write_json
from qmix_trl.native.networks.ahead import build_ahead

COLUMNS = (
    Column("frames", "frames", ",d"),
    Column("frames_per_second", "frames/s", ",.0f"),
    Column("train_return", "training", ".2f"),
    Column("greedy_return", "greedy", ".2f"),
    Column("loss", "loss", ".4f"),
    Column("td_error", "|TD|", ".3f"),
    Column("total_value", "Q_tot", ".2f"),
    Column("grad_norm", "gradient", ".2f"),
    Column("epsilon", "epsilon", ".2f"),
    Column("seconds_left", "s left", ",.0f"),
)
LEARNING = ("loss", "td_error", "total_value", "grad_norm")  # means over a batch's updates


def train(config_path: str, overrides: Sequence[str], runs: str) -> Path:
    """Train as the file and the overrides say; return the run's folder."""
    config = load_config(config_path, overrides)
    c, e = config.collection, config.evaluation
    device = choose_device(config.runtime.device)
    set_threads(config.runtime.threads)
    if device.type == "cpu":
        build_ahead()
    torch.manual_seed(stream_seed(config.seed, "weights"))

    # Environments: one to train in, one to be evaluated in.
    env = build_env(
        config,
        device,
        n_envs=config.env.n_envs,
        seed=stream_seed(config.seed, "env"),
        reset_when_done=c.rows == "slices",
    )
    test_seed = stream_seed(e.seed, "test_env")
    random_seed = stream_seed(e.seed, "random_policy")
    test_env = build_env(config, device, n_envs=e.episodes, seed=test_seed, reset_when_done=False)
    dims = env_dims(env)

    # Networks, and what acts by them.
    agent = build_agent(config, dims, device)
    mixer = build_mixer(config, dims, device)
    explore = build_exploration(config, device)
    env, test_env = with_memory(env, agent), with_memory(test_env, agent)
    env.append_transform(RewardSum([REWARD], [EPISODE_REWARD]))

    # Data: collected in batches [E, T], replayed in batches [B, T].
    collector = build_collector(config, env, make_policy(agent, explore))
    replay = build_replay(config, device)

    # Learning.
    update = build_update(config, build_loss(config, agent, mixer))

    def evaluate(policy: TensorDictModuleBase) -> dict[str, float]:
        returns = episode_returns(test_env, policy, max_steps=config.env.max_steps, seed=test_seed)
        return summarize(returns)

    folder = make_run_folder(Path(runs), config.name, stem=run_stem(Path(config_path)))
    save_config(config, folder / CONFIG_FILE)
    print(f"{folder}: {config.mixer.name} on {config.env.scenario}, {device}, seed {config.seed}")
    print(engine_line(env, collector))
    print(update_line(update))
    returns = {
        "no_op": evaluate(NoOpPolicy(dims.n_actions)),
        "random": evaluate(RandomPolicy(dims.n_actions, seed=random_seed, device=device)),
    }
    caption = (
        f"return of {e.episodes} episodes: doing nothing {returns['no_op']['mean']:.2f}, "
        f"chance {returns['random']['mean']:.2f}"
    )
    print(caption, flush=True)

    frames, gradient_steps, last_frame = 0, 0, n_batches(config) * config.env.n_envs * c.steps
    next_evaluation = e.every_frames
    start = time.perf_counter()
    with RunLog(folder, COLUMNS, caption=caption) as log:
        for batch in collector:
            frames += batch.numel()
            explore.step(batch.numel())
            replay.extend(batch)
            steps = [update(replay.sample()) for _ in range(config.update.per_batch)]
            gradient_steps += len(steps)
            means = torch.stack([step.select(*LEARNING) for step in steps]).mean(0)
            check_finite(means, gradient_steps, folder)
            collector.update_policy_weights_()

            evaluated = frames >= next_evaluation or frames == last_frame
            if evaluated:
                returns["greedy"] = evaluate(make_policy(agent, GreedyAction()))
                next_evaluation = (frames // e.every_frames + 1) * e.every_frames
                save_weights(folder, agent, mixer)
            seconds = time.perf_counter() - start
            log.row(
                {
                    "frames": frames,
                    "frames_per_second": frames / seconds,
                    "train_return": finished_returns(batch),
                    "greedy_return": returns["greedy"]["mean"] if evaluated else None,
                    **{name: means.get(name).item() for name in LEARNING},
                    "epsilon": explore.epsilon,
                    "seconds_left": seconds * (last_frame / frames - 1),
                }
            )
    collector.shutdown()
    summary = {
        "frames": frames,
        "gradient_steps": gradient_steps,
        "seconds": seconds,
        "frames_per_second": frames / seconds,
        "seed": config.seed,
        "device": str(device),
        "engine": engine_line(env, collector),
        "update": update_line(update),
        "return": returns,
    }
    write_json(folder / "summary.json", summary)
    print(
        f"greedy return {returns['greedy']['mean']:.2f} after {frames:,} frames and "
        f"{seconds:.0f} s: {compare(returns['greedy'], returns['no_op'])} doing nothing, "
        f"{compare(returns['greedy'], returns['random'])} chance"
    )
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a file such as recipes/configs/balance_qmix.yaml")
    parser.add_argument("overrides", nargs="*", help="key.sub=value", metavar="key.sub=value")
    parser.add_argument("--runs", default="runs", help="where run folders are made")
    arguments = parser.parse_intermixed_args()
    with exit_on_mistake():
        train(arguments.config, arguments.overrides, arguments.runs)
