"""The store of built files on disk, one folder for each, so that they are built only once."""

import ctypes
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from qmix_trl.native.build import build, toolchain

NOTES = "notes.json"  # in each folder, next to the built files
LIBRARY = "library.so"


def folder() -> Path:
    """Return the folder of the store: QMIX_TRL_CACHE, or one in the user's cache."""
    chosen = os.environ.get("QMIX_TRL_CACHE")
    if chosen:
        return Path(chosen)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "qmix_trl" / "built"


def kept(key: str, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return a folder of the store and its notes; make them if they are not there.

    Args:
        key: the folder's name.
        make: writes files into a folder and returns notes for JSON. If it raises, nothing is kept.
    """
    place = folder() / key
    if not (place / NOTES).exists():
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".new-") as new:
            notes = make(Path(new))
            (Path(new) / NOTES).write_text(json.dumps(notes))
            made = Path(new)
            try:
                os.rename(made, place)  # atomic: other processes see the whole folder or none
            except OSError:
                if not (place / NOTES).exists():
                    raise
            else:
                made.mkdir()  # TemporaryDirectory removes it
    return place, json.loads((place / NOTES).read_text())


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
        BuildFailed: if it refuses the source.
    """
    key = hashlib.sha256("\n".join([source, toolchain()]).encode()).hexdigest()[:24]

    def make(place: Path) -> dict:
        build(source, place / LIBRARY, fused_products=True)
        return {}

    place, _ = kept(f"{name}-{key}", make)
    return ctypes.CDLL(str(place / LIBRARY))
