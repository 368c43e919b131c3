"""Copies of scenarios: each simulation keeps its state in a scenario of its own.

``deepcopy`` shares functions, and fails at locks, modules and files. A function that a scenario
holds may read and change the scenario, or a variable of its own, through its closure: it gets a
closure of copies. Locks and modules are shared. A file that is read is opened again at the same
place; one that is written is shared.
"""

import gc
import io
import logging
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from types import CellType, CodeType, FrameType, FunctionType, GeneratorType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.compiled.trace.own_code import is_own_module, packages_of
from qmix_trl.errors import ConfigError, one_line

SHARED = (ModuleType, type(threading.Lock()), type(threading.RLock()))
# Parts below these are never copied.
WITHOUT_PARTS = (
    *(type, ModuleType, CodeType, FrameType, GeneratorType),
    *(io.IOBase, logging.Logger, Tensor, np.ndarray),
)


def copied(scenario: BaseScenario) -> BaseScenario:
    """Return a copy of a scenario that shares no state with it.

    Raises:
        ConfigError: if an attribute cannot be copied; it names the attribute.
    """
    memo: dict[int, Any] = {}
    try:
        functions = _prepare(scenario, memo)
        copy = deepcopy(scenario, memo)
        for function in functions:
            _fill(function, memo[id(function)], memo)
        return copy
    except Exception as error:  # a class may raise anything where it is copied
        name, cls = _uncopied(scenario, memo), type(scenario).__name__
        raise ConfigError(
            f"env.scenario: attribute {name!r} of {cls} cannot be copied: {one_line(error)}; give "
            f"the class {cls} itself, of which each simulation makes an instance"
        ) from error


def _prepare(scenario: BaseScenario, memo: dict[int, Any]) -> list[FunctionType]:
    """Add copies of the parts that ``deepcopy`` shares or fails at to its memo.

    Args:
        scenario: the scenario to copy.
        memo: of ``deepcopy``; copies of functions are without contents.

    Returns:
        the functions whose copies have to be filled.
    """
    packages, functions = packages_of(scenario), []
    cells = {id(cell): cell for cell in _cells_of_methods(scenario)}  # cells of copies, by id
    for part in _parts(scenario):
        if isinstance(part, SHARED):
            memo[id(part)] = part
        elif isinstance(part, io.IOBase) and not isinstance(part, io.StringIO | io.BytesIO):
            memo[id(part)] = _reopened(part)
        elif isinstance(part, FunctionType) and is_own_module(part.__module__ or "", packages):
            closure = tuple(
                cells.setdefault(id(cell), CellType()) for cell in part.__closure__ or ()
            )
            code, known = part.__code__, part.__globals__
            memo[id(part)] = FunctionType(code, known, part.__name__, None, closure or None)
            functions.append(part)
    return functions


def _cells_of_methods(scenario: BaseScenario) -> Iterator[CellType]:
    """Yield the closures' variables of a class's methods, which all instances share."""
    for cls in type(scenario).__mro__:
        for member in vars(cls).values():
            yield from getattr(member, "__closure__", None) or ()


def _parts(scenario: BaseScenario) -> Iterator[Any]:
    """Yield everything that hangs on a scenario's attributes, each part once."""
    seen: dict[int, Any] = {}
    waiting = [scenario]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield part
        if isinstance(part, FunctionType):
            waiting += [*(part.__closure__ or ()), part.__defaults__, part.__kwdefaults__]
            waiting += part.__dict__.values()
        elif not (isinstance(part, WITHOUT_PARTS) or hasattr(type(part), "__deepcopy__")):
            waiting += gc.get_referents(part)


def _reopened(file: io.IOBase) -> io.IOBase:
    """Return a file that reads on from the same place; files that are written are shared.

    A file that is both read and written has no copy: ``deepcopy`` fails at it.
    """
    if file.closed or not file.readable() or file is sys.stdin:
        return file
    name, mode = getattr(file, "name", None), getattr(file, "mode", "")
    if not isinstance(name, str) or file.writable() or not file.seekable():
        return deepcopy(file)
    text = {"encoding": file.encoding, "newline": None} if hasattr(file, "encoding") else {}
    again = open(name, mode, **text)  # noqa: SIM115 - as long open as the scenario's own
    again.seek(file.tell())
    return again


def _fill(function: FunctionType, copy: FunctionType, memo: dict[int, Any]) -> None:
    """Give a function's copy copies of all that the function holds."""
    for cell, new in zip(function.__closure__ or (), copy.__closure__ or (), strict=True):
        if _is_filled(cell) and not _is_filled(new):
            new.cell_contents = deepcopy(cell.cell_contents, memo)
    for name in ("__defaults__", "__kwdefaults__"):
        setattr(copy, name, deepcopy(getattr(function, name), memo))
    for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
        setattr(copy, name, getattr(function, name))
    copy.__dict__.update(deepcopy(function.__dict__, memo))


def _is_filled(cell: CellType) -> bool:
    """Say whether a closure's variable has a value."""
    try:
        return cell.cell_contents is cell or True
    except ValueError:
        return False


def _uncopied(scenario: BaseScenario, memo: dict[int, Any]) -> str:
    """Return the name of the first attribute that cannot be copied."""
    for name, value in vars(scenario).items():
        try:
            deepcopy(value, dict(memo))
        except Exception:  # a class may raise anything where it is copied
            return name
    return "__dict__"
