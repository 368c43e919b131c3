"""The keys under which compiled steps are kept on disk.

A key is the scenario's name and a hash of all that a compiled step depends on:

- the task: the scenario's keywords and attributes, and its state, team reward, group, others and
  actions;
- the user's code: the functions and classes that the scenario can reach, with the values of their
  class attributes, closures, default arguments and globals (``trace/walk.py``);
- the contents of the user's files that this code is from, and of all that they import
  (``task_sources.py``); the versions of the libraries that they import;
- the sources of VMAS's simulator, and the versions of Python and of ``PACKAGES``;
- the files of this package that build or check a step: the folder of the compiler and
  ``OTHER_FILES``. A file that one of them imports has to be listed (a test follows the imports);
- the tools that build it, with their flags and the device (``Backend.tools``).

A key is the same in every process, and wherever the files are. Sets count as unordered. Open files
count by their class: a step that reads them is refused. A step
from disk is compared with VMAS at its first use in a process, too (``compile.checked_step``).
"""

import hashlib
import io
import json
import platform
import re
from functools import _lru_cache_wrapper
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import vmas
from torch import Tensor

from qmix_trl.envs.compiled.task_sources import Sources
from qmix_trl.envs.compiled.trace.contents import Contents
from qmix_trl.envs.compiled.trace.leaves import IN_MEMORY, digest
from qmix_trl.envs.compiled.trace.own_code import packages_of
from qmix_trl.envs.compiled.trace.parts import PRIMITIVES, described
from qmix_trl.envs.compiled.trace.walk import walk_from
from qmix_trl.envs.others import SCRIPTED, heuristic_of
from qmix_trl.envs.vmas_simulation import Task
from qmix_trl.errors import Refused

PACKAGES = ("vmas", "torch", "numpy")
COMPILER = Path(__file__).parent
PACKAGE = COMPILER.parents[1]
OTHER_FILES = (
    "chosen.py",
    "envs/others.py",
    "envs/scenario_copies.py",
    "envs/scenario_errors.py",
    "envs/scenario_outputs.py",
    "envs/time_limit.py",
    "envs/user_code.py",
    "envs/vmas_random_stream.py",
    "envs/vmas_scenarios.py",
    "envs/vmas_simulation.py",
    "errors.py",
    "keys.py",
    "native/build.py",
    "native/built_file.py",
    "native/large_pages.py",
    "native/lock.py",
    "native/place.py",
    "native/simd.h",
    "native/store.py",
    "native/structures.py",
)  # in the package
SIMULATOR = Path(vmas.__file__).parent / "simulator"


class Unrepeatable(Refused):
    """A task has no key; the message is the reason."""


def task_key(task: Task, *tools: str) -> str:
    """Return the key of a task's compiled step, as this module describes.

    Args:
        task: the task.
        *tools: versions of the tools that build the step.

    Raises:
        Unrepeatable: if the scenario holds an object whose state cannot be seen.
    """
    packages = packages_of(task.scenario)
    keywords = {f"keyword {name}": value for name, value in sorted(task.scenario_kwargs.items())}
    script = {"script": heuristic_of(task.scenario)} if task.others == SCRIPTED else {}
    contents = walk_from({"scenario": task.scenario, **script, **keywords}, packages)
    sources = Sources(packages)
    sources.add_objects(contents.objects.values())
    settings = {
        "values": value_texts(contents),
        "task": [
            *(task.state, task.team_reward, task.group),
            *(task.others, task.actions_per_dimension),
        ],
        "files": sources.hashes(),
        "libraries": sources.versions(),
        "versions": [platform.python_version(), *(version(package) for package in PACKAGES)],
        "simulator": simulator_hash(),
        "package": package_text(),
        "tools": tools,
    }
    text = json.dumps(settings, sort_keys=True)
    name = re.sub(r"[^\w.-]", "-", task.name)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def value_texts(contents: Contents) -> dict[str, str]:
    """Return the texts of all values of contents, by path.

    Raises:
        Unrepeatable: if there is an object whose state cannot be seen.
    """
    objects = contents.objects
    fleeting = {path for path, thing in objects.items() if is_fleeting(thing)}
    caches = [path for path, thing in objects.items() if isinstance(thing, _lru_cache_wrapper)]
    results = tuple(f"{path}:cached[" for path in caches)
    texts = {}
    for path, value in contents.values.items():
        texts[path] = value if path in objects else primitive_text(value)
    for path, thing in objects.items():
        if isinstance(thing, dict):
            texts[f"{path} keys"] = " ".join(map(primitive_text, thing))
    first: dict[int, str] = {}  # paths of tensors, by the address of their memory
    for path, tensor in contents.tensors().items():
        texts[path] = tensor_text(tensor)
        if tensor.numel() and tensor.layout == torch.strided:
            same = first.setdefault(tensor.untyped_storage().data_ptr(), path)
            texts[f"{path} memory"] = f"{same} {tensor.storage_offset()} {tensor.stride()}"
    for path, kind in sorted(contents.unwatched.items()):
        if path not in fleeting and not path.startswith(results):
            raise Unrepeatable(f"{path} is a {kind}, whose state cannot be seen")
    texts |= {path: described(objects[path]) for path in fleeting}
    return {path: text for path, text in texts.items() if not path.startswith(results)}


def is_fleeting(thing: Any) -> bool:
    """Return whether an object is an open file."""
    return isinstance(thing, io.IOBase) and not isinstance(thing, IN_MEMORY)


def primitive_text(value: Any) -> str:
    """Return the text of a primitive or of a key; for other objects, of their class only.

    Subclasses of primitives may have texts of their own, which leave out the value.
    """
    if isinstance(value, tuple):
        return f"({' '.join(map(primitive_text, value))})"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    base = next((base for base in PRIMITIVES if isinstance(value, base)), None)
    return f"{kind} {base.__repr__(value)}" if base is not None else kind


def tensor_text(tensor: Tensor) -> str:
    """Return type, shape and a hash of all digits of a tensor.

    Raises:
        Unrepeatable: if its numbers cannot be read.
    """
    try:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        dense = plain if plain.layout == torch.strided else plain.to_dense()
        whole = dense.clone(memory_format=torch.contiguous_format)
        content = whole.reshape(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError) as error:  # quantised, or without memory
        raise Unrepeatable(f"a tensor of {tensor.dtype} has no numbers to read") from error
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device} {digest(content)}"


def simulator_hash() -> str:
    """Return a hash of the sources of VMAS's simulator."""
    paths = sorted(SIMULATOR.rglob("*.py"))
    content = [f"{p.relative_to(SIMULATOR)} {digest(p.read_bytes())}" for p in paths]
    return digest("\n".join(content).encode())


def package_files() -> list[Path]:
    """Return the files of this package that build or check compiled steps."""
    compiler = [f for f in sorted(COMPILER.rglob("*")) if f.suffix in (".py", ".h")]
    return [*compiler, *(PACKAGE / name for name in OTHER_FILES)]


def package_text() -> str:
    """Return the sources of ``package_files``."""
    return "".join(f.read_text(encoding="utf-8") for f in package_files())
