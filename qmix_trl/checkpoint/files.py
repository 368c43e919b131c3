"""Files of a checkpoint: written with a hash and flushed to the disk, read within their sizes."""

import contextlib
import hashlib
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_trl.checkpoint.nested import Damaged
from qmix_trl.native.lock import is_at, try_lock

CHUNK_BYTES = 2**22
UNFINISHED = ".new-"  # how the names of folders begin that are being written
GONE = ".old-"  # and of those that are being removed
ABANDONED_SECONDS = 24 * 3600  # without locks, a folder in which nothing was written for as long


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor; its own where it is contiguous and on the CPU."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return memoryview(plain.reshape(-1).view(torch.uint8).numpy())


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file and flush it to the disk; return its size and hash.

    Raises:
        OSError: if the disk is full or fails.
    """
    place = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    size, hash_ = 0, hashlib.sha256()
    try:
        for piece in pieces:
            whole = memoryview(piece)
            size += len(whole)
            for first in range(0, len(whole), CHUNK_BYTES):
                chunk = whole[first : first + CHUNK_BYTES]
                hash_.update(chunk)  # while it is in the processor's cache
                while len(chunk):
                    chunk = chunk[os.write(place, chunk) :]
        os.fsync(place)
    finally:
        os.close(place)
    return {"bytes": size, "sha256": hash_.hexdigest()}


class Reader:
    """Reads a file from its beginning to its end, within a ``with`` block.

    Args:
        path: of the file.

    Raises:
        Damaged: if there is no regular file: a link, a device and a pipe may lead elsewhere or
            never end.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            # Without O_NONBLOCK, opening a pipe would wait for its writer.
            self._place = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise Damaged(f"{path.name}: {error.strerror}") from error
        found = os.fstat(self._place)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._place)
            raise Damaged(f"{path.name} is no file")
        self._hash = hashlib.sha256()
        self.left = found.st_size

    def into(self, target: memoryview) -> None:
        """Fill memory with the next bytes.

        Raises:
            Damaged: if the file ends before, or cannot be read.
        """
        while len(target):
            try:
                n = os.readv(self._place, [target[:CHUNK_BYTES]])
            except OSError as error:
                raise Damaged(f"{self._name}: {error.strerror}") from error
            if not n:
                raise Damaged(f"{self._name} ends early")
            self._hash.update(target[:n])
            self.left -= n
            target = target[n:]

    def tensor(self, dtype: torch.dtype, shape: list[int]) -> Tensor:
        """Return the next tensor.

        Raises:
            Damaged: if the file holds fewer bytes.
        """
        if math.prod(shape) * dtype.itemsize > self.left:
            raise Damaged(f"{self._name} is shorter than its tensors")
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            self.into(bytes_of(tensor))
        return tensor

    def text(self, most_bytes: int) -> bytes:
        """Return the whole file.

        Raises:
            Damaged: if it is larger than ``most_bytes``, or cannot be read.
        """
        if self.left > most_bytes:
            raise Damaged(f"{self._name}: expected at most {most_bytes:,} bytes, got {self.left:,}")
        content = bytearray(self.left)
        self.into(memoryview(content))
        return bytes(content)

    def hash(self) -> str:
        """Return the hash of the bytes that were read."""
        return self._hash.hexdigest()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._place)


def flush_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder in a folder for a ``with`` block, which moves it to its place at its end.

    If the block raises, it is removed.
    """
    new, place = locked_folder(folder)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        os.close(place)


def locked_folder(folder: Path) -> tuple[Path, int]:
    """Make a folder in a folder, and lock it; return it, and the file to close at its end.

    The lock keeps other processes' ``sweep`` from taking it for the rest of a killed one. Where
    the file system has no locks, its age does.
    """
    while True:
        new = Path(tempfile.mkdtemp(dir=folder, prefix=UNFINISHED))
        # Before it is locked, a sweep of another process may lock and remove it.
        with contextlib.suppress(FileNotFoundError):
            place = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
            if try_lock(place) is not None and is_at(place, new):
                return new, place
            os.close(place)


def remove_folder(path: Path) -> None:
    """Remove a folder with its files; an interruption leaves it whole, or for ``sweep``."""
    gone = path.with_name(f"{GONE}{path.name}-{os.getpid()}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # another process may sweep it now


def sweep(folder: Path) -> None:
    """Remove the leftovers of killed processes from a folder, as far as it may be written to."""
    for path in folder.glob(".*"):
        if not path.name.startswith((UNFINISHED, GONE)) or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            place = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                is_locked = try_lock(place)  # None while it is written
                if is_locked or (is_locked is False and _is_abandoned(path)):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(place)


def _is_abandoned(folder: Path) -> bool:
    """Return whether nothing was written in a folder for ``ABANDONED_SECONDS``."""
    newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return newest < time.time() - ABANDONED_SECONDS
