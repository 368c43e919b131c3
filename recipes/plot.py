"""Draw learning curves: python recipes/plot.py RUN.. [--group-by mixer.name] [--out FILE.png]

Runs of different tasks get a panel each. A group is drawn as the interquartile mean over its runs,
which differ in the seed, with its 95 % bootstrap interval; single runs are thin. A folder that has
runs stands for all of them. It leaves the figure and, beside it, a CSV of all points.
"""

from collections.abc import Sequence
from pathlib import Path

from support.commands import typed
from support.curve_report import check_packages, draw, print_table, write_csv
from support.named_curves import named_curves
from support.run_arguments import plot_arguments

from qmix_trl.config.run_files import CONFIG_FILE
from qmix_trl.errors import exit_on_mistake


def plot(
    folders: Sequence[Path], keys: Sequence[str] | None, x: str, y: str, out: Path
) -> tuple[Path, Path]:
    """Draw the curves of runs; return the files of the figure and of its points.

    Args:
        folders: of runs, or with runs in them.
        keys: of the configurations, that make the groups; None takes those that differ.
        x: "frames" or "seconds".
        y: a column of the metrics.
        out: the file of the figure.

    Raises:
        ConfigError: if a folder has no run, a key or column is unknown, or a package is missing.
        SaveError: if a file cannot be written.
    """
    check_packages()
    curves = named_curves(folders, keys, y)
    points = out.with_suffix(".csv")
    draw(curves, out, (x,), y)
    write_csv(curves, points, y)
    print_table(curves)
    return out, points


if __name__ == "__main__":
    arguments = plot_arguments(__doc__)
    with exit_on_mistake():
        figure, points = plot(**vars(arguments))
        print(f"wrote {figure} and {points}")
        first = arguments.folders[0]
        if (first / CONFIG_FILE).exists():  # a run, not a folder of runs
            print(f"next: {typed('export', first)}")
