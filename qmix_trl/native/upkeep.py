"""The size of the store of built files, and the removal of entries that nobody reads any more."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qmix_trl.native.lock import locked
from qmix_trl.native.store import LOCK, NOTES, UNFINISHED, drop

STALE_SECONDS = 30 * 24 * 3600  # an entry that was neither built nor read for as long is stale


class Entry(NamedTuple):
    """A folder of the store.

    Attributes:
        path: of the folder.
        n_bytes: the size of its files.
        is_stale: whether it was not built or read lately. Where a disk keeps no times of reading,
            the time of the build counts.
    """

    path: Path
    n_bytes: int
    is_stale: bool


def entries(root: Path) -> list[Entry]:
    """Return the finished entries of a store; none if it does not exist."""
    found = []
    before = time.time() - STALE_SECONDS
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        with suppress(OSError):  # another process has removed it
            if path.name.startswith((UNFINISHED, LOCK)) or not path.is_dir():
                continue
            sizes = [file.stat().st_size for file in path.iterdir()]
            notes = path / NOTES
            times = (notes if notes.exists() else path).stat()
            is_stale = max(times.st_atime, times.st_mtime) < before
            found.append(Entry(path, sum(sizes), is_stale))
    return found


def clean(root: Path, stale: Iterable[Entry]) -> list[Entry]:
    """Remove entries of the store, but for those that another process is building.

    A process that has loaded a library of an entry keeps it; one that is about to builds it again.

    Args:
        root: the folder of the store, ``place.folder()``.
        stale: the entries to remove.

    Returns:
        the entries that were removed.

    Raises:
        OSError: if the store cannot be written.
    """
    removed = []
    for entry in stale:
        with suppress(TimeoutError), locked(root / f"{LOCK}{entry.path.name}", 0):
            drop(entry.path.name)
            if not entry.path.exists():
                removed.append(entry)
    return removed
