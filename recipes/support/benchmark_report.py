"""The table, the CSV and the figure of ``benchmark.py``.

Matplotlib and SciPy take seconds to import, and so are imported where they are used.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from support.run_folder import SUMMARY_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESAMPLES = 2000
BASELINES = ("no_op", "random")
COLORS = {
    "qmix": "C0",
    "vdn": "C1",
    "iql": "C2",
    "qmix_recurrent": "C9",
    "vdn_recurrent": "C6",
    "iql_recurrent": "C8",
    "qmix_feedforward": "C4",
    "benchmarl_qmix": "C3",
}
STYLES = {"no_op": ("black", ":"), "random": ("grey", "--")}
COLUMNS = 4  # of the figure, one for each task
WIDTH, HEIGHT, DPI = 3.0, 2.3, 80  # of a panel, in inches


@dataclass(frozen=True)
class Curve:
    """The greedy returns of one run.

    Attributes:
        task, algorithm, seed: of the run.
        frames: float [K], at each of K evaluations.
        seconds: float [K], since training began; with evaluations, except BenchMARL's.
        returns: float [K], means over the greedy episodes.
        baselines: the mean returns of doing nothing and of random actions.
    """

    task: str
    algorithm: str
    seed: int
    frames: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray
    baselines: dict[str, float]


def read_curve(folder: Path, task: str, algorithm: str) -> Curve:
    """Return the curve of a run's folder."""
    with (folder / "metrics.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["greedy_return"]]
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    frames, speeds, returns = (
        np.array([float(line[name]) for line in lines])
        for name in ("frames", "frames_per_second", "greedy_return")
    )
    baselines = {name: summary["return"][name]["mean"] for name in BASELINES}
    return Curve(task, algorithm, summary["seed"], frames, frames / speeds, returns, baselines)


def write_csv(curves: Sequence[Curve], path: Path) -> None:
    """Write a line for each evaluation of each run, then the baselines of each task."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("task", "algorithm", "seed", "frames", "seconds", "greedy_return"))
        for curve in curves:
            run = curve.task, curve.algorithm, curve.seed
            points = zip(curve.frames, curve.seconds, curve.returns, strict=True)
            writer.writerows((*run, f"{f:.0f}", f"{s:.2f}", r) for f, s, r in points)
        for (task, name), value in _baselines(curves).items():
            writer.writerow((task, name, "", "", "", value))


def interquartile_mean(returns: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean of the middle half of the seeds; of five, it is that of the middle three."""
    from scipy import stats

    return stats.trim_mean(returns, 0.25, axis=axis)


def interval(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % percentile bootstrap interval of a statistic over seeds.

    Each sample is resampled on its own: the stratified bootstrap of Agarwal et al. 2021 (arXiv
    2108.13264, section 4.1).

    Args:
        statistic: of the samples, along ``axis``.
        samples: float [seeds, ..].

    Returns:
        low and high, float [..]; both are the statistic itself where there is one seed.
    """
    from scipy import stats

    if min(len(sample) for sample in samples) == 1:
        value = statistic(*samples, axis=0)
        return value, value
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        axis=0,
        vectorized=True,
        method="percentile",
        random_state=0,
    )
    return found.confidence_interval.low, found.confidence_interval.high


def print_table(curves: Sequence[Curve]) -> None:
    """Print each task's returns at the end of training, and the means over the tasks."""
    tasks, algorithms = _names(curves)
    titles = f"{'return [95 %]':<28}{'seeds':>6}{'frames':>11}{'seconds':>9}"
    print(f"\n{'task':<14}{'algorithm':<18}{titles}")
    for task in tasks:
        for (of, name), value in _baselines(curves).items():
            if of == task:
                print(f"{task:<14}{name:<18}{value:>9.2f}")
        for algorithm in algorithms:
            runs = _runs(curves, task, algorithm)
            if not runs:
                continue
            last = np.array([run.returns[-1] for run in runs])
            low, high = interval(interquartile_mean, last)
            value = f"{interquartile_mean(last):>9.2f} [{low:.2f}, {high:.2f}]"
            seconds = np.median([run.seconds[-1] for run in runs])
            cost = f"{len(runs):>6}{runs[0].frames[-1]:>11,.0f}{seconds:>9.0f}"
            print(f"{task:<14}{algorithm:<18}{value:<28}{cost}")
    for algorithm, samples in normalized(curves).items():
        low, high = interval(_mean_over_tasks, *samples)
        value = f"{_mean_over_tasks(*samples):>9.2f} [{low:.2f}, {high:.2f}]"
        print(f"{'normalized':<14}{algorithm:<18}{value}")


def normalized(curves: Sequence[Curve]) -> dict[str, list[np.ndarray]]:
    """Return the normalized final returns by algorithm: for each task, float [seeds].

    0 is the better baseline of the task, 1 its best interquartile mean. Tasks in which no algorithm
    exceeds 0 are left out, and so are algorithms that did not run on all other tasks.
    """
    tasks, algorithms = _names(curves)
    scores: dict[str, list[np.ndarray]] = {algorithm: [] for algorithm in algorithms}
    n_learned = 0
    for task in tasks:
        zero = max(value for (of, _), value in _baselines(curves).items() if of == task)
        last = {
            algorithm: np.array([run.returns[-1] for run in _runs(curves, task, algorithm)])
            for algorithm in algorithms
        }
        last = {algorithm: returns for algorithm, returns in last.items() if len(returns)}
        one = max(interquartile_mean(returns) for returns in last.values())
        if one <= zero:
            continue
        n_learned += 1
        for algorithm, returns in last.items():
            scores[algorithm].append((returns - zero) / (one - zero))
    return {name: samples for name, samples in scores.items() if len(samples) == n_learned > 0}


def _mean_over_tasks(*samples: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.mean([interquartile_mean(sample, axis) for sample in samples], axis=0)


def draw(curves: Sequence[Curve], path: Path) -> "Figure":
    """Save and return the figure: each task's curves over frames, and below them over seconds."""
    from matplotlib.figure import Figure

    tasks = _names(curves)[0]
    columns, lines = min(COLUMNS, len(tasks)), -(-len(tasks) // COLUMNS)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * 2 * lines + 0.4), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, task in enumerate(tasks):
        for j, unit in enumerate(("frames", "seconds")):
            axis = axes[2 * (i // columns) + j, i % columns]
            _draw_panel(axis, [curve for curve in curves if curve.task == task], unit)
        axes[2 * (i // columns), i % columns].set_title(task, fontsize=10)
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8
    )
    figure.savefig(path, dpi=DPI)
    return figure


def _draw_panel(axis: "Axes", curves: Sequence[Curve], unit: str) -> None:
    """Draw the curves and the baselines of one task."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    (task,), algorithms = _names(curves)
    for algorithm in algorithms:
        _draw_curve(axis, _runs(curves, task, algorithm), unit)
    for (_, name), value in _baselines(curves).items():
        color, style = STYLES[name]
        axis.axhline(value, color=color, linestyle=style, linewidth=1, label=name)
    axis.axis("on")
    axis.set_xlabel(unit, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=8)


def _draw_curve(axis: "Axes", runs: Sequence[Curve], unit: str) -> None:
    """Draw the interquartile mean over runs, and its interval."""
    returns = np.array([run.returns for run in runs])
    x = np.median([getattr(run, unit) for run in runs], axis=0)
    color = COLORS[runs[0].algorithm]
    axis.plot(x, interquartile_mean(returns), color=color, linewidth=1.5, label=runs[0].algorithm)
    axis.fill_between(
        x, *interval(interquartile_mean, returns), color=color, alpha=0.2, linewidth=0
    )


def _names(curves: Sequence[Curve]) -> tuple[list[str], list[str]]:
    """Return the tasks and the algorithms, in the order of the curves."""
    tasks = dict.fromkeys(curve.task for curve in curves)
    algorithms = dict.fromkeys(curve.algorithm for curve in curves)
    return list(tasks), list(algorithms)


def _runs(curves: Sequence[Curve], task: str, algorithm: str) -> list[Curve]:
    return [curve for curve in curves if (curve.task, curve.algorithm) == (task, algorithm)]


def _baselines(curves: Sequence[Curve]) -> dict[tuple[str, str], float]:
    """Return each task's baselines, the same for all of its runs: mean return by (task, name)."""
    return {
        (curve.task, name): value for curve in curves for name, value in curve.baselines.items()
    }
