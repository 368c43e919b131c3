"""The metrics of a run, read from its ``metrics.csv``."""

import csv
from pathlib import Path

from qmix_trl.logs import METRICS_FILE


def metric_lines(folder: Path) -> list[dict[str, float]]:
    """Return the whole lines of a run's metrics without empty cells; none without the file."""
    try:
        with (folder / METRICS_FILE).open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if None not in line.values()]
    except FileNotFoundError:
        return []
    return [{name: float(cell) for name, cell in line.items() if cell} for line in lines]


def metric_columns(folder: Path) -> list[str]:
    """Return the names of the columns of a run's metrics; none without the file."""
    try:
        with (folder / METRICS_FILE).open(newline="") as file:
            return next(csv.reader(file), [])
    except FileNotFoundError:
        return []
