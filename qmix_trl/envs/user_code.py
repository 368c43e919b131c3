"""Code of the user's in files and modules, and the lines at which it fails."""

import importlib
import importlib.util
import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from qmix_trl.errors import ConfigError, nearest

PREFIX = "qmix_trl_custom_"  # of the names of modules that are files
RELATIVE = re.compile(r"^\s*from\s+\.", re.MULTILINE)  # an import of the file's own package
_FOLDERS: list[str] = []  # of files that were loaded, the last one first


def split_name(spec: str) -> tuple[str, str]:
    """Return a file or a module, and the name in it, empty if there is none.

    Args:
        spec: "path/to/file.py", "path/to/file.py:name" or "module:name".
    """
    if spec.endswith(".py"):
        return spec, ""
    where, _, name = spec.rpartition(":")
    return where, name


def name_of(function: Callable[..., Any]) -> str:
    """Return "module:function" of a function or a class."""
    name = getattr(function, "__name__", type(function).__name__)
    return f"{function.__module__}:{name}"


def load_module(where: str) -> ModuleType:
    """Return a module by the path of its file or by its name."""
    return load_file(where) if where.endswith(".py") else importlib.import_module(where)


def load_function(make: str, kind: str = "function") -> Any:
    """Return a function, or a class, of a file or a module.

    Args:
        make: "path/to/file.py:function" or "module:function".
        kind: of the thing, as an error calls it.

    Raises:
        ConfigError: if there is no such function.
    """
    where, name = split_name(make)
    module = load_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(f"expected a {kind} {name!r}, got none{nearest(name, known)}")
    return function


@cache
def load_file(path: str) -> ModuleType:
    """Return the module of a file, which can import files beside it and its own package.

    A file with a relative import (``from . import x``) is a module of its package.
    """
    file = Path(path).resolve()
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    for folder in dict.fromkeys((root, file.parent)):
        _put_first(str(folder))
    if len(parts) > 1 and RELATIVE.search(file.read_text(encoding="utf-8")):
        return importlib.import_module(".".join(parts))
    name = _free_name(file)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _put_first(folder: str) -> None:
    """Put a folder before the other folders of loaded files, where imports look.

    Installed packages stay before all of them. Modules of the same names from the other folders
    are forgotten: their importers have them.
    """
    others = [other for other in _FOLDERS if other != folder]
    if folder in _FOLDERS or folder not in sys.path:
        sys.path[:] = [path for path in sys.path if path not in _FOLDERS]
        _FOLDERS[:] = [folder, *others]
        sys.path += _FOLDERS
    names = {path.stem for path in Path(folder).iterdir() if path.suffix == ".py" or path.is_dir()}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in names and file is not None:
            around = {str(parent) for parent in Path(file).parents}
            if folder not in around and not around.isdisjoint(others):
                del sys.modules[name]


def _free_name(file: Path) -> str:
    """Return a name for the module of a file.

    It is not the file's own: a file may be called as a package, such as pettingzoo.py.
    """
    name, i = f"{PREFIX}{file.stem}", 1
    while name in sys.modules:
        i += 1
        name = f"{PREFIX}{file.stem}_{i}"
    return name


def failing_line(error: Exception, where: str) -> str:
    """Return file, number and text of the line that raised an error, in the user's code if any.

    Args:
        error: as raised.
        where: the user's file or module.
    """
    return own_line(error, where) or line_at(*frames_of(error)[-1])


def own_line(error: Exception, where: str) -> str | None:
    """Return the line of the user's code that raised an error; None if it is of other code.

    Args:
        error: as raised.
        where: the user's file, the files beside which count; or a module, with its package.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return line_of(error.filename, error.lineno)
    frames = frames_of(error)
    if where.endswith(".py"):
        folder = Path(where).resolve().parent
        own = [at for at in frames if folder in Path(at[0].f_code.co_filename).parents]
    else:
        package = where.split(".")[0]
        own = [at for at in frames if at[0].f_globals.get("__name__", "").split(".")[0] == package]
    return line_at(*own[-1]) if own else None


def frames_of(error: Exception) -> list[tuple[FrameType, int]]:
    """Return the frames that an error went through with their line numbers; the last raised it."""
    return list(traceback.walk_tb(error.__traceback__))


def line_of_definition(thing: Any) -> str:
    """Return the line at which a class or function is defined; its name if it is in no file."""
    try:
        number = inspect.getsourcelines(thing)[1]
        return line_of(inspect.getsourcefile(thing) or "", number)
    except (OSError, TypeError):
        return thing.__qualname__


def line_at(frame: FrameType, number: int) -> str:
    """Return a line of a frame's file, as ``line_of`` does."""
    return line_of(frame.f_code.co_filename, number)


def line_of(file: str, number: int) -> str:
    """Return a file's name, and number and text of one of its lines."""
    return f"{Path(file).name}:{number} ({linecache.getline(file, number).strip()})"
