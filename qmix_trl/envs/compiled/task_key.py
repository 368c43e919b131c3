"""The names under which compiled steps are kept on disk."""

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

from qmix_trl import native
from qmix_trl.envs.vmas_simulation import Task
from qmix_trl.errors import Refused

PACKAGES = ("vmas", "torch", "numpy")
# In a text of a value: its address, or the ellipsis of an array that is too long to be shown.
UNCLEAR = re.compile(r" at 0x[0-9a-f]+|\.\.\.")


class Unrepeatable(Refused):
    """Nothing on disk could be recognised as this task's; says why."""


def task_key(task: Task, *more: str) -> str:
    """Return the name of a task's compiled step: of all that the step depends on.

    Args:
        task: what is simulated.
        *more: what it depends on beside task and versions.

    Raises:
        Unrepeatable: if an argument of the scenario has no text of its own.
    """
    settings = {
        "kwargs": {k: _shown(v) for k, v in sorted(task.scenario_kwargs.items())},
        "attributes": {k: _shown(v) for k, v in sorted(vars(task.scenario).items())},
        "task": [task.state, task.team_reward, task.group],
        "versions": [version(package) for package in PACKAGES],
        "scenario": [_text(cls) for cls in type(task.scenario).__mro__ if _is_scenario(cls)],
        "package": package_text(),
        "more": more,
    }
    text = json.dumps(settings, sort_keys=True)
    if UNCLEAR.search(json.dumps([settings["kwargs"], settings["attributes"]])):
        raise Unrepeatable("a keyword of the scenario has no text that tells it from others")
    return f"{task.name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _is_scenario(cls: type) -> bool:
    return issubclass(cls, BaseScenario) and cls is not BaseScenario


def _shown(value: Any) -> str:
    """Return a value's text, with all digits of tensors."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.asarray(value)
        return f"{array.dtype} {array.shape} {array.tobytes().hex()}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {_shown(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(_shown(v) for v in value)})"
    return repr(value)


def _text(cls: type) -> str:
    """Return the source of the file that a class stands in; VMAS's are no importable modules."""
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


def package_text() -> str:
    """Return the sources of all that makes compiled steps."""
    here, package = Path(__file__).parent, Path(native.__file__).parent
    sources = [f for f in sorted(here.rglob("*")) if f.suffix in (".py", ".h")]
    sources += [f for f in sorted(package.iterdir()) if f.suffix in (".py", ".h")]
    return "".join(f.read_text() for f in [*sources, here.parent / "vmas_simulation.py"])
