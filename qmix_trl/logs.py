"""A run's folder, and the table of metrics that shows its progress."""

import csv
import json
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from qmix_trl.errors import ConfigError

AUTO = "auto"
SHOWN_LINES = 16  # latest metrics in a live table
PLAIN_WIDTH = 9
FRAME_LINES = 8  # of a terminal: the table's frame, and the lines above it


class Column(NamedTuple):
    """A metric: its name in ``metrics.csv``, and its heading and format in the table."""

    name: str
    heading: str
    spec: str


def make_run_folder(root: Path, name: str, *, stem: str) -> Path:
    """Make a run's folder and return it.

    Args:
        root: the folder of runs; it is made if it does not exist.
        name: the folder's name; "auto" makes the first of ``stem-1``, ``stem-2``, ... after the
            last that exists.
        stem: the names of automatic folders.

    Raises:
        ConfigError: if the folder exists, as no run is overwritten, or cannot be made.
    """
    folder = root / (f"{stem}-{_next_number(root, stem)}" if name == AUTO else name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        if isinstance(error, FileExistsError) and root.is_dir():
            raise ConfigError(
                f"name: {folder} exists and is not overwritten; "
                "choose another, name=..., or name=auto"
            ) from None
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


def _next_number(root: Path, stem: str) -> int:
    """Return the number after the greatest i of the paths ``root/stem-i``; 1 without any."""
    numbered = re.compile(rf"{re.escape(stem)}-(\d+)")
    taken = [numbered.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    return max((int(match[1]) for match in taken if match), default=0) + 1


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping to an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


class RunLog:
    """Writes metrics to ``metrics.csv`` line by line, and shows them.

    It shows a live table in a terminal with rich, else plain lines. Use it in a ``with``
    statement.

    Args:
        folder: the run's folder.
        columns: the metrics, in order. Each line has all of them; None is an empty cell.
        caption: the text below the table, such as the returns of baselines.
    """

    def __init__(self, folder: Path, columns: Sequence[Column], *, caption: str) -> None:
        self._columns = tuple(columns)
        self._caption = caption
        self._title = folder.name
        self._shown: deque[list[str]] = deque(maxlen=SHOWN_LINES)
        self._file = (folder / "metrics.csv").open("w", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(column.name for column in self._columns)
        self._live = self._make_live()

    def _make_live(self) -> Any:
        """Return rich's live display; None without a terminal or without rich."""
        if not sys.stdout.isatty():
            return None
        try:
            from rich.live import Live
        except ImportError:
            return None
        return Live(auto_refresh=False)

    def __enter__(self) -> "RunLog":
        if self._live is None:
            print("  ".join(heading.rjust(PLAIN_WIDTH) for _, heading, _ in self._columns))
        else:
            self._live.start()
            self._show_table()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._live is not None:
            self._live.stop()

    def write(self, metrics: Mapping[str, float | None]) -> None:
        """Write and show one line of metrics.

        Raises:
            KeyError: if a metric is missing.
        """
        values = [metrics[column.name] for column in self._columns]
        self._csv.writerow(["" if value is None else value for value in values])
        self._file.flush()
        shown = [
            "" if value is None else format(value, column.spec)
            for value, column in zip(values, self._columns, strict=True)
        ]
        self._shown.append(shown)
        if self._live is None:
            print("  ".join(cell.rjust(PLAIN_WIDTH) for cell in shown), flush=True)
        else:
            self._show_table()

    def _show_table(self) -> None:
        from rich.table import Table

        table = Table(title=self._title, caption=self._caption, padding=(0, 0))
        for column in self._columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        # In a table that does not fit the terminal the latest lines would be hidden.
        room = max(1, self._live.console.height - FRAME_LINES)
        for line in list(self._shown)[-room:]:
            table.add_row(*line)
        self._live.update(table, refresh=True)
