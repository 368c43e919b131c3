"""A run's whole state on disk: a folder of checkpoints that cannot lie, and cannot run code.

``FOLDER/checkpoint-000007/`` holds

- ``manifest.json``: the size and SHA-256 of each other file, versions, machine, time and greedy
  return, and a hash of itself;
- ``state.json``: the states of all parts without the numbers of tensors (``nested.py``);
- ``PART.bin``: the numbers of a part's tensors, one after another.

Of several ranks, each but the first writes its own ``rank-1.state.json`` and ``rank-1.PART.bin``.
The first one writes the manifest, when all have written.

It is written under another name, flushed to the disk and renamed, so that there is a whole
checkpoint or none. Only JSON and numbers are read: nothing of a checkpoint is run.
"""

import hashlib
import json
import math
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_trl import __version__
from qmix_trl.checkpoint.files import (
    Reader,
    bytes_of,
    flush_folder,
    new_folder,
    remove_folder,
    sweep,
    write_file,
)
from qmix_trl.checkpoint.nested import Damaged, decoded, encoded
from qmix_trl.checkpoint.parts import is_value, load_part, part_state
from qmix_trl.checkpoint.streams import random_state, set_random_state
from qmix_trl.errors import CheckpointError, SaveError, one_line
from qmix_trl.native.build import processor
from qmix_trl.ranks import ALONE, Ranks

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = f"1 {sys.byteorder}"  # numbers are written in the order of the machine
NAME = re.compile(r"checkpoint-(\d{6,12})")
DAMAGED = re.compile(r"damaged-(\d{6,12})")  # a checkpoint that was set aside
PART = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
MOST_MANIFEST_BYTES = 2**20
# A run of 5,000 rows has 28,000 bytes. So many bytes of empty lists take 0.3 GB in memory.
MOST_STATE_BYTES = 3 * 2**20
STREAMS = "random"  # the name of the process's random streams among the parts
PACKAGES = ("torch", "torchrl", "tensordict", "vmas", "numpy")
# Errors that content raises which is not as ``save_run`` writes it.
UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint that was loaded.

    Attributes:
        path: its folder.
        values: by name, the parts that were saved as values and not as objects with a state.
        manifest: with "versions", "machine", "time" in seconds since 1970, "greedy_return".
    """

    path: Path
    values: dict[str, Any]
    manifest: dict[str, Any]


def save_run(
    folder: str | Path,
    *,
    keep: int = 2,
    greedy_return: float | None = None,
    ranks: Ranks = ALONE,
    **parts: Any,
) -> Path:
    """Write a checkpoint of a run into a folder; return its path.

    The process's random streams (Python, NumPy, torch, VMAS) are always part of it.

    Args:
        folder: of the run's checkpoints; it is made if there is none.
        keep: the number of newest checkpoints that stay, with the one of the highest greedy return.
        greedy_return: of the weights, if it was measured; that of the first rank counts.
        ranks: the processes that save together, each its own parts, into one folder that all see.
            Where one cannot save, all raise, and there is no checkpoint.
        **parts: objects with a state (see ``parts.py``), or values: tensors, numbers, texts, None,
            and lists, tuples and dictionaries of them.

    Raises:
        SaveError: if it cannot be written, as on a full disk; the checkpoints before it stay.
        TypeError: if a part has no state, or its state holds anything but values.
        ValueError: if ``keep`` is below 1, or a part cannot have its name.
    """
    if keep < 1:
        raise ValueError(f"save_run: expected keep of at least 1, got {keep}")
    for name in parts:
        if not PART.fullmatch(name) or name == STREAMS:
            raise ValueError(f"save_run: a part cannot have the name {name!r}; choose another")
    folder = Path(folder)
    values = [name for name, part in parts.items() if is_value(part)]
    with ranks.all_or_none():
        states = {n: part if n in values else part_state(n, part) for n, part in parts.items()}
        states[STREAMS] = random_state()
    about = {
        "format": FORMAT,
        "time": time.time(),
        "greedy_return": None if greedy_return is None else float(greedy_return),
        "ranks": ranks.size,
        "values": values,
        "versions": _versions(),
        "machine": _machine(),
    }
    try:
        path = _write_all(folder, states, about, ranks)
    except OSError as error:
        raise SaveError(_not_saved(folder, error)) from error
    try:
        ranks.by_first(_remove_old, folder, keep)
    except OSError as error:
        raise SaveError(f"{path} is written, older ones cannot be removed: {error}") from error
    return path


def _write_all(
    folder: Path, states: Mapping[str, Any], about: dict[str, Any], ranks: Ranks
) -> Path:
    """Write a checkpoint, each rank its own states, and flush it to the disk; return its path.

    Raises:
        OSError: if the disk is full or fails.
        TypeError: if a state holds anything but values.
    """
    new, path = folder, folder
    with ExitStack() as stack:
        with ranks.all_or_none():
            if ranks.is_first:
                folder.mkdir(parents=True, exist_ok=True)
                sweep(folder)
                path = folder / f"checkpoint-{1 + _last_number(folder):06d}"
                new = stack.enter_context(new_folder(folder))
        new, path = ranks.from_first((new, path))
        with ranks.all_or_none():
            files = _write_states(new, states, _prefix(ranks.rank))
        about["files"] = {name: x for of in ranks.gathered(files) for name, x in of.items()}
        ranks.by_first(_finish, new, path, about)
    return path


def _finish(new: Path, path: Path, about: dict[str, Any]) -> None:
    """Write the manifest of a checkpoint, and move it to its place."""
    _write_text(new / MANIFEST, _sealed(about), MOST_MANIFEST_BYTES)
    flush_folder(new)
    new.rename(path)
    flush_folder(path.parent)


def _prefix(rank: int) -> str:
    """Return the beginning of the names of a rank's files; no part's name has a point."""
    return f"rank-{rank}." if rank else ""


def load_run(folder: str | Path, *, ranks: Ranks = ALONE, **parts: Any) -> LoadedRun:
    """Let the parts of a run continue from its newest checkpoint that is whole.

    All of a checkpoint is read and checked before any part is touched. Then the parts are loaded in
    the given order, and the process's random streams last. Damaged checkpoints that are newer are
    renamed to ``damaged-000007``, so that whole ones are not removed in their favour.

    Args:
        folder: of the run's checkpoints, or one checkpoint.
        ranks: the processes that load together, as many as have saved. A checkpoint is whole if
            it is so for all of them.
        **parts: the objects that ``save_run`` was given, or new ones made alike, by the same names.
            Those that were given as values are returned and not given here.

    Returns:
        The checkpoint that was loaded, with the values.

    Raises:
        CheckpointError: if no checkpoint is whole, or it is of another number of ranks; or, with
            some parts loaded and others not, if it has other parts or does not fit them.
    """
    folder = Path(folder)
    ranks.by_first(sweep, folder)
    path, manifest, states = _newest_whole(folder, ranks)
    differences = _differences(manifest)
    if differences:
        warnings.warn(
            f"{path} was written with {'; '.join(differences)}: numbers may differ in their last "
            "bits",
            stacklevel=2,
        )
    values = {name: states.pop(name) for name in manifest["values"]}
    streams = states.pop(STREAMS)
    if states.keys() != parts.keys():
        raise CheckpointError(
            f"{path}: expected the parts {', '.join(sorted(states))} as it was saved, got "
            f"{', '.join(sorted(parts)) or 'none'}"
        )
    for name, part in parts.items():
        _load(path, name, partial(load_part, name, part), states[name])
    _load(path, STREAMS, set_random_state, streams)
    return LoadedRun(path, values, manifest)


def _load(path: Path, name: str, load: Callable[[Any], None], state: Any) -> None:
    try:
        load(state)
    except Exception as error:  # a part's own code may raise anything
        raise CheckpointError(f"{path}: {name} does not fit: {one_line(error)}") from error


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first; links are none."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    folders = [path for path in found if path.is_dir() and not path.is_symlink()]
    return sorted(folders, key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _last_number(folder: Path) -> int:
    """Return the greatest number of a folder's checkpoints, damaged ones included; 0 without."""
    names = [path.name for path in folder.iterdir()]
    matches = [NAME.fullmatch(name) or DAMAGED.fullmatch(name) for name in names]
    return max((int(match[1]) for match in matches if match), default=0)


def _write_states(folder: Path, states: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Write the states of a rank's parts into a folder; return sizes and hashes by file.

    Raises:
        OSError: if the disk is full or fails.
        TypeError: if a state holds anything but values.
    """
    files: dict[str, Any] = {}
    trees = {}
    for name, state in states.items():
        tensors: list[Tensor] = []
        trees[name] = encoded(state, tensors.append, name)
        if tensors:
            file = f"{prefix}{name}.bin"
            files[file] = write_file(folder / file, map(bytes_of, tensors))
    file = f"{prefix}{STATE}"
    files[file] = _write_text(folder / file, json.dumps(trees).encode(), MOST_STATE_BYTES)
    return files


def _write_text(path: Path, text: bytes, most_bytes: int) -> dict[str, Any]:
    if len(text) > most_bytes:
        raise TypeError(
            f"save_run: expected at most {most_bytes:,} bytes of names, numbers and texts in "
            f"{path.name}, got {len(text):,}; keep long lists of numbers in tensors"
        )
    return write_file(path, [text])


def _sealed(manifest: dict[str, Any]) -> bytes:
    """Return a manifest as text that begins with a hash of the rest."""
    text = json.dumps(manifest, indent=1).encode()
    return json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n" + text + b"\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises:
        Damaged: if it is not as it was written.
    """
    with Reader(path / MANIFEST) as reader:
        text = reader.text(MOST_MANIFEST_BYTES)
    try:
        manifest = json.loads(text.partition(b"\n")[2])
    except (ValueError, RecursionError):
        raise Damaged(f"{MANIFEST} is no JSON") from None
    if not isinstance(manifest, dict) or _sealed(manifest) != text:
        raise Damaged(f"{MANIFEST} does not have its hash")
    if manifest.get("format") != FORMAT:
        raise Damaged(f"{MANIFEST}: expected the format {FORMAT!r}, got {manifest.get('format')!r}")
    return manifest


def _read(path: Path, ranks: Ranks = ALONE) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the manifest of a checkpoint and the states of this rank's parts.

    Raises:
        Damaged: if a file is not as it was written.
        CheckpointError: if other ranks have written it.
    """
    manifest = read_manifest(path)
    n_ranks, prefix = manifest.get("ranks", 1), _prefix(ranks.rank)
    if n_ranks != ranks.size:
        raise CheckpointError(
            f"{path}: expected the {n_ranks} ranks that saved it, got {ranks.size}; start as many"
        )
    try:
        files: dict[str, Any] = manifest["files"]
        trees = _read_trees(path / f"{prefix}{STATE}", files)
        _check_names(manifest["values"], trees)
        _differences(manifest)
        states = {
            name: _read_tensors(
                path / f"{prefix}{name}.bin", tree, files.get(f"{prefix}{name}.bin")
            )
            for name, tree in trees.items()
        }
    except UNEXPECTED as error:
        raise Damaged(f"not written by save_run: {one_line(error)}") from error
    return manifest, states


def _check_names(values: Any, trees: Mapping[str, Any]) -> None:
    """Refuse parts that lack the random streams, or names of values that are not parts.

    Raises:
        Damaged: if there are any.
    """
    if STREAMS not in trees:
        raise Damaged(f"{STATE} lacks {STREAMS!r}")
    if not isinstance(values, list) or len({*values}) != len(values):
        raise Damaged(f"{MANIFEST}: expected a list of distinct values, got {str(values)[:80]}")
    if not {*values} <= trees.keys() - {STREAMS}:
        raise Damaged(f"{STATE} lacks parts that {MANIFEST} names")


def _read_trees(path: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of each part, from its file in a checkpoint.

    Raises:
        Damaged: if it is not as it was written, or names a part that is no name.
    """
    with Reader(path) as reader:
        text = reader.text(MOST_STATE_BYTES)
        _check(path.name, files[path.name], len(text), reader.hash())
    try:
        trees = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged(f"{path.name} is no JSON") from None
    if not all(PART.fullmatch(name) for name in trees):
        raise Damaged(f"{path.name} names a part that is no name")
    return trees


def _read_tensors(path: Path, tree: Any, expected: Mapping[str, Any] | None) -> Any:
    """Return the state of a part; ``expected`` is None if it has no tensors and no file.

    Raises:
        Damaged: if its file is not as it was written.
    """
    if expected is None:
        return decoded(tree, _no_tensor)
    with Reader(path) as reader:
        n_bytes = reader.left
        if n_bytes != expected["bytes"]:
            raise Damaged(f"{path.name}: expected {expected['bytes']} bytes, got {n_bytes}")
        state = decoded(tree, reader.tensor)
        if reader.left:
            raise Damaged(f"{path.name} is longer than its tensors")
        _check(path.name, expected, n_bytes, reader.hash())
    return state


def _no_tensor(dtype: torch.dtype, shape: list[int]) -> Tensor:
    raise Damaged(f"{MANIFEST} names no file for a tensor {dtype} {shape}")


def _check(name: str, expected: Mapping[str, Any], n_bytes: int, hash_: str) -> None:
    """Refuse a file that has another size or hash than its manifest says.

    Raises:
        Damaged: if it has.
    """
    if n_bytes != expected["bytes"]:
        raise Damaged(f"{name}: expected {expected['bytes']} bytes, got {n_bytes}")
    if hash_ != expected["sha256"]:
        raise Damaged(f"{name} does not have its hash")


def _newest_whole(folder: Path, ranks: Ranks) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the newest checkpoint that is whole, its manifest and this rank's states.

    Newer ones, which are damaged, are set aside. Where none is whole, all stay where they are.

    Raises:
        CheckpointError: if there is none, or the newest is of another number of ranks.
    """
    refused: dict[Path, str] = {}
    single = NAME.fullmatch(folder.name) and not checkpoints(folder)
    for path in ranks.from_first([folder] if single else checkpoints(folder)):
        try:
            with ranks.all_or_none():
                manifest, states = _read(path, ranks)
        except Damaged as damaged:
            refused[path] = f"{path} is damaged: {damaged}"
            continue
        if refused:
            aside = {damaged: ranks.by_first(_set_aside, damaged) for damaged in refused}
            told = [f"{reason}{aside[damaged]}" for damaged, reason in refused.items()]
            warnings.warn(f"{'; '.join(told)}; {path} is loaded", stacklevel=3)
        return path, manifest, states
    reason = "; ".join(refused.values()) or f"{folder} has no checkpoint of save_run"
    raise CheckpointError(f"{reason}; nothing was loaded")


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint; return words on its name, none in a read-only folder."""
    aside = path.with_name(f"damaged-{path.name.partition('-')[2]}")
    try:
        path.rename(aside)
    except OSError:
        return ""
    return f", now {aside.name}"


def _remove_old(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest and the one of the highest greedy return."""
    found = checkpoints(folder)
    best = max(found, key=_greedy_return)  # the newest of equals
    for path in found[keep:]:
        if path != best:
            remove_folder(path)


def _greedy_return(path: Path) -> float:
    try:
        found = read_manifest(path)["greedy_return"]
    except (Damaged, KeyError):
        return -math.inf
    return found if isinstance(found, float) and not math.isnan(found) else -math.inf


def _not_saved(folder: Path, error: OSError) -> str:
    """Return the message of a save that failed."""
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free"
        newest = checkpoints(folder)[:1]
    except OSError:
        free, newest = "the free space is unknown", []
    stays = f"{newest[0].name} stays the newest" if newest else "there is none"
    return f"{folder}: no checkpoint can be written: {error.strerror or error}; {free}; {stays}"


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "qmix_trl": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def _machine() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    flags = hashlib.sha256(processor().encode()).hexdigest()[:16]
    return {"processor": f"{platform.machine()} {flags}", "gpu": gpu}


def _differences(manifest: Mapping[str, Any]) -> list[str]:
    """Return the versions and features of the machine that differ from a manifest's."""
    now = {**_versions(), **_machine()}
    saved = {**manifest["versions"], **manifest["machine"]}
    return [
        f"{name} {saved.get(name, 'none')}, here {now.get(name, 'none')}"
        for name in sorted({*now, *saved})
        if now.get(name) != saved.get(name)
    ]
