"""The returns that ``evaluate.py`` finds, as a table and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from support.terminal import filled

from qmix_trl.config.schema import RunConfig

Summary = dict[str, float]  # mean, std and episodes of returns
BASELINES = {"no_op": "doing nothing", "random": "chance"}


@dataclass(frozen=True)
class TaskReturns:
    """The returns of policies in the same episodes of a task.

    Attributes:
        task: the scenario, or the game.
        seed: of the episodes.
        weights: of the runs, "last" or "best".
        runs: the summary of each run's greedy policy, by its folder.
        baselines: those of doing nothing ("no_op") and of random actions ("random").
    """

    task: str
    seed: int
    weights: str
    runs: Mapping[str, Summary]
    baselines: Mapping[str, Summary]


def by_task(configs: Mapping[Path, RunConfig]) -> list[dict[Path, RunConfig]]:
    """Return the configurations of runs, by folder, grouped by equal environments."""
    groups: list[dict[Path, RunConfig]] = []
    for folder, config in configs.items():
        for group in groups:
            if _task(next(iter(group.values()))) == _task(config):
                group[folder] = config
                break
        else:
            groups.append({folder: config})
    return groups


def _task(config: RunConfig) -> dict:
    """Return the settings of an environment that evaluations depend on."""
    return asdict(replace(config.env, n_envs=1)) | {"verify": None}


def as_json(found: Sequence[TaskReturns]) -> str:
    """Return the figures of the table as JSON: ``{"tasks": [...]}``."""
    return json.dumps({"tasks": [asdict(task) for task in found]}, indent=2)


def table(found: Sequence[TaskReturns]) -> str:
    """Return a block of lines for each task: its runs, doing nothing and chance."""
    return "\n\n".join(map(_block, found))


def _block(task: TaskReturns) -> str:
    named = {**task.runs, **{BASELINES[name]: task.baselines[name] for name in BASELINES}}
    (episodes,) = {returns["episodes"] for returns in named.values()}
    lines = [
        filled(f"{task.task}: {episodes} episodes from seed {task.seed}, {task.weights} weights"),
        f"{'return':>10}{'std':>10}  policy",
    ]
    lines += [f"{x['mean']:>10.3f}{x['std']:>10.3f}  {name}" for name, x in named.items()]
    return "\n".join(lines)
