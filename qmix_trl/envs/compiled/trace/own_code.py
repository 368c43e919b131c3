"""The code and the data that a scenario brings: everything outside of the installed libraries."""

import dis
import site
import sys
import sysconfig
import types
from functools import cache
from pathlib import Path
from typing import Any

from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.compiled.trace.leaves import digest
from qmix_trl.envs.user_code import line_at

# Their objects hold a simulation's state only where ``walk`` says so.
LIBRARIES = frozenset(sys.stdlib_module_names) - {"__main__"} | {
    "gym",
    "gymnasium",
    "numpy",
    "pyglet",
    "qmix_trl",
    "tensordict",
    "torch",
    "torchrl",
    "vmas",
}

VMAS_SCENARIOS = "vmas.scenarios."  # modules that are read as a user's: a scenario may extend them
WRITES = ("STORE_", "DELETE_")  # of instructions


@cache
def library_folders() -> tuple[Path, ...]:
    """Return the folders of the standard library and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_path(name) for name in names}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(folder) for folder in folders)


def packages_of(scenario: BaseScenario) -> frozenset[str]:
    """Return the top-level packages of a scenario's classes, but for VMAS, wherever they are."""
    own = [cls for cls in type(scenario).__mro__ if issubclass(cls, BaseScenario)]
    return frozenset(cls.__module__.split(".")[0] for cls in own) - {"vmas"}


@cache
def is_own_module(name: Any, packages: frozenset[str]) -> bool:
    """Return whether a module is of the user's code.

    Args:
        name: of the module. VMAS loads its own scenarios under the empty name. It is no text for
            some classes of extensions, such as Cython's metaclass.
        packages: top-level packages that count as the user's wherever they are.
    """
    if not isinstance(name, str):
        return False
    top = name.split(".")[0]
    if top in packages or name.startswith(VMAS_SCENARIOS):
        return True
    is_of_cython = top.startswith("_cython_")  # where extensions share their types, without a file
    return not (top in LIBRARIES or is_of_cython or _is_installed(top) or _is_installed(name))


@cache
def _is_installed(name: str) -> bool:
    """Return whether a module's file is in a folder of libraries."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and any(f in Path(file).parents for f in library_folders())


@cache
def names_in(code: types.CodeType) -> frozenset[str]:
    """Return the globals and attributes that a function's code and nested functions read."""
    read = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opcode in dis.hasname and not instruction.opname.startswith(WRITES)
    }
    nested = [names_in(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(read).union(*nested)


@cache
def texts_in(code: types.CodeType) -> frozenset[str]:
    """Return the texts among the constants of a function: they may be names of attributes."""
    found: set[str] = set()
    waiting: list[Any] = list(code.co_consts)
    while waiting:
        const = waiting.pop()
        if isinstance(const, str):
            found.add(const)
        elif isinstance(const, tuple | frozenset):
            waiting.extend(const)
    return frozenset(found)


@cache
def _names_of_modules(code: types.CodeType) -> frozenset[str]:
    """Return the names of modules in a function: in its import statements, and all its texts.

    The names of attributes and keywords do not: they are equal to a module's by chance.
    """
    found = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("IMPORT_NAME", "IMPORT_FROM")
    }
    found.update(const for const in code.co_consts if isinstance(const, str))
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(found).union(*map(_names_of_modules, inner))


def loaded_modules(function: types.FunctionType) -> list[types.ModuleType]:
    """Return the loaded modules that a function may import when it runs.

    Of a relative import the name counts below the function's package and each package around it.
    """
    above = function.__globals__.get("__package__") or ""
    packages = [".".join(above.split(".")[:n]) for n in range(1, above.count(".") + 2)]
    names = sorted({name.lstrip(".") for name in _names_of_modules(function.__code__)})
    found = [
        sys.modules.get(x) for name in names for x in (name, *(f"{p}.{name}" for p in packages))
    ]
    return [module for module in found if isinstance(module, types.ModuleType)]


@cache
def code_digest(code: types.CodeType) -> str:
    """Return a hash of a function's code with its constants, without the names of files.

    It is the same in every process, unlike ``marshal``: that depends on the order of sets of
    strings, and on which constants other code shares.
    """
    return digest(repr(_code_parts(code)).encode())


def _code_parts(code: types.CodeType) -> tuple:
    sizes = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    handlers = getattr(code, "co_exceptiontable", b"")  # from Python 3.11 on
    return (sizes, names, code.co_code, handlers, *map(_constant, code.co_consts))


def _constant(value: Any) -> Any:
    """Return a constant of code as values whose text is the same in every process."""
    if isinstance(value, types.CodeType):
        return _code_parts(value)
    if isinstance(value, tuple):
        return ("tuple", *map(_constant, value))
    if isinstance(value, frozenset):
        return ("frozenset", *sorted(repr(_constant(item)) for item in value))
    return value


def referenced_globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals that a function's code names, but for names with two underscores."""
    names = sorted(names_in(function.__code__) & function.__globals__.keys())
    return {name: function.__globals__[name] for name in names if not name.startswith("__")}


def module_data(module: types.ModuleType) -> dict[str, Any]:
    """Return the globals of a module, but for names with two underscores."""
    return {k: v for k, v in sorted(vars(module).items()) if not k.startswith("__")}


def describe_line(frame: types.FrameType) -> str:
    """Return file, line number and text of the line that a frame is at."""
    return line_at(frame, frame.f_lineno)
