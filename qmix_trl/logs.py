"""A run's folder, and the table of metrics that shows its progress."""

import csv
import io
import json
import os
import re
import shutil
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from qmix_trl.errors import ConfigError, SaveError

AUTO = "auto"
METRICS_FILE = "metrics.csv"
SHOWN_LINES = 16  # latest metrics in a live table
PLAIN_WIDTH = 9
GAP = 2  # between the cells of plain lines
FRAME_LINES = 8  # of a terminal: the table's frame, and the lines above it

_UNREAD = threading.Event()


class Column(NamedTuple):
    """A metric: its name in ``metrics.csv``, and its heading and format in the table.

    One without a heading is written and not shown.
    """

    name: str
    heading: str = ""
    spec: str = ""


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
            if name == AUTO:  # another run has taken the number
                return make_run_folder(root, name, stem=stem)
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
    """Write a mapping to an indented JSON file.

    Raises:
        SaveError: if it cannot be written; a file that was there before stays.
    """
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file and flush it to the disk; a file that has this text already is left alone.

    There is a whole file or, if it fails, the one before.

    Raises:
        SaveError: if it cannot be written.
    """
    content = text.encode()
    part = path.with_name(f"{path.name}.part")
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        part.write_bytes(content)
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise _not_written(path, len(content), error) from error


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _not_written(path: Path, n_bytes: int, error: OSError) -> SaveError:
    """Return the error of a file that cannot be written."""
    free = "an unknown number of"
    if path.parent.is_dir():
        free = f"{shutil.disk_usage(path.parent).free:,}"
    return SaveError(
        f"{path}: cannot be written: {error.strerror or error}; {n_bytes:,} bytes are needed, "
        f"{free} are free"
    )


def say(text: str) -> None:
    """Print a line; a standard output that is full, closed or read by nobody stays silent then.

    The files of a run matter more than its printed lines.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _UNREAD.set()
        silence()
    except (OSError, ValueError):
        silence()


def terminal_width() -> int | None:
    """Return the columns of the terminal that is the standard output; None if it is no terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def is_unread() -> bool:
    """Return whether the reader of the standard output has left: a line of ``say`` met no one."""
    return _UNREAD.is_set()


def silence() -> None:
    """Let all that is printed from now on disappear, as the interpreter's last flush."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class MetricsFile:
    """``metrics.csv``, which holds whole lines at any time, also on a full disk.

    A file that is there already is continued, as a resumed run's.

    Args:
        folder: the run's folder.
        columns: their names.

    Attributes:
        n_bytes: the size of the file.

    Raises:
        ConfigError: if the file that is there has other columns.
        SaveError: if the columns' names cannot be written.
    """

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self._path = folder / METRICS_FILE
        header = _csv_line(columns)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _not_written(self._path, len(header), error) from error
        self.n_bytes = os.fstat(self._file).st_size
        if self.n_bytes == 0:
            self._append(header)
        elif os.pread(self._file, len(header), 0) != header:
            raise ConfigError(f"{self._path}: expected the columns {header.decode().strip()}")

    def write(self, values: Sequence[Any]) -> None:
        """Append a line.

        Raises:
            SaveError: if it cannot be written; the file has the lines before it.
        """
        self._append(_csv_line(values))

    def _append(self, line: bytes) -> None:
        left = memoryview(line)
        try:
            while len(left):
                left = left[os.pwrite(self._file, left, self.n_bytes + len(line) - len(left)) :]
        except OSError as error:
            with suppress(OSError):  # a line that stays in part is overwritten by the next
                os.ftruncate(self._file, self.n_bytes)
            raise _not_written(self._path, len(line), error) from error
        self.n_bytes += len(line)

    def flush(self) -> None:
        """Flush the file to the disk.

        Raises:
            SaveError: if it fails, as on a full disk.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _not_written(self._path, self.n_bytes, error) from error

    def cut(self, n_bytes: int) -> None:
        """Remove the lines behind the first ``n_bytes``.

        Raises:
            ValueError: if the file is shorter.
        """
        if n_bytes > self.n_bytes:
            raise ValueError(f"{self._path}: expected {n_bytes} bytes or more, got {self.n_bytes}")
        os.ftruncate(self._file, n_bytes)
        self.n_bytes = n_bytes

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _csv_line(values: Sequence[Any]) -> bytes:
    """Return a line of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    return text.getvalue().encode()


class RunLog:
    """Writes metrics to ``metrics.csv`` line by line, and shows them.

    It shows a live table in a terminal with rich, else plain lines; the columns that fit. Use it in
    a ``with`` statement.

    Args:
        folder: the run's folder.
        columns: the metrics, in order. Each line has all of them; None is an empty cell.
        caption: the text below the table, such as the returns of baselines.

    Attributes:
        file: of the metrics.

    Raises:
        ConfigError: if the folder has metrics of other columns.
        SaveError: if the metrics cannot be written.
    """

    def __init__(self, folder: Path, columns: Sequence[Column], *, caption: str) -> None:
        self._columns = tuple(columns)
        self._caption = caption
        self._title = folder.name
        self._shown: deque[list[str]] = deque(maxlen=SHOWN_LINES)
        self.file = MetricsFile(folder, [column.name for column in self._columns])
        self._live = self._make_live()

    def _make_live(self) -> Any:
        """Return rich's live display; None without a terminal or without rich."""
        if terminal_width() is None:
            return None
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            return None
        console = Console()
        return None if console.is_dumb_terminal else Live(console=console, auto_refresh=False)

    def __enter__(self) -> "RunLog":
        if self._live is None:
            _say_cells([column.heading for column in self._columns if column.heading])
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
        self.file.close()
        if self._live is not None:
            self._live.stop()

    def write(self, metrics: Mapping[str, float | None]) -> None:
        """Write and show one line of metrics.

        Raises:
            KeyError: if a metric is missing.
            SaveError: if the line cannot be written.
        """
        values = [metrics[column.name] for column in self._columns]
        self.file.write(["" if value is None else value for value in values])
        shown = [
            "" if value is None else format(value, column.spec)
            for value, column in zip(values, self._columns, strict=True)
            if column.heading
        ]
        self._shown.append(shown)
        if self._live is None:
            _say_cells(shown)
        else:
            self._show_table()

    def _show_table(self) -> None:
        from rich.table import Table

        table = Table(title=self._title, caption=self._caption, padding=(0, 0))
        # In a table that does not fit the terminal the latest lines would be hidden.
        room = max(1, self._live.console.height - FRAME_LINES)
        lines = list(self._shown)[-room:]
        headings = [column.heading for column in self._columns if column.heading]
        n_shown = fitting([headings, *lines], self._live.console.width)
        for heading in headings[:n_shown]:
            table.add_column(heading, justify="right", no_wrap=True)
        for line in lines:
            table.add_row(*line[:n_shown])
        self._live.update(table, refresh=True)


def _say_cells(cells: Sequence[str]) -> None:
    """Print a plain line of the table: in a terminal the first cells that fit, at least one."""
    padded = [cell.rjust(PLAIN_WIDTH) for cell in cells]
    width = terminal_width()
    if width is not None:
        ends = accumulate((GAP + len(cell) for cell in padded), initial=-GAP)
        padded = padded[: max(1, sum(end <= width for end in ends) - 1)]
    say((" " * GAP).join(padded))


def fitting(lines: Sequence[Sequence[str]], width: int) -> int:
    """Return the number of a table's first columns that fit into a width, at least one.

    A column has a border in front, and the table one at its end.
    """
    ends = accumulate((1 + max(map(len, cells)) for cells in zip(*lines, strict=True)), initial=1)
    return max(1, sum(end <= width for end in ends) - 1)
