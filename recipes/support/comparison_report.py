"""The comparison of groups over several tasks: its printed lines, CSV and figure.

Scores are normalized by task: 0 is the better of doing nothing and chance, 1 the best interquartile
mean of the task. Matplotlib and SciPy are imported where they are used.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from support.curve_report import add_legend, color_of, print_columns, written
from support.curves import Curve, baselines_of, names, runs_of
from support.robust_statistics import (
    improvement,
    interval,
    mean_over_tasks,
    mean_share,
    normalized,
    shares_above,
)

THRESHOLDS = np.linspace(-0.2, 1.2, 57)  # of the performance profile; steps of 0.025
PRINTED = 0.8  # the threshold whose share is printed
WIDTH, HEIGHT, DPI = 4.0, 3.0, 80


@dataclass(frozen=True)
class Line:
    """A number of the comparison.

    Attributes:
        measure: "normalized score", "share of runs above" or "improvement over".
        group: of the number.
        other: the threshold, or the group that is compared with.
        value, low, high: the number and its 95 % bootstrap interval over seeds.
    """

    measure: str
    group: str
    other: str
    value: float
    low: float
    high: float


def scores_of(curves: Sequence[Curve]) -> dict[str, list[np.ndarray]]:
    """Return the normalized last values by group: for each task, float [seeds].

    Tasks without baselines, or in which no group learned, are left out, and so are groups that did
    not run on all others. It is empty with fewer than two tasks or groups.
    """
    tasks, groups = names(curves)
    zeros, last = {}, {}
    for task in tasks:
        baselines = baselines_of(curves, task)
        runs = {group: runs_of(curves, task, group) for group in groups}
        if baselines:
            zeros[task] = max(baselines.values())
            last[task] = {
                group: np.array([run.values[-1] for run in found])
                for group, found in runs.items()
                if found
            }
    scores = normalized(last, zeros)
    n_tasks = min(map(len, scores.values()), default=0)
    return scores if n_tasks > 1 and len(scores) > 1 else {}


def compared(scores: dict[str, list[np.ndarray]]) -> list[Line]:
    """Return mean scores, performance profiles and probabilities of improvement."""
    lines = []
    for group, samples in scores.items():
        value, bounds = mean_over_tasks(*samples), interval(mean_over_tasks, *samples)
        lines.append(Line("normalized score", group, "", float(value), *map(float, bounds)))
    for group, samples in scores.items():
        shares = shares_above(samples, THRESHOLDS)
        profile = mean_share(*shares), *interval(mean_share, *shares)
        for threshold, *values in zip(THRESHOLDS, *profile, strict=True):
            lines.append(
                Line("share of runs above", group, f"{threshold:.3f}", *map(float, values))
            )
    for x, y in combinations(scores, 2):
        samples = *scores[x], *scores[y]
        value, bounds = improvement(*samples), interval(improvement, *samples)
        lines.append(Line("improvement over", x, y, float(value), *map(float, bounds)))
    return lines


def print_comparison(lines: Sequence[Line], n_tasks: int) -> None:
    """Print the comparison, of the profile the shares above one score."""
    print(
        f"\nover {n_tasks} tasks; a score is 0 at the better of doing nothing and chance, and 1 at"
    )
    print("the best interquartile mean of the task")
    shown = [("measure", "group", "value", "[95 %]")]
    for line in lines:
        measure = f"{line.measure} {line.other}".strip()
        if line.measure != "share of runs above" or float(line.other) == PRINTED:
            interval_text = f"[{line.low:.2f}, {line.high:.2f}]"
            shown.append((measure, line.group, f"{line.value:.2f}", interval_text))
    print_columns(shown)


def write_comparison(lines: Sequence[Line], path: Path) -> None:
    """Write the comparison, with the whole profile.

    Raises:
        SaveError: if it cannot be written.
    """
    with written(path), path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("measure", "group", "other", "value", "low", "high"))
        for line in lines:
            numbers = line.value, line.low, line.high
            writer.writerow((line.measure, line.group, line.other, *numbers))


def draw_comparison(lines: Sequence[Line], groups: Sequence[str], path: Path) -> None:
    """Save the figure: performance profiles, and probabilities of improvement.

    Args:
        lines: of ``compared``.
        groups: of the curves, whose colours the profiles have.
        path: of the figure, a PNG or an SVG.

    Raises:
        SaveError: if it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * WIDTH, HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    profiles = [line for line in lines if line.measure == "share of runs above"]
    for group in dict.fromkeys(line.group for line in profiles):
        own = [line for line in profiles if line.group == group]
        x = [float(line.other) for line in own]
        color, style = color_of(groups, group)
        left.plot(x, [line.value for line in own], color=color, linestyle=style, label=group)
        low, high = [line.low for line in own], [line.high for line in own]
        left.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    left.set_xlabel("normalized score", fontsize=8)
    left.set_ylabel("share of runs above it", fontsize=8)
    pairs = [line for line in lines if line.measure == "improvement over"][::-1]
    for place, line in enumerate(pairs):
        right.plot([line.low, line.high], [place, place], color="grey", linewidth=4, alpha=0.5)
        right.plot(line.value, place, "ko", markersize=4)
    right.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    right.set_yticks(range(len(pairs)), [f"{line.group} > {line.other}" for line in pairs])
    right.set_xlim(0, 1)
    right.set_xlabel("probability of improvement", fontsize=8)
    for axis in (left, right):
        axis.tick_params(labelsize=8)
    add_legend(figure, 2)
    with written(path):
        figure.savefig(path, dpi=DPI)
