"""Locks between processes, by files."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without file locks
    fcntl = None

POLL_SECONDS = 0.05


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[bool]:
    """Hold the lock of a file, which is made and removed again.

    The system frees the lock of a process that dies.

    Args:
        path: of the file.
        seconds: the longest time to wait for another process, or another thread.

    Yields:
        whether it is held; False where the file system has no locks.

    Raises:
        TimeoutError: if another one holds it for longer.
        OSError: if the file cannot be made.
    """
    file, is_held = _opened(path, seconds)
    try:
        yield is_held
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held, so that nobody locks a file that goes away
        _release(file)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder itself, without a file in it.

    The system frees the lock of a process that dies.

    Args:
        folder: that exists.

    Yields:
        whether it is held, or the file system has no locks; False if another one holds it.

    Raises:
        OSError: if the folder cannot be read.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        yield try_lock(place) is not None
    finally:
        _release(place)


def try_lock(file: int) -> bool | None:
    """Lock an open file; return None if another one holds it, False if there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True


def is_at(file: int, path: Path) -> bool:
    """Return whether an open file is still the one of its path: the last holder removed its own."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), found)


def _opened(path: Path, seconds: float) -> tuple[int, bool]:
    """Return the open lock file, and whether it is locked.

    Raises:
        TimeoutError: if another one holds it for longer.
        OSError: if the file cannot be made.
    """
    deadline = time.monotonic() + seconds
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        is_held = try_lock(file)
        if is_held is False or (is_held and is_at(file, path)):
            return file, is_held
        _release(file)
        if is_held is None:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another process has built it for over {seconds:g} s")
            time.sleep(POLL_SECONDS)


def _release(file: int) -> None:
    """Unlock and close a file. A child of a fork has it open, too, so closing is not enough."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
