"""The Python code that runs in a step or a reset, and its sources of chance.

Python's way through a step depends on the Python values that it reads, if it reads no tensor
(``pure.py``), draws no numbers, and reads no clock and no file. A step that leaves these values as
they were therefore takes the same way again, and one trace holds for all steps.
"""

import io
import operator
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import FrameType
from typing import Any

import numpy as np
import torch

from qmix_trl.envs.compiled.trace.contents import Contents
from qmix_trl.envs.compiled.trace.own_code import describe_line, is_own_module, names_in, texts_in

# Modules that draw or read files; functions in C are known by the module or the object they belong
# to.
OF_CHANCE = frozenset(
    {"random", "secrets", "uuid", "tempfile", "os", "pathlib", "subprocess", "socket", "gym.spaces"}
    | {"gymnasium.spaces", "numpy.lib.npyio", "numpy.lib._npyio_impl", "torch.serialization"}
    | {"torch.random"}
)
WRAPPERS = frozenset({"collections.abc", "contextlib", "functools", "torch._dynamo.eval_frame"})
OF_CHANCE_IN_C = frozenset({"time", "posix", "nt", "io", "_io"})
OWNERS_OF_CHANCE = (
    random.Random,
    io.IOBase,
    np.random.Generator,
    np.random.RandomState,
    torch.Generator,
)
CLOCKS = frozenset({"now", "today", "utcnow"})
# Names by which code may read attributes that it does not name.
DYNAMIC = frozenset(
    {
        "getattr",
        "attrgetter",
        "methodcaller",
        "__getattribute__",
        "getattr_static",
        "vars",
        "__dict__",
        "globals",
        "locals",
        "eval",
        "exec",
    }
    | {"asdict", "astuple", "fields", "getmembers", "format", "format_map"}
)
GETTERS = (getattr, vars, object.__getattribute__)


@dataclass
class Audit:
    """The code that ran, and its sources of chance.

    Attributes:
        packages: top-level packages that count as the user's wherever they are.
        codes: of all functions that ran, with whether they are the user's.
        chances: a line for each call of the user's code whose result may be another one each time.
    """

    packages: frozenset[str]
    codes: dict[types.CodeType, bool] = field(default_factory=dict)
    chances: list[str] = field(default_factory=list)

    def names(self, contents: Contents) -> frozenset[str] | None:
        """Return the names of all attributes and globals that the code may have read.

        Args:
            contents: of the simulator, which may hold functions that read any attribute.

        Returns:
            None if the user's code may have read any, by ``getattr`` or the like.
        """
        if any(is_getter(thing) for thing in contents.objects.values()):
            return None
        own = [names_in(code) for code, is_own in self.codes.items() if is_own]
        if any(names & DYNAMIC for names in own):
            return None
        texts = [texts_in(code) for code, is_own in self.codes.items() if is_own]
        return frozenset().union(*(names_in(code) for code in self.codes), *texts)

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record an event of ``sys.setprofile``."""
        if event == "call":
            self.codes.setdefault(frame.f_code, self._is_own(frame))
            caller = calling(frame)
            if of_chance(frame) and caller is not None and self._is_own(caller):
                self.chances.append(describe_line(caller))
        elif event == "c_call" and is_of_chance(argument) and self._is_own(frame):
            self.chances.append(describe_line(frame))

    def _is_own(self, frame: FrameType) -> bool:
        return is_own_module(frame.f_globals.get("__name__", ""), self.packages)


def is_getter(thing: Any) -> bool:
    """Say whether an object reads attributes whose names no code holds."""
    return isinstance(thing, operator.attrgetter) or any(thing is getter for getter in GETTERS)


def of_chance(frame: FrameType) -> bool:
    """Say whether a function in Python draws or reads a file."""
    return is_module_of_chance(frame.f_globals.get("__name__", ""))


@cache
def is_module_of_chance(module: str) -> bool:
    """Say whether functions of a module draw or read files."""
    return any(module == name or module.startswith(f"{name}.") for name in OF_CHANCE)


def calling(frame: FrameType) -> FrameType | None:
    """Return the frame that called; mappings, contexts and wrappers are passed over."""
    caller = frame.f_back
    while caller is not None and caller.f_globals.get("__name__") in WRAPPERS:
        caller = caller.f_back
    return caller


def is_of_chance(function: Any) -> bool:
    """Say whether a function in C draws, reads a clock or reads a file."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, OWNERS_OF_CHANCE):
        return True
    if isinstance(owner, type):
        return function.__name__ in CLOCKS
    return getattr(function, "__module__", None) in OF_CHANCE_IN_C


TORCHS = "it draws from torch's generator"
GENERATORS: dict[str, Callable[[], bytes]] = {
    "it draws from Python's generator": lambda: repr(random.getstate()).encode(),
    "it draws from NumPy's generator": lambda: repr(np.random.get_state()).encode(),  # noqa: NPY002
    TORCHS: lambda: torch.get_rng_state().numpy().tobytes(),
}  # the state of each generator of the process, by the line that says so


@contextmanager
def audited(packages: frozenset[str]) -> Iterator[Audit]:
    """Record the code that runs within a ``with`` block, and its sources of chance.

    Args:
        packages: top-level packages that count as the user's wherever they are.
    """
    audit, before = Audit(packages), {line: state() for line, state in GENERATORS.items()}
    outside = sys.getprofile()
    sys.setprofile(audit.note)
    try:
        yield audit
    finally:
        resume_profiler(outside)
        audit.chances += [line for line, state in GENERATORS.items() if state() != before[line]]


def resume_profiler(profiler: Any) -> None:
    """Set the profiler that ``sys.getprofile`` returned before; one in C enables itself."""
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    else:  # cProfile.Profile, up to Python 3.11
        sys.setprofile(None)
        profiler.enable()


def may_be_read(path: str, names: frozenset[str] | None) -> bool:
    """Say whether code that names these attributes may have read the value at a path.

    Args:
        path: as ``walk`` has it: attributes after dots, in containers.
        names: of all attributes and globals that code may have read; None for any.
    """
    if names is None:
        return True
    _, dot, attribute = path.rstrip("@!").rpartition(".")
    if not dot or ":" in attribute:  # an entity, a default, a variable of a closure
        return True
    return attribute.split("[")[0].split("(")[0] in names


def either(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """Return the names of two codes together; None, for any, if one of them may read any."""
    return None if one is None or other is None else one | other
