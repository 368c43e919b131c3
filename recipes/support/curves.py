"""Learning curves, read from the folders of runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support.metrics import metric_columns, metric_lines
from support.run_folder import CONFIG_FILE, SUMMARY_FILE

from qmix_trl.config.strict_yaml import read_values
from qmix_trl.errors import ConfigError, nearest
from qmix_trl.logs import METRICS_FILE

GREEDY = "greedy_return"
RETURNS = (GREEDY, "train_return")  # columns to which the baselines belong
BASELINES = {"no_op": "doing nothing", "random": "chance"}


@dataclass(frozen=True)
class Curve:
    """A column of the metrics of one run.

    Attributes:
        task, group, seed: of the run; runs of a group differ in the seed.
        frames: float [K], at each of K points.
        seconds: float [K], since training began; with evaluations, except BenchMARL's.
        values: float [K], of the column.
        baselines: the mean returns of doing nothing and of random actions, by the keys of
            ``BASELINES``; none of a run that is not finished.
    """

    task: str
    group: str
    seed: int
    frames: np.ndarray
    seconds: np.ndarray
    values: np.ndarray
    baselines: dict[str, float]

    def at(self, frames: np.ndarray) -> "Curve":
        """Return the points at some of the curve's frames."""
        kept = np.isin(self.frames, frames)
        points = self.frames[kept], self.seconds[kept], self.values[kept]
        return Curve(self.task, self.group, self.seed, *points, self.baselines)


def read_curve(folder: Path, task: str, group: str, column: str = GREEDY) -> Curve:
    """Return the curve of a run's folder, also of a run under way.

    Args:
        folder: of the run.
        task, group: of the curve.
        column: of the metrics; lines without a value are left out.

    Raises:
        ConfigError: if its metrics have no such column, or its configuration cannot be read.
    """
    known = metric_columns(folder)
    if column not in known:
        raise ConfigError(
            f"{folder / METRICS_FILE}: no column {column!r}{nearest(column, known)}; it has "
            f"{', '.join(known) or 'none'}"
        )
    lines = [line for line in metric_lines(folder) if column in line]
    frames, speeds, values = (
        np.array([line[name] for line in lines]) for name in ("frames", "frames_per_second", column)
    )
    seed = read_values(folder / CONFIG_FILE)["seed"]
    returns = summary_of(folder).get("return", {}) if column in RETURNS else {}
    baselines = {name: returns[name]["mean"] for name in BASELINES if name in returns}
    return Curve(task, group, seed, frames, frames / speeds, values, baselines)


def summary_of(folder: Path) -> Mapping[str, Any]:
    """Return the summary of a run; it is empty without a whole one."""
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def names(curves: Sequence[Curve]) -> tuple[list[str], list[str]]:
    """Return the tasks and the groups, in the order of the curves."""
    tasks = dict.fromkeys(curve.task for curve in curves)
    return list(tasks), list(dict.fromkeys(curve.group for curve in curves))


def runs_of(curves: Sequence[Curve], task: str, group: str) -> list[Curve]:
    """Return the runs of a group on a task."""
    return [curve for curve in curves if (curve.task, curve.group) == (task, group)]


def at_common_frames(runs: Sequence[Curve]) -> list[Curve]:
    """Return the points of runs at the frames that all of them have."""
    common = runs[0].frames
    for run in runs[1:]:
        common = np.intersect1d(common, run.frames)
    return [run.at(common) for run in runs]


def baselines_of(curves: Sequence[Curve], task: str) -> dict[str, float]:
    """Return a task's baselines, the median over its runs, which have the same test episodes."""
    found: dict[str, list[float]] = {}
    for curve in curves:
        if curve.task == task:
            for name, value in curve.baselines.items():
                found.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in found.items()}
