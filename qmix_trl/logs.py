"""A run's folder, and the table that shows a run while it goes on."""

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
SHOWN_ROWS = 16
PLAIN_WIDTH = 9
FRAME_LINES = 8  # of the table without its rows, and above it


class Column(NamedTuple):
    """A metric: its name in ``metrics.csv``, its heading in the table and how that formats it."""

    name: str
    heading: str
    spec: str


def make_run_folder(root: Path, name: str, *, stem: str) -> Path:
    """Make and return ``root/name``; for the name "auto" ``root/stem-1`` or the next that is free.

    Raises:
        ConfigError: if a folder of that name exists: no run is overwritten.
    """
    if name != AUTO:
        folder = root / name
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
    numbered = re.compile(rf"{re.escape(stem)}-(\d+)")
    taken = [numbered.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    return make_run_folder(root, f"{stem}-{number}", stem=stem)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n")


class RunLog:
    """Writes a row of metrics at a time to ``metrics.csv`` and shows it.

    In a terminal with rich a live table, else plain lines. Use it in a ``with`` statement.

    Args:
        folder: the run's.
        columns: the metrics, in order; every row has all of them, None for one not measured.
        caption: what stands below the table, such as the returns of doing nothing and of chance.
    """

    def __init__(self, folder: Path, columns: Sequence[Column], *, caption: str) -> None:
        self._columns = tuple(columns)
        self._caption = caption
        self._title = folder.name
        self._rows: deque[list[str]] = deque(maxlen=SHOWN_ROWS)
        self._file = (folder / "metrics.csv").open("w", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(column.name for column in self._columns)
        self._live = self._make_live()

    def _make_live(self) -> Any:
        """Return rich's live display, or None where there is no terminal or no rich."""
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

    def row(self, metrics: Mapping[str, float | None]) -> None:
        """Write and show one row.

        Raises:
            KeyError: if a column is missing.
        """
        values = [metrics[column.name] for column in self._columns]
        self._csv.writerow(["" if value is None else value for value in values])
        self._file.flush()
        shown = [
            "" if value is None else format(value, column.spec)
            for value, column in zip(values, self._columns, strict=True)
        ]
        self._rows.append(shown)
        if self._live is None:
            print("  ".join(cell.rjust(PLAIN_WIDTH) for cell in shown), flush=True)
        else:
            self._show_table()

    def _show_table(self) -> None:
        from rich.table import Table

        table = Table(title=self._title, caption=self._caption, padding=(0, 0))
        for column in self._columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        # What does not fit the terminal would hide the newest rows.
        room = max(1, self._live.console.height - FRAME_LINES)
        for row in list(self._rows)[-room:]:
            table.add_row(*row)
        self._live.update(table, refresh=True)
