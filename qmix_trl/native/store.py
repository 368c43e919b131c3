"""What was built, on disk, one folder each, so that a second start takes no build."""

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

NOTES = "notes.json"  # of what was built, beside its files
LIBRARY = "library.so"


def folder() -> Path:
    """Return where it is kept: QMIX_TRL_CACHE, or in the user's cache."""
    chosen = os.environ.get("QMIX_TRL_CACHE")
    if chosen:
        return Path(chosen)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "qmix_trl" / "built"


def kept(key: str, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the folder of what was built and its notes; make it if it is not there.

    Args:
        key: its name.
        make: writes the files into a folder and returns notes for JSON. Nothing is kept if it
            raises.
    """
    place = folder() / key
    if not (place / NOTES).exists():
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".new-") as new:
            notes = make(Path(new))
            (Path(new) / NOTES).write_text(json.dumps(notes))
            made = Path(new)
            try:
                os.rename(made, place)  # at once: another process sees all of it or nothing
            except OSError:
                if not (place / NOTES).exists():
                    raise
            else:
                made.mkdir()  # for the temporary folder's own end
    return place, json.loads((place / NOTES).read_text())


def header(package: str, name: str) -> str:
    """Return the text of a package's header."""
    return files(package).joinpath(name).read_text()


def library(name: str, source: str) -> ctypes.CDLL:
    """Return the library of a source, from disk or newly built.

    Args:
        name: what its folder's name begins with.
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
