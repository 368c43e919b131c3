"""Train QMIX or a relative of it: python recipes/train.py CONFIG.yaml [key.sub=value ...]

It leaves runs/NAME with config.yaml, metrics.csv, weights.pt, best_weights.pt, summary.json and
checkpoints/, from which --resume runs/NAME goes on; of a scenario of your own also source/, a copy
of its files; with evaluation.video=true also videos/. By torchrun several processes train one run.
"""

from collections.abc import Sequence
from pathlib import Path

from support.command_line import train_arguments

if __name__ == "__main__":
    arguments = train_arguments(__doc__)  # before torch is imported: mistakes are told at once

from support.actors import begin_collector
from support.checkpoints import Checkpoints
from support.components import (
    build_exploration,
    build_loss,
    build_networks,
    build_replay,
    build_training_env,
    build_update,
    evaluation_is_due,
    last_frame,
    mean_outputs,
    prepared_device,
)
from support.ends import Stop
from support.evaluation import Evaluation
from support.finite import check_batch, check_update
from support.memory import check_room
from support.planned_run import planned_run
from support.render.videos import Videos
from support.run_folder import CONFIG_FILE, REPLAY_FOLDER
from support.run_weights import RunWeights
from support.shares import KEEP
from support.threads import by_threads
from support.training_report import training_report

from qmix_trl import Learner, make_policy, save_config
from qmix_trl.config.schema import RAY
from qmix_trl.errors import exit_on_mistake
from qmix_trl.logs import say, silence
from qmix_trl.ranks import ALONE, Ranks, joined_ranks


def train(
    config: str | None,
    overrides: Sequence[str],
    runs: str,
    resume: str | None = None,
    *,
    frames_per_rank: str = KEEP,
    ranks: Ranks = ALONE,
) -> Path:
    """Train as the file and the overrides say; return the run's folder.

    Args:
        config: a YAML file; None where ``resume`` is a run's folder.
        overrides: ``key.sub=value``, the value in YAML.
        runs: the folder in which the run's folder is made.
        resume: the folder of a run that goes on, or "auto"; see ``planned_run``.
        frames_per_rank: how several ranks read a configuration; see ``shares.of_all_ranks``.
        ranks: the processes that train together, this one among them.

    Raises:
        ConfigError: if the configuration has a mistake.
        MachineError: if the machine lacks the device, memory or room on the disk.
        DivergedError: if the loss, or a number of the environment, is no longer finite.
        CheckpointError: if no checkpoint of a run that goes on is whole.
        WrongStepError: if a step differs from VMAS's; the run's folder has both traces.
        SystemExit: if a signal stops the run.
    """
    run = ranks.by_first(planned_run, config, overrides, runs, resume, frames_per_rank, ranks.size)
    config, share, device = run.config, run.share, prepared_device(run.config, ranks)
    check_room(share, device, run.runs, run.folder, ranks.local_size)
    is_remote = config.collection.collector == RAY
    env = None if is_remote else build_training_env(share, device, ranks.rank)
    evaluation = Evaluation(run.task, device)

    agent, mixer = build_networks(share, evaluation.dims, device, ranks.rank)
    explore = build_exploration(config, device, ranks.rank)
    collector = begin_collector(config, env, make_policy(agent, explore), device)  # of [E, T]
    update = build_update(config, build_loss(config, agent, mixer, evaluation.dims), ranks)
    baselines = evaluation.baselines()

    with run.opened(ranks) as folder, Stop(ranks) as stop:
        replay = build_replay(share, device, folder / REPLAY_FOLDER, ranks.rank)  # of [B, T]
        learner = Learner(update, replay, n_steps=config.update.per_batch)
        weights = RunWeights(folder, agent, mixer, evaluation.dims)
        shown = {"engine": collector.env, "collector": collector, "update": learner}
        report = training_report(ranks, folder, config, device, shown, baselines)
        parts = {"update": update, "replay": replay, "collector": collector, "report": report}
        checkpoints = Checkpoints(config, folder, parts, ranks)
        frames, n_updates = checkpoints.load(evaluation, agent, weights) if run.folder else (0, 0)
        ranks.by_first(save_config, config, folder / CONFIG_FILE)
        videos = Videos(run.task, folder, device)
        batches = by_threads(collector, config.runtime.threads, ranks.local_size)
        with report:
            for batch in stop.watched(batches):
                check_batch(batch)
                frames += ranks.size * batch.numel()
                explore.step(ranks.size * batch.numel())
                replay.extend(batch)
                outputs = learner()  # [K], of K updates
                n_updates += len(outputs)
                means = mean_outputs(outputs)
                check_update(means, update, n_updates, folder)
                collector.update_policy_weights_()
                is_due = ranks.is_first and evaluation_is_due(config, frames)
                greedy = evaluation.greedy(agent) if is_due else None
                if greedy:
                    weights.save(greedy)
                    videos.write(frames, agent)
                report.write(frames, batch, means, explore.epsilon, greedy)
                checkpoints.save_if_due(frames, n_updates, greedy)
            told = checkpoints.stop(frames, n_updates) if frames < last_frame(config) else ""
        collector.shutdown()
        if told:
            say(told)  # below the table
            raise SystemExit(stop.exit_code)
        report.end(n_updates)
    return folder


if __name__ == "__main__":
    with exit_on_mistake(), joined_ranks() as ranks:
        if not ranks.is_first:
            silence()  # the first rank prints for all
        train(**vars(arguments), ranks=ranks)
