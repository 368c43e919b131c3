"""The store of built files on disk, one folder for each, so that they are built only once.

The notes of a folder hold a hash of each of its files, and a hash of themselves. An entry that is
damaged is built again, before any of it is loaded. A store that cannot be written, or that others
may write to, is passed over: a temporary folder of the process serves (``place.py``).
"""

import ctypes
import errno
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from qmix_trl.errors import one_line
from qmix_trl.native.build import BuildFailed, DiskFull, build, check_compiler, toolchain
from qmix_trl.native.built_file import (
    BuiltFile,
    NotLoadable,
    built_file,
    content_of,
    hash_of,
    load,
)
from qmix_trl.native.lock import locked
from qmix_trl.native.place import (
    Unusable,
    check_trusted,
    folder,
    is_trusted,
    temporary,
    temporary_if_made,
    warn_of,
)

NOTES = "notes.json"  # in each folder, next to the built files
UNFINISHED = ".new-"  # how the names of folders begin in which builds are under way
LOCK = ".lock-"  # and those of the files that their processes lock
ABANDONED_SECONDS = 3600  # an unfinished folder is removed if it is older
LOCK_SECONDS = 900  # the longest wait for another process, whose compiler has a limit of its own
FULL = (errno.ENOSPC, errno.EDQUOT)

LOG = logging.getLogger("qmix_trl")  # at INFO it tells each build
Make = Callable[[Path], Mapping[str, Any]]
_UNWRITABLE: dict[Path, str] = {}  # stores that failed in this process, with the reason
_DROPPED: set[Path] = set()  # entries that are of no use and could not be removed


def kept(key: str, make: Make) -> tuple[Path, dict[str, Any]]:
    """Return a folder of the store and its notes; make them if they are not there or damaged.

    Where the store cannot be used, the folder is a temporary one, which is warned of once.

    Args:
        key: the folder's name.
        make: writes files into a folder and returns notes for JSON. If it raises, nothing is kept.

    Raises:
        BuildFailed: if neither the store nor a temporary folder can be written.
    """
    try:
        return _kept(folder(), key, make)
    except Unusable as error:
        reason = str(error)
    warn_of(reason)
    return _temporarily(key, make, reason)


def unkept(make: Make) -> tuple[Path, dict[str, Any]]:
    """Return a folder that is removed at the end of the process, and its notes.

    Args:
        make: as in ``kept``.

    Raises:
        BuildFailed: if the folder cannot be written.
    """
    return _temporarily(f"unkept-{secrets.token_hex(8)}", make, "it is not kept")


def _temporarily(key: str, make: Make, reason: str) -> tuple[Path, dict[str, Any]]:
    """Return a temporary folder and its notes.

    Raises:
        BuildFailed: if it cannot be written.
    """
    try:
        return _kept(temporary(), key, make)
    except Unusable as error:
        raise BuildFailed(
            f"{reason}, and the temporary folder serves no better: {error}; QMIX_TRL_CACHE and "
            "TMPDIR name others"
        ) from error


def _kept(root: Path, key: str, make: Make) -> tuple[Path, dict[str, Any]]:
    """Return an entry of a store; a process at a time makes it.

    Raises:
        Unusable: if the store is not trusted or cannot be written.
    """
    check_trusted(root)
    _sweep(root)
    notes = _read(root / key)
    if notes is not None:
        return root / key, notes
    if root in _UNWRITABLE:
        raise Unusable(_UNWRITABLE[root])
    try:
        _make_root(root)
        with locked(root / f"{LOCK}{key}", LOCK_SECONDS):
            notes = _read(root / key)  # another process may have made it by now
            notes = _made(root / key, make) if notes is None else notes
    except Unusable as error:
        _UNWRITABLE[root] = str(error)
        raise
    except OSError as error:
        if not _is_about(error, root):
            raise
        _UNWRITABLE[root] = f"the store {root} cannot be written ({one_line(error)})"
        raise Unusable(_UNWRITABLE[root]) from error
    except DiskFull as error:
        _UNWRITABLE[root] = f"the store {root} is full: {error}"
        raise Unusable(_UNWRITABLE[root]) from error
    return root / key, notes


def _make_root(root: Path) -> None:
    """Make the folder of a store, which no other user can read.

    Raises:
        Unusable: if it cannot be made.
    """
    try:
        root.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError as error:
        raise Unusable(f"the store {root} cannot be made ({error.strerror})") from error


def _is_about(error: OSError, root: Path) -> bool:
    """Return whether an error is about a store, not about files that a scenario reads."""
    if error.filename is None:
        return error.errno in FULL or isinstance(error, TimeoutError)
    return Path(os.fsdecode(error.filename)).is_relative_to(root)


def _made(place: Path, make: Make) -> dict[str, Any]:
    """Make an entry in a folder of its own, and put it into its place; return its notes."""
    with _unfinished(place) as new:
        made = Path(new) / "entry"
        made.mkdir(mode=0o700)
        LOG.info("building %s, kept in %s", place.name.rpartition("-")[0], place.parent)
        notes = make(made)
        (made / NOTES).write_text(_sealed(notes, made))
        if _read(place) is None:  # no other process was faster
            if os.path.lexists(place):
                os.rename(place, Path(new) / "damaged")
            with suppress(OSError):  # if another process is faster now
                os.rename(made, place)  # atomic: other processes see the whole folder or none
        _DROPPED.discard(place)
    found = _read(place)
    if found is None:
        raise Unusable(f"the store {place.parent} does not keep what is written to it")
    return found


def _unfinished(place: Path) -> tempfile.TemporaryDirectory:
    """Return the folder in which an entry is made; it is removed at the end of the process, too."""
    prefix = f"{UNFINISHED}{place.name}-"
    return tempfile.TemporaryDirectory(dir=place.parent, prefix=prefix, ignore_cleanup_errors=True)


def read(key: str) -> dict[str, Any] | None:
    """Return the notes of an entry, None if there is none, it is damaged, or cannot be trusted."""
    found = map(_read, _places(key))
    return next((notes for notes in found if notes is not None), None)


def _places(key: str) -> list[Path]:
    """Return where an entry may be: in the store if it is trusted, and in the temporary folder."""
    roots = temporary_if_made()
    with suppress(Unusable):
        check_trusted(folder())
        roots.insert(0, folder())
    return [root / key for root in roots]


def _read(place: Path) -> dict[str, Any] | None:
    """Return the notes of an entry in a trusted folder, as ``read``."""
    if place in _DROPPED:
        return None
    try:
        if place.is_symlink() or not is_trusted(place.stat()):
            return None
        sealed = json.loads(content_of(place / NOTES))
        notes, of_files = sealed["notes"], sealed["files"]
        if sealed["hash"] != hash_of(_text(notes, of_files).encode()):
            return None
        same = all(hash_of(content_of(inside(place, x))) == h for x, h in of_files.items())
    except (OSError, ValueError, TypeError, KeyError, RecursionError, NotLoadable):
        return None
    return notes if same else None


def inside(place: Path, name: str) -> Path:
    """Return the path of a file of a folder.

    Raises:
        NotLoadable: if the name leads out of the folder.
    """
    if Path(name).name != name or name == "..":
        raise NotLoadable(f"expected the name of a file in {place}, got {name!r}")
    return place / name


def drop(key: str) -> None:
    """Remove an entry; where it cannot be removed, it is not read any more in this process."""
    for place in _places(key):
        try:
            with _unfinished(place) as bin_:
                os.rename(place, Path(bin_) / "dropped")
        except FileNotFoundError:  # another process was faster
            continue
        except OSError:
            _DROPPED.add(place)


def _sealed(notes: Mapping[str, Any], place: Path) -> str:
    """Return the text of an entry's notes, with the hashes of the entry's files."""
    notes = json.loads(json.dumps(notes))  # keys become strings
    of_files = {path.name: hash_of(path.read_bytes()) for path in place.iterdir() if path.is_file()}
    text = _text(notes, of_files)
    return json.dumps({"hash": hash_of(text.encode()), "files": of_files, "notes": notes})


def _text(notes: dict[str, Any], of_files: dict[str, str]) -> str:
    return json.dumps([notes, of_files], sort_keys=True)


@cache
def _sweep(root: Path) -> None:
    """Remove, once in a process, the folders of builds that were killed."""
    before = time.time() - ABANDONED_SECONDS
    with suppress(OSError):
        for path in root.glob(f"{UNFINISHED}*"):
            key = path.name.removeprefix(UNFINISHED).rpartition("-")[0]
            if path.lstat().st_mtime < before:
                shutil.rmtree(path, ignore_errors=True)
            elif key:
                with suppress(OSError), locked(root / f"{LOCK}{key}", 0) as is_held:
                    if is_held:  # so the process that made it is gone
                        shutil.rmtree(path, ignore_errors=True)


def header(package: str, name: str) -> str:
    """Return the text of a package's header."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def library(name: str, source: str, *functions: str) -> ctypes.CDLL:
    """Return the library of a source, from disk or newly built.

    A library from disk that does not load is built again, once.

    Args:
        name: the beginning of the folder's name; a hash of source and toolchain follows.
        source: C++ in which ``a * b + c`` may be rounded once.
        *functions: names that the library must have.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source, or the library cannot be kept or loaded.
    """
    text = "\n".join([source, toolchain(), *functions])
    key = f"{name}-{hash_of(text.encode())[:24]}"
    made: list[Path] = []

    def make(place: Path) -> dict[str, str]:
        check_compiler()
        # A process that has loaded a library gets it again by its path, even if the file is another
        path = place / f"library-{secrets.token_hex(4)}.so"
        made.append(path)
        build(source, path, fused_products=True)
        file = built_file(path)
        load(file, *functions)
        return {"file": path.name, "sha256": file.sha256}

    def loaded() -> ctypes.CDLL:
        place, notes = kept(key, make)
        return load(BuiltFile(inside(place, notes["file"]), notes["sha256"]), *functions)

    try:
        return loaded()
    except NotLoadable:
        if made:
            raise
    drop(key)
    return loaded()
