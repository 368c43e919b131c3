"""Compiled steps on disk, one folder each, so that a second start takes no build."""

import hashlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.vmas_simulation import Task

PACKAGES = ("vmas", "torch", "numpy")
# In a text of a value: its address, or the ellipsis of an array that is too long to be shown.
UNCLEAR = re.compile(r" at 0x[0-9a-f]+|\.\.\.")
NOTES = "notes.json"  # of a compiled step, beside its files


class Unrepeatable(Exception):
    """Nothing on disk could be recognised as this task's; says why."""


def folder() -> Path:
    """Return where compiled steps are kept: QMIX_TRL_CACHE, or in the user's cache."""
    chosen = os.environ.get("QMIX_TRL_CACHE")
    if chosen:
        return Path(chosen)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "qmix_trl" / "steps"


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
    here = files(__package__)
    names = sorted(f.name for f in here.iterdir() if f.name.endswith((".py", ".h")))
    texts = [here.joinpath(name).read_text() for name in names]
    return "".join([*texts, here.parent.joinpath("vmas_simulation.py").read_text()])


def kept(key: str, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a compiled step and its notes; make it if it is not there.

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
