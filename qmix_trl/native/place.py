"""The folder of the store, whether it can be trusted, and a temporary one where it cannot serve."""

import os
import stat
import tempfile
import threading
import warnings
from pathlib import Path

ROOT_USER = 0  # may change every file, and so is trusted like the user

_TEMPORARY: list[tempfile.TemporaryDirectory] = []  # at most one, of all threads
_WARNED: list[str] = []
_LOCK = threading.Lock()


class Unusable(Exception):
    """A folder cannot be built in; the message is the reason."""


def folder() -> Path:
    """Return the folder of the store: QMIX_TRL_CACHE, or one in the user's cache.

    Raises:
        Unusable: if the user has no folder.
    """
    chosen = os.environ.get("QMIX_TRL_CACHE")
    if chosen:
        return Path(chosen).absolute()  # the current folder may change
    user = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(user) if user else Path.home() / ".cache") / "qmix_trl" / "built"
    except RuntimeError as error:  # the system does not know the user
        raise Unusable(f"there is no place to build ({error})") from error


def check_trusted(root: Path) -> None:
    """Check that nobody but the user and root can put libraries into a folder.

    A folder that does not exist passes.

    Raises:
        Unusable: if others can, or it is no folder.
    """
    try:
        found = root.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unusable(f"{root} cannot be read ({error.strerror})") from error
    if not stat.S_ISDIR(found.st_mode):
        raise Unusable(f"{root} is no folder")
    if not is_trusted(found):
        mode = stat.S_IMODE(found.st_mode)
        raise Unusable(
            f"{root} is not trusted: it belongs to user {found.st_uid} with mode {mode:03o}, and "
            "must belong to you and be writable by no one else"
        )


def is_trusted(found: os.stat_result) -> bool:
    """Return whether only the user and root can change a file or folder."""
    if os.name != "posix":
        return True
    others = stat.S_IWGRP | stat.S_IWOTH
    return found.st_uid in (os.geteuid(), ROOT_USER) and not found.st_mode & others


def temporary() -> Path:
    """Return a folder that is removed at the end of the process.

    Raises:
        Unusable: if there is none.
    """
    with _LOCK:
        try:
            if not _TEMPORARY:
                new = tempfile.TemporaryDirectory(prefix="qmix_trl-", ignore_cleanup_errors=True)
                _TEMPORARY.append(new)
        except OSError as error:
            raise Unusable(f"there is no temporary folder ({error.strerror})") from error
        return Path(_TEMPORARY[0].name)


def temporary_if_made() -> list[Path]:
    """Return the temporary folder of this process; none if it was not needed yet."""
    return [Path(made.name) for made in _TEMPORARY]


def warn_of(reason: str) -> None:
    """Warn once in a process that the temporary folder serves in place of the store."""
    with _LOCK:
        is_first = not _WARNED
        _WARNED.append(reason)
    if is_first:
        warnings.warn(
            f"{reason}; a temporary folder serves in place of it until the end of the process; "
            "QMIX_TRL_CACHE names another folder to keep libraries in",
            stacklevel=2,
        )
