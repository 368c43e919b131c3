"""Comparisons with VMAS that a process makes once for each task.

A run makes its environment three times: to estimate its memory, to train and to evaluate. A result
is taken again only where nothing that it depends on can have changed in between: the scenario's
code, the world that it makes (also of files that it reads) and VMAS itself, as they are in memory.
"""

import sys
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch

from qmix_trl.envs.compiled.trace.guard import array_bytes, text_of
from qmix_trl.envs.compiled.trace.leaves import digest
from qmix_trl.envs.compiled.trace.own_code import is_own_module
from qmix_trl.envs.compiled.trace.snapshot import outside_kept
from qmix_trl.envs.compiled.trace.trace import FEW_ENVS
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation

SIMULATOR = "vmas.simulator"
# Names in VMAS's modules and classes that change by themselves: its random numbers, of which each
# simulation has its own, and lists of Python.
CHANGING = ("vmas_random_state", "__builtins__", "__warningregistry__")
OF_NAMED_TUPLES = "namedtuple_"  # modules in which Python puts their functions
CONTAINERS = (dict, list, set, tuple)
Result = TypeVar("Result")
# With the objects of the simulator, so that no other object gets the identity of one.
_results: dict[Hashable, tuple[Any, list[Any]]] = {}


def once(key: str | None, task: Task, details: Hashable, find: Callable[[], Result]) -> Result:
    """Return a result that is found once for a task.

    Args:
        key: of the task (``task_key``); without one the result is found each time.
        task: the task.
        details: what the result depends on beside the task.
        find: returns the result; an exception is not kept.
    """
    parts = simulator_in_memory()
    if key is None or parts is None or (world := made(task)) is None:
        return find()
    texts = tuple(repr(part) for part in parts if isinstance(part, CONTAINERS))
    settings = (torch.get_default_dtype(), str(torch.get_default_device()))
    known = (key, details, world, settings, texts, tuple(map(id, parts)))
    if known not in _results:
        _results[known] = find(), parts
    return _results[known][0]


def made(task: Task) -> str | None:
    """Return a hash of the world that a scenario makes now; None if it makes none of a few.

    Modules and classes that the scenario changes are as before afterwards.
    """
    with outside_kept(task.scenario):
        try:
            contents = walk(VmasSimulation(task, FEW_ENVS, 0, torch.device("cpu")).simulator)
            values = [f"{path} {text_of(value)}" for path, value in contents.values.items()]
            tensors = [
                f"{path} {tensor.dtype} {tensor.shape} {digest(array_bytes(tensor))}"
                for path, tensor in contents.tensors().items()
            ]
        except Exception:  # a scenario may raise anything with other numbers of environments
            return None
    return digest("\n".join([*values, *tensors]).encode())


def simulator_in_memory() -> list[Any] | None:
    """Return all parts of VMAS's simulator in memory; None if any of them is the user's."""
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith(SIMULATOR)]
    parts = []
    for part in _parts([module for module in modules if isinstance(module, types.ModuleType)]):
        home = (part if isinstance(part, (type, types.FunctionType)) else type(part)).__module__
        if is_own_module(home, frozenset()) and not home.startswith(OF_NAMED_TUPLES):
            return None
        parts.append(part)
    return parts


def _parts(waiting: list[Any]) -> Iterator[Any]:
    """Return the attributes of modules, of their classes, and of the functions in both."""
    seen = set()
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        for name, part in vars(holder).items():
            if name in CHANGING:
                continue
            inside = [part]
            if isinstance(part, property):
                inside += [part.fget, part.fset]
            elif isinstance(part, (staticmethod, classmethod)):
                inside.append(part.__func__)
            elif isinstance(part, type) and part.__module__.startswith(SIMULATOR):
                waiting.append(part)
            functions = [x for x in inside if isinstance(x, types.FunctionType)]
            yield from inside
            for function in functions:
                yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
