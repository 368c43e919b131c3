"""Exceptions that a recipe reports in one line, each with its exit code."""

import difflib
import io
import os
import select
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

MAX_SHOWN = 200
OF_MEMORY = ("allocat", "out of memory")  # in the messages of torch's errors


class Refused(Exception):
    """A compiler, an engine or a library cannot serve a task; the message is the reason."""


class ConfigError(ValueError):
    """A setting cannot be run; recipes print the message and exit with 2."""

    exit_code = 2


class DivergedError(RuntimeError):
    """The loss is no longer finite; recipes print the message and exit with 4."""

    exit_code = 4


class MachineError(RuntimeError):
    """A setting needs another machine; recipes print the message and exit with 3."""

    exit_code = 3


class SaveError(MachineError):
    """A checkpoint or weights cannot be written, as on a full disk; a run may go on without."""


class CheckpointError(RuntimeError):
    """A checkpoint is refused; recipes print the message and exit with 5."""

    exit_code = 5


class WrongStepError(RuntimeError):
    """A compiled step differs from VMAS's; recipes print the message and exit with 5.

    Args:
        message: where they differ, and the engine to take.
        traces: both traces of the episode up to there, as values that JSON can hold.
    """

    exit_code = 5

    def __init__(self, message: str, traces: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.traces = traces

    def __reduce__(self) -> tuple:
        return type(self), (*self.args, self.traces)


def check_extra(package: str, extra: str, key: str) -> None:
    """Refuse a setting whose package is not installed.

    Args:
        package: its name in Python.
        extra: of this project, which installs it.
        key: of the configuration, of the setting.

    Raises:
        ConfigError: if it is not installed.
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"{key}: expected the package {package}, which is not installed; install it by "
            f"pip install 'qmix-trl[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def shown(text: str) -> str:
    """Return a text as messages show it: cut after ``MAX_SHOWN`` characters."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def one_line(error: Exception) -> str:
    """Return an error's class and message in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__} {error}".split())[:300]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is a lack of memory, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in OF_MEMORY)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """Print an expected error as one line and exit with its code; exit with 130 on Ctrl-C.

    Letters that the output's encoding lacks are printed as escapes.

    Raises:
        SystemExit: with the exit code of the error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except (
        ConfigError,
        MachineError,
        DivergedError,
        CheckpointError,
        WrongStepError,
    ) as mistake:
        if not getattr(mistake, "is_told", False):  # by another rank (``ranks.py``)
            print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(mistake.exit_code) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"error: {one_line(error)}; lower env.n_envs, replay.capacity_rows or "
            "replay.batch_rows",
            file=sys.stderr,
        )
        raise SystemExit(MachineError.exit_code) from None
    except BrokenPipeError:
        if not _is_unread():  # a pipe or a socket of other code
            raise
        # The reader of the output has closed it: the interpreter must not flush to it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _is_unread() -> bool:
    """Return whether the reader of the standard output or of the errors has left."""
    poll = select.poll()
    for place in (1, 2):
        poll.register(place, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
