"""The mistakes that get a message instead of a traceback, and the exit code of each."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot be run; recipes print it and exit with 2."""

    exit_code = 2


class MachineError(RuntimeError):
    """A machine that lacks what a setting asks for; recipes print it and exit with 3."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
