"""Built files, compared with their hashes before they are loaded.

The operating system ends a process that calls into a library which is cut short.
"""

import ctypes
import hashlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qmix_trl.errors import one_line
from qmix_trl.native.build import BuildFailed
from qmix_trl.native.place import Unusable, temporary, warn_of


class NotLoadable(BuildFailed):
    """A built file is damaged, or the system does not load it."""


@dataclass(frozen=True)
class BuiltFile:
    """A built file.

    Attributes:
        path: of the file.
        sha256: of its content when it was built.
    """

    path: Path
    sha256: str

    def check(self) -> None:
        """Compare the file with its hash.

        Raises:
            NotLoadable: if it has changed since it was built, or cannot be read.
        """
        try:
            is_same = hash_of(content_of(self.path)) == self.sha256
        except OSError as error:
            raise NotLoadable(f"a built file cannot be read: {one_line(error)}") from error
        if not is_same:
            raise NotLoadable(f"{self.path} has changed since it was built; start again")


def built_file(path: Path) -> BuiltFile:
    """Return a file that has just been built.

    Raises:
        OSError: if it cannot be read.
    """
    return BuiltFile(path, hash_of(content_of(path)))


def hash_of(content: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def content_of(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: if it cannot be read or is no file: a link, a device and a pipe may never end.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is no file")
        return file.read()


def load(file: BuiltFile, *functions: str) -> ctypes.CDLL:
    """Return a library, after its content is compared with its hash.

    Args:
        file: the library.
        *functions: names that it must have.

    Raises:
        NotLoadable: if it has changed, the system refuses it, or a function is missing.
    """
    file.check()
    try:
        library = ctypes.CDLL(str(_executable(file)))
    except OSError as error:
        raise NotLoadable(f"a library does not load: {one_line(error)}") from error
    for name in functions:
        if not hasattr(library, name):
            raise NotLoadable(f"{file.path} has no function {name!r}")
    return library


@cache
def _executable(file: BuiltFile) -> Path:
    """Return the path of a library, or of a copy where programs run, if they do not at its place.

    Raises:
        OSError: if the copy cannot be written.
    """
    no_programs = getattr(os, "ST_NOEXEC", 0)
    if not os.statvfs(file.path).f_flag & no_programs:
        return file.path
    warn_of(f"{file.path.parent.parent} is on a disk mounted noexec")
    try:
        place = Path(tempfile.mkdtemp(dir=temporary()))
    except Unusable as error:
        raise OSError(str(error)) from error
    return Path(shutil.copyfile(file.path, place / file.path.name))
