"""The table, the CSV and the figure of learning curves, for ``plot.py`` and ``benchmark.py``.

Matplotlib and SciPy take seconds to import, and so are imported where they are used.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from support.curves import BASELINES, GREEDY, Curve, at_common_frames, baselines_of, names, runs_of
from support.robust_statistics import interquartile_mean, interval
from support.terminal import aligned, cells_line

from qmix_trl.errors import SaveError, check_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {"no_op": ("black", ":"), "random": ("grey", "--")}  # of ``BASELINES``
LINES = ("-", "--", "-.", ":")  # one after the other when all ten colours are taken
COLUMNS = 4  # of the figure, one for each task
PANEL, ONLY_PANEL = (3.0, 2.3), (6.0, 3.6)  # in inches
DPI = 80
HEADER = ("kind", "task", "group", "seed", "frames", "seconds")


def check_packages() -> None:
    """Refuse to draw without the packages for it.

    Raises:
        ConfigError: if one is not installed.
    """
    for package in ("scipy", "matplotlib"):
        check_extra(package, "recipes", "figures")


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Tell in one line that a file cannot be written.

    Raises:
        SaveError: if it cannot.
    """
    try:
        yield
    except OSError as error:
        raise SaveError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_csv(curves: Sequence[Curve], path: Path, column: str = GREEDY) -> None:
    """Write all points: of runs, of the means over seeds with their intervals, of baselines.

    Raises:
        SaveError: if it cannot be written.
    """
    tasks, groups = names(curves)
    with written(path), path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*HEADER, column, "low", "high"))
        for curve in curves:
            run = "run", curve.task, curve.group, curve.seed
            for frames, seconds, value in zip(
                curve.frames, curve.seconds, curve.values, strict=True
            ):
                writer.writerow((*run, f"{frames:.0f}", f"{seconds:.2f}", value, "", ""))
        for task in tasks:
            for group in groups:
                for frames, seconds, *value in zip(*mean_curve(curves, task, group), strict=True):
                    mean = "mean", task, group, ""
                    writer.writerow((*mean, f"{frames:.0f}", f"{seconds:.2f}", *value))
            for name, value in baselines_of(curves, task).items():
                writer.writerow(("baseline", task, name, "", "", "", value, "", ""))


def mean_curve(curves: Sequence[Curve], task: str, group: str) -> list[np.ndarray]:
    """Return frames, seconds, interquartile means, low and high of a group on a task, each [K].

    They are of the frames that all runs have, and of the median seconds. Without any K is 0.
    """
    runs = runs_of(curves, task, group)
    common = at_common_frames(runs) if runs else []
    if not common or not len(common[0].frames):
        return [np.empty(0)] * 5
    values = np.array([run.values for run in common])
    seconds = np.median([run.seconds for run in common], axis=0)
    means = np.asarray(interquartile_mean(values)), *interval(interquartile_mean, values)
    return [common[0].frames, seconds, *map(np.asarray, means)]


def best_mean(curves: Sequence[Curve], task: str, group: str) -> float:
    """Return the highest mean over a group's runs on a task, of the frames that all of them have.

    It is the "maximum return" of Papoudakis et al. (2021, arXiv 2006.07869, table 3).
    """
    common = at_common_frames(runs_of(curves, task, group))
    return float(np.mean([run.values for run in common], axis=0).max())


def print_table(curves: Sequence[Curve]) -> None:
    """Print the last value and the best mean of each group on each task.

    They are of the frames that all runs of the group have.
    """
    tasks, groups = names(curves)
    lines = [("task", "group", "value", "[95 %]", "best", "seeds", "frames", "s")]
    for task in tasks:
        for name, value in baselines_of(curves, task).items():
            lines.append((task, BASELINES[name], f"{value:.2f}", *[""] * 5))
        for group in groups:
            points = mean_curve(curves, task, group)
            if not len(points[0]):
                continue
            frames, seconds, mean, low, high = (series[-1] for series in points)
            runs, best = len(runs_of(curves, task, group)), best_mean(curves, task, group)
            values = f"{mean:.2f}", f"[{low:.2f}, {high:.2f}]", f"{best:.2f}"
            lines.append((task, group, *values, str(runs), f"{frames:,.0f}", f"{seconds:.0f}"))
    print_columns(lines)


def print_columns(lines: Sequence[Sequence[str]]) -> None:
    """Print lines of cells in columns, the first two of text and the others of numbers."""
    for cells in aligned(lines, n_texts=2):
        print(cells_line(cells))


def draw(
    curves: Sequence[Curve], path: Path, units: Sequence[str], column: str = GREEDY
) -> "Figure":
    """Save and return the figure: the curves of each task, a panel for each unit of the abscissa.

    Args:
        curves: of all runs.
        path: of the figure, a PNG or an SVG.
        units: "frames", "seconds" or both.
        column: of the metrics, which the curves show.

    Raises:
        SaveError: if it cannot be written.
    """
    from matplotlib.figure import Figure

    tasks = names(curves)[0]
    columns, lines = min(COLUMNS, len(tasks)), -(-len(tasks) // COLUMNS)
    width, height = ONLY_PANEL if len(tasks) == 1 else PANEL
    size = width * columns, height * len(units) * lines + 0.4
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(units) * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, task in enumerate(tasks):
        for j, unit in enumerate(units):
            axis = axes[len(units) * (i // columns) + j, i % columns]
            _draw_panel(axis, curves, task, unit)
            axis.set_ylabel(column.replace("_", " ") if i % columns == 0 else "", fontsize=8)
        axes[len(units) * (i // columns), i % columns].set_title(task, fontsize=10)
    add_legend(figure, columns)
    with written(path):
        figure.savefig(path, dpi=DPI)
    return figure


def add_legend(figure: "Figure", columns: int) -> None:
    """Add one legend of all panels below them, in so many lines as fit under the columns."""
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    longest = max(map(len, handles), default=0)
    room = int(
        figure.get_figwidth() * 13 / (longest + 6)
    )  # letters of size 8 and the line's sample
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=max(1, min(len(handles), room)),
        fontsize=8,
    )


def color_of(groups: Sequence[str], group: str) -> tuple[str, str]:
    """Return colour and line style of a group, by its place among all groups."""
    place = groups.index(group)
    return f"C{place % 10}", LINES[place // 10 % len(LINES)]


def _draw_panel(axis: "Axes", curves: Sequence[Curve], task: str, unit: str) -> None:
    """Draw the curves and the baselines of one task."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    groups = names(curves)[1]
    for group in groups:
        if runs_of(curves, task, group):
            _draw_group(axis, curves, task, group, unit)
    for name, value in baselines_of(curves, task).items():
        color, style = STYLES[name]
        axis.axhline(value, color=color, linestyle=style, linewidth=1, label=BASELINES[name])
    axis.axis("on")
    axis.set_xlabel(unit, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if unit == "frames":  # 20k; seconds below 1 would be 840m
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=8)


def _draw_group(axis: "Axes", curves: Sequence[Curve], task: str, group: str, unit: str) -> None:
    """Draw the interquartile mean over a group's runs, its interval, and thin the single runs."""
    color, style = color_of(names(curves)[1], group)
    runs = runs_of(curves, task, group)
    for run in runs if len(runs) > 1 else ():
        axis.plot(getattr(run, unit), run.values, color=color, linewidth=0.5, alpha=0.4)
    frames, seconds, mean, low, high = mean_curve(curves, task, group)
    x = frames if unit == "frames" else seconds
    marker = "o" if len(x) == 1 else ""  # a line needs two points
    axis.plot(x, mean, color=color, linestyle=style, linewidth=1.5, label=group, marker=marker)
    if len(runs) > 1:
        axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
