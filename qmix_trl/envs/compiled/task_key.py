"""The keys under which compiled steps are kept on disk.

A key is the scenario's name and a hash of all that a compiled step depends on:

- the task: the scenario's keywords and attributes, with all digits of tensors and arrays, and its
  state, team reward and group;
- the source files of the scenario's class and of its bases up to VMAS's ``BaseScenario``;
- the versions of ``PACKAGES``;
- the files of this package that build or check a step: the folder of the compiler and
  ``OTHER_FILES``. A file that one of them imports has to be listed (a test follows the imports);
- the tools that build it, with their flags and the device (``Backend.tools``).

Modules that a scenario imports are not in the key: a step from disk is compared with VMAS at every
start, and refused if they differ (``compile.check_again``).
"""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.vmas_simulation import Task
from qmix_trl.errors import Refused

PACKAGES = ("vmas", "torch", "numpy")
COMPILER = Path(__file__).parent
PACKAGE = COMPILER.parents[1]
OTHER_FILES = (
    "chosen.py",
    "envs/scenario_copies.py",
    "envs/vmas_scenarios.py",
    "envs/vmas_simulation.py",
    "errors.py",
    "native/build.py",
    "native/large_pages.py",
    "native/simd.h",
    "native/store.py",
    "native/structures.py",
)  # in the package
# In the text of a value: an address, or the ellipsis of an array that is too long to print.
UNCLEAR = re.compile(r" at 0x[0-9a-f]+|\.\.\.")


class Unrepeatable(Refused):
    """A task has no key; the message is the reason."""


def task_key(task: Task, *tools: str) -> str:
    """Return the key of a task's compiled step, as this module describes.

    Args:
        task: the task.
        *tools: versions of the tools that build the step.

    Raises:
        Unrepeatable: if a value or a source of the scenario has no text that identifies it.
    """
    settings = {
        "kwargs": {k: _shown(v) for k, v in sorted(task.scenario_kwargs.items())},
        "attributes": {k: _shown(v) for k, v in sorted(vars(task.scenario).items())},
        "task": [task.state, task.team_reward, task.group],
        "versions": [version(package) for package in PACKAGES],
        "scenario": [_text(cls) for cls in type(task.scenario).__mro__ if _is_scenario(cls)],
        "package": package_text(),
        "tools": tools,
    }
    text = json.dumps(settings, sort_keys=True)
    if UNCLEAR.search(json.dumps([settings["kwargs"], settings["attributes"]])):
        raise Unrepeatable("a keyword of the scenario has no text that tells it from others")
    return f"{task.name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _is_scenario(cls: type) -> bool:
    return issubclass(cls, BaseScenario) and cls is not BaseScenario


def _shown(value: Any) -> str:
    """Return the text of a value, with all digits of tensors and arrays."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.asarray(value)
        return f"{array.dtype} {array.shape} {array.tobytes().hex()}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {_shown(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(_shown(v) for v in value)})"
    return repr(value)


def _text(cls: type) -> str:
    """Return the sources of the files that define a class; VMAS's cannot be imported by name."""
    members = [getattr(member, "__func__", member) for member in vars(cls).values()]
    members = [getattr(member, "fget", member) for member in members]
    functions = [inspect.unwrap(member) for member in members if inspect.isfunction(member)]
    files_ = {function.__code__.co_filename for function in functions}
    try:
        if not files_:
            files_ = {inspect.getfile(cls)}
        return "".join(Path(name).read_text() for name in sorted(files_))
    except (OSError, TypeError) as error:
        raise Unrepeatable(f"the source of {cls.__name__} is not in a file") from error


def package_files() -> list[Path]:
    """Return the files of this package that build or check compiled steps."""
    compiler = [f for f in sorted(COMPILER.rglob("*")) if f.suffix in (".py", ".h")]
    return [*compiler, *(PACKAGE / name for name in OTHER_FILES)]


def package_text() -> str:
    """Return the sources of ``package_files``."""
    return "".join(f.read_text() for f in package_files())
