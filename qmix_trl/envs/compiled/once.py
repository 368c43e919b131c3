"""Comparisons with VMAS that a process makes once for each task.

A run makes its environment three times: to estimate its memory, to train and to evaluate. The same
task, with the same code in memory, gives the same result.
"""

import sys
import types
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

from qmix_trl.envs.compiled.trace.leaves import digest
from qmix_trl.envs.compiled.trace.own_code import code_digest
from qmix_trl.envs.compiled.trace.parts import PRIMITIVES

SIMULATOR = "vmas.simulator"
_results: dict[Hashable, Any] = {}
Result = TypeVar("Result")


def once(key: str | None, details: Hashable, find: Callable[[], Result]) -> Result:
    """Return a result that is found once for a task and the code of VMAS that is in memory.

    Args:
        key: of the task (``task_key``); without one the result is found each time.
        details: what the result depends on beside the task.
        find: returns the result; an exception is not kept.
    """
    if key is None:
        return find()
    known = (key, details, simulator_in_memory())
    if known not in _results:
        _results[known] = find()
    return _results[known]


def forget() -> None:
    """Forget all results of this process."""
    _results.clear()


def simulator_in_memory() -> str:
    """Return a hash of VMAS's simulator as it is loaded, with all that was put in its place."""
    modules = sorted(name for name in sys.modules if name.startswith(SIMULATOR))
    texts = [f"{name} {part}" for name in modules for part in _texts(vars(sys.modules[name]))]
    return digest("\n".join([str(torch.get_default_dtype()), *texts]).encode())


def _texts(names: Mapping[str, Any]) -> list[str]:
    """Return the texts of the functions, classes and numbers of a module or a class."""
    return [
        f"{name} {_text(value)}"
        for name, value in sorted(names.items())
        if name[:2] != "__" or isinstance(value, types.FunctionType)
    ]


def _text(value: Any) -> str:
    if isinstance(value, PRIMITIVES):
        return repr(value)
    parts = [type(value).__qualname__]
    if isinstance(value, types.FunctionType):
        parts += [code_digest(value.__code__), f"{value.__defaults__} {value.__kwdefaults__}"]
    if isinstance(value, type) and value.__module__.startswith(SIMULATOR):
        parts += _texts(vars(value))
    inside = [getattr(value, name, None) for name in ("fget", "fset", "__func__", "__wrapped__")]
    return "\n".join([*parts, *(_text(x) for x in inside if x is not None)])
