"""Evaluate runs greedily: python recipes/evaluate.py RUN [RUN ...] [key.sub=value ...]

It prints the returns of their greedy policies, and for each task the returns of doing nothing and
of random actions, all in the same episodes.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.run_arguments import evaluation_arguments, evaluation_configs, n_envs_together

if __name__ == "__main__":
    arguments = evaluation_arguments(__doc__)  # before torch is imported: mistakes are told at once

import torch
from support.commands import typed
from support.components import choose_device
from support.evaluation import Evaluation
from support.evaluation_report import TaskReturns, as_json, by_task, table
from support.sources import with_sources
from support.threads import set_threads

from qmix_trl import RunConfig, load_weights
from qmix_trl.errors import exit_on_mistake
from qmix_trl.trained import build_agent


def evaluate(
    folders: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    weights: str = "last",
) -> list[TaskReturns]:
    """Return the returns of runs and of two baselines, task by task.

    Args:
        folders: of the runs.
        overrides: ``key.sub=value``, as in ``evaluation_configs``.
        device: "auto", "cpu" or "cuda".
        weights: "last" or "best".

    Raises:
        ConfigError: if a folder is no run's, or an override is a mistake.
        CheckpointError: if the weights of a run are damaged.
        MachineError: if the machine lacks the device.
    """
    configs = dict(zip(folders, evaluation_configs(folders, overrides), strict=True))
    n_envs = n_envs_together(overrides, configs.values())
    configs = {folder: with_sources(config, folder) for folder, config in configs.items()}
    set_threads(configs[folders[0]].runtime.threads)
    where = choose_device(device, "--device")
    return [evaluated(task, weights, n_envs, where) for task in by_task(configs)]


def evaluated(
    configs: Mapping[Path, RunConfig], weights: str, n_envs: int | None, device: torch.device
) -> TaskReturns:
    """Return the returns of runs on one task.

    Args:
        configs: of the runs, by folder, with equal environments and test episodes.
        weights: "last" or "best".
        n_envs: the number of environments that are stepped together; None for all episodes.
        device: of environments and agents.
    """
    first = next(iter(configs.values()))
    evaluation = Evaluation(first, device, n_envs=n_envs)
    runs = {}
    for folder, config in configs.items():
        agent = build_agent(config, evaluation.dims, device)
        load_weights(folder, agent, weights=weights)
        runs[str(folder)] = evaluation.greedy(agent)
    return TaskReturns(
        task=Path(first.env.scenario).name,
        seed=first.evaluation.seed,
        weights=weights,
        runs=runs,
        baselines=evaluation.baselines(),
    )


if __name__ == "__main__":
    with exit_on_mistake():
        as_table = not vars(arguments).pop("json")
        # Notes on the way would spoil JSON for its reader.
        with contextlib.nullcontext() if as_table else contextlib.redirect_stdout(sys.stderr):
            found = evaluate(**vars(arguments))
        print(table(found) if as_table else as_json(found))
        if as_table:
            print(f"\nnext: {typed('render', arguments.folders[0])}")
