"""The files and installed packages that a scenario's code comes from.

The files are followed through their import statements, which may stand in functions and need not
have run yet.
"""

import ast
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from qmix_trl.envs.compiled.trace.leaves import digest
from qmix_trl.envs.compiled.trace.own_code import LIBRARIES, is_own_module, library_folders

VMAS_SCENARIOS = "vmas.scenarios"  # their files count as the user's: they may be edited


@dataclass
class Sources:
    """The user's files and the libraries that they import.

    Attributes:
        packages: top-level packages that count as the user's wherever they are.
        files: their contents, by path.
        libraries: top-level names of installed packages.
    """

    packages: frozenset[str]
    files: dict[Path, bytes] = field(default_factory=dict)
    libraries: set[str] = field(default_factory=set)

    def add_objects(self, things: Iterable[Any]) -> None:
        """Add the files of functions, classes and modules, and all files that these import."""
        for thing in things:
            module = _module_name(thing)
            if module is not None and is_own_module(module, self.packages):
                self.add_file(_file_of(thing))
                if module in sys.modules:
                    self.add_module(module)

    def add_file(self, path: Path | None) -> None:
        """Add a file and all files that it imports; nothing if it cannot be read."""
        if path is None or path in self.files:
            return
        try:
            self.files[path] = path.read_bytes()
        except OSError:
            return  # code that was typed in, or is in an archive: its code objects are in the key
        for name, level in imports_of(self.files[path]):
            if level == 0:
                self.add_module(name)
            elif level <= len(path.parents):
                base = path.parents[level - 1]
                for part in _prefixes(name):
                    self.add_file(_at(base.joinpath(*part.split("."))))

    def add_module(self, name: str) -> None:
        """Add the files of a module and of the packages around it, or the library's name."""
        top = name.partition(".")[0]
        for part in _prefixes(name):
            path = locate(part)
            if path is None:
                continue
            of_vmas = part.startswith(VMAS_SCENARIOS)
            if top in self.packages or of_vmas or (top not in LIBRARIES and not _in_library(path)):
                self.add_file(path)
            elif top not in sys.stdlib_module_names and top != "qmix_trl":
                self.libraries.add(top)

    def hashes(self) -> list[list[str]]:
        """Return names and hashes of all files, wherever they are."""
        return sorted([path.name, digest(content)] for path, content in self.files.items())

    def versions(self) -> list[list[str]]:
        """Return the names and versions of all libraries."""
        return [[name, library_version(name)] for name in sorted(self.libraries)]


def _module_name(thing: Any) -> str | None:
    """Return the name of the module of a function or class, or of a module; None otherwise."""
    if isinstance(thing, types.FunctionType):
        return thing.__globals__.get("__name__", "")
    if isinstance(thing, types.ModuleType):
        return thing.__name__
    return thing.__module__ if isinstance(thing, type) else None


def _file_of(thing: Any) -> Path | None:
    """Return the file of a function, class or module."""
    if isinstance(thing, types.FunctionType):
        return Path(thing.__code__.co_filename)
    module = sys.modules.get(thing.__module__) if isinstance(thing, type) else thing
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


@cache
def imports_of(content: bytes) -> tuple[tuple[str, int], ...]:
    """Return the modules that a file may import: names, and levels of relative imports.

    A name that is imported from a package may be a module, too.
    """
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # no Python
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = f"{node.module}." if node.module else ""
            found += [(f"{module}{alias.name}", node.level) for alias in node.names]
    return tuple(found)


def _prefixes(name: str) -> list[str]:
    """Return a dotted name and all packages around it, outermost first."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _at(path: Path) -> Path | None:
    """Return the file of a module at a path without suffix."""
    files = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def locate(name: str) -> Path | None:
    """Return the file of a module, without importing anything; None if it has none."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file) if file else None
    spec = _spec(name)
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _spec(name: str) -> ModuleSpec | None:
    """Return the specification of a module that is not loaded; None if there is none."""
    package = name.rpartition(".")[0]
    folders = sys.path
    if package in sys.modules:
        folders = getattr(sys.modules[package], "__path__", ())
    elif package:
        around = _spec(package)
        folders = (around.submodule_search_locations if around is not None else None) or ()
    return PathFinder.find_spec(name, list(folders))


def _in_library(path: Path) -> bool:
    return any(folder in path.parents for folder in library_folders())


def library_version(name: str) -> str:
    """Return the version of an installed package by its import name, or a hash of its file."""
    try:
        return version(name)
    except PackageNotFoundError:
        pass
    # Slow: it reads the lists of files of all distributions.
    distributions = packages_distributions().get(name, [])
    path = locate(name)
    file = [digest(path.read_bytes())] if path is not None and not distributions else []
    return " ".join([*sorted(f"{d} {version(d)}" for d in set(distributions)), *file])
