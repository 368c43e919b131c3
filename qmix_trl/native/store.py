"""The store of built files on disk, one folder for each, so that they are built only once.

The notes of a folder hold the size and a hash of each of its files, and a hash of themselves. An
entry that is damaged is built again, before any of it is loaded: the operating system ends a
process that calls into a library which is cut short.
"""

import ctypes
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from qmix_trl.errors import one_line
from qmix_trl.native.build import BuildFailed, build, compiler, toolchain

NOTES = "notes.json"  # in each folder, next to the built files
LIBRARY = "library.so"
UNFINISHED = ".new-"  # how the names of folders begin in which builds are under way
ABANDONED_SECONDS = 3600  # an unfinished folder is removed if it is older


def folder() -> Path:
    """Return the folder of the store: QMIX_TRL_CACHE, or one in the user's cache.

    Raises:
        BuildFailed: if the user has no folder.
    """
    chosen = os.environ.get("QMIX_TRL_CACHE")
    if chosen:
        return Path(chosen)
    user = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(user) if user else Path.home() / ".cache") / "qmix_trl" / "built"
    except RuntimeError as error:  # the system does not know the user
        raise BuildFailed(f"there is no place to build: {error}; set QMIX_TRL_CACHE") from error


def kept(key: str, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return a folder of the store and its notes; make them if they are not there or damaged.

    Args:
        key: the folder's name.
        make: writes files into a folder and returns notes for JSON. If it raises, nothing is kept.

    Raises:
        BuildFailed: if the store cannot be written.
    """
    place = folder() / key
    _sweep(folder())
    notes = read(key)
    if notes is None:
        try:
            folder().mkdir(parents=True, exist_ok=True)
            notes = _made(place, make)
        except OSError as error:
            raise BuildFailed(
                f"the store {folder()} cannot be written ({one_line(error)}); QMIX_TRL_CACHE names "
                "another folder"
            ) from error
    return place, notes


def _made(place: Path, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Make an entry in a folder of its own, and put it into its place; return its notes."""
    with tempfile.TemporaryDirectory(
        dir=place.parent, prefix=UNFINISHED, ignore_cleanup_errors=True
    ) as new:
        made = Path(new) / "entry"
        made.mkdir(mode=0o700)
        notes = make(made)
        (made / NOTES).write_text(_sealed(notes, made))
        if read(place.name) is None:  # no other process was faster
            if os.path.lexists(place):
                os.rename(place, Path(new) / "damaged")
            with suppress(OSError):  # if another process is faster now
                os.rename(made, place)  # atomic: other processes see the whole folder or none
    found = read(place.name)
    if found is None:
        raise OSError(f"{place} is not as it was written")
    return found


def read(key: str) -> dict[str, Any] | None:
    """Return the notes of an entry, None if there is none or it is damaged."""
    place = folder() / key
    try:
        sealed = json.loads(_content(place / NOTES))
        notes, of_files = sealed["notes"], sealed["files"]
        if sealed["hash"] != _hash(_text(notes, of_files).encode()):
            return None
        same = all(_hash(_content(place / name)) == hash_ for name, hash_ in of_files.items())
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return notes if same else None


def drop(key: str) -> None:
    """Remove an entry.

    Raises:
        BuildFailed: if it cannot be removed.
    """
    place = folder() / key
    try:
        with tempfile.TemporaryDirectory(
            dir=folder(), prefix=UNFINISHED, ignore_cleanup_errors=True
        ) as bin_:
            os.rename(place, Path(bin_) / "dropped")
    except FileNotFoundError:
        return
    except OSError as error:
        raise BuildFailed(f"{place} is out of date, remove it: {one_line(error)}") from error


@cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="qmix_trl-", ignore_cleanup_errors=True)


def unkept(make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return a folder that is removed at the end of the process, and its notes.

    Args:
        make: as in ``kept``.

    Raises:
        BuildFailed: if the folder cannot be written.
    """
    try:
        place = Path(tempfile.mkdtemp(dir=_temporary().name))
        return place, dict(make(place))
    except OSError as error:
        raise BuildFailed(f"a temporary folder cannot be written: {one_line(error)}") from error


def _sealed(notes: Mapping[str, Any], place: Path) -> str:
    """Return the text of an entry's notes, with the hashes of the entry's files."""
    notes = json.loads(json.dumps(notes))  # keys become strings
    of_files = {path.name: _hash(path.read_bytes()) for path in place.iterdir() if path.is_file()}
    text = _text(notes, of_files)
    return json.dumps({"hash": _hash(text.encode()), "files": of_files, "notes": notes})


def _text(notes: dict[str, Any], of_files: dict[str, str]) -> str:
    return json.dumps([notes, of_files], sort_keys=True)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _content(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: if it cannot be read or is no file: a link, a device and a pipe may never end.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(f"{path} is no file")
    return path.read_bytes()


@cache
def _sweep(place: Path) -> None:
    """Remove, once in a process, the folders of builds that were killed."""
    before = time.time() - ABANDONED_SECONDS
    with suppress(OSError):
        for path in place.glob(f"{UNFINISHED}*"):
            if path.lstat().st_mtime < before:
                shutil.rmtree(path, ignore_errors=True)


def load(path: Path) -> ctypes.CDLL:
    """Return a library.

    Raises:
        BuildFailed: if the system refuses it.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildFailed(f"a library does not load: {one_line(error)}") from error


def header(package: str, name: str) -> str:
    """Return the text of a package's header."""
    return files(package).joinpath(name).read_text()


def library(name: str, source: str) -> ctypes.CDLL:
    """Return the library of a source, from disk or newly built.

    Args:
        name: the beginning of the folder's name; a hash of source and toolchain follows.
        source: C++ in which ``a * b + c`` may be rounded once.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source, or the library cannot be kept or loaded.
    """
    key = hashlib.sha256("\n".join([source, toolchain()]).encode()).hexdigest()[:24]

    def make(place: Path) -> dict:
        build(source, place / LIBRARY, fused_products=True)
        if not (place / LIBRARY).exists():
            raise BuildFailed(f"{compiler()} wrote no library")
        return {}

    place, _ = kept(f"{name}-{key}", make)
    return load(place / LIBRARY)
