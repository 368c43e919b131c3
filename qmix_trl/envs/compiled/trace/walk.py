"""All values reachable from a VMAS simulator, by path.

A path names attributes after dots, and parts that code reads without a name after colons.

VMAS has no list of its state. A scenario may keep it in attributes and slots of any object, in
containers, arrays, closures, default arguments, attributes of classes and globals of modules.
``walk`` follows all of them. An object that it cannot look into is listed as unwatched.
"""

import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.compiled.trace.contents import Contents, Outside, Slot
from qmix_trl.envs.compiled.trace.leaves import HARMLESS, UNKNOWN, leaf_text
from qmix_trl.envs.compiled.trace.own_code import (
    is_own_module,
    loaded_modules,
    module_data,
    names_in,
    packages_of,
    referenced_globals,
)
from qmix_trl.envs.compiled.trace.parts import (
    CONTAINERS,
    PRIMITIVES,
    children,
    class_data,
    described,
    entity_name,
    is_filled,
    plain,
)

DATA = (*PRIMITIVES, *CONTAINERS, dict, Tensor, np.ndarray)  # of libraries that are compared
# VMAS draws no action from its spaces, and a simulation has its own random numbers.
PASSED_OVER = (
    "env.action_space",
    "env.observation_space",
    f"class {Environment.__module__}.{Environment.__qualname__}.vmas_random_state",
)


def walk(simulator: Environment) -> Contents:
    """Return everything reachable from a simulator; each entity has one path."""
    walker = _Walker(packages_of(simulator.scenario))
    for entity in simulator.world.entities:
        walker.visit(entity, f"<{plain(entity.name)}>", None, None)
    walker.visit(simulator, "env", None, None)
    walker.visit_waiting()
    return walker.contents


def walk_scenario(scenario: BaseScenario) -> Contents:
    """Return everything reachable from a scenario that no simulator holds."""
    return walk_from({"scenario": scenario}, packages_of(scenario))


def walk_from(things: Mapping[str, Any], packages: frozenset[str]) -> Contents:
    """Return everything reachable from values by name.

    Args:
        things: the values; their names begin the paths.
        packages: top-level packages that count as the user's code wherever they are.
    """
    walker = _Walker(packages)
    for name, thing in things.items():
        walker.visit(thing, name, None, None)
    walker.visit_waiting()
    return walker.contents


class _Walker:
    """Fills the contents of a simulator; visits each object once.

    Objects wait in a queue, entities first: the path of an object that several others share does
    not depend on references between entities, which resets change. Classes and modules are
    visited at once, and what they hold cannot be replaced: all simulators share it.

    Args:
        packages: top-level packages that count as the user's code wherever they are.
    """

    def __init__(self, packages: frozenset[str]) -> None:
        self.contents = Contents()
        self._packages = packages
        # Objects by id, with their paths: held, as a freed id can be reused.
        self._seen: dict[int, tuple[Any, str]] = {}
        self._waiting: deque[tuple[Any, str]] = deque()
        self._shared: deque[tuple[Any, str]] = deque()
        self._visits_shared = False
        self._libraries: set[type] = set()  # classes of libraries that were visited

    def visit(self, thing: Any, path: str, holder: Any, key: Any) -> None:
        """Record a value that ``holder[key]`` holds, and all values below it.

        Args:
            thing: the value.
            path: its path.
            holder: the list or dictionary that holds it; None if it cannot be replaced there.
            key: the key in the holder.
        """
        if path in PASSED_OVER:
            return
        if isinstance(thing, Tensor):
            self._add_tensor(thing, path, holder, key)
            self._visit_attributes(thing, path)
        elif isinstance(thing, PRIMITIVES):
            self._add_primitive(thing, path, holder, key)
            self._visit_attributes(thing, path)
        elif isinstance(thing, types.ModuleType):
            self.contents.values[f"{path}@"] = f"module {thing.__name__}"
            if self._is_own(thing.__name__):
                self._visit_shared([(thing, f"module {thing.__name__}")], self._enqueue)
        elif isinstance(thing, type):
            self._visit_class(thing, path)
        else:
            self._visit_object(thing, path, holder, key)

    def _visit_attributes(self, thing: Any, path: str) -> None:
        """Visit the attributes that code has put on a tensor, an array or a number."""
        attributes = getattr(thing, "__dict__", None)
        for name, child in sorted((attributes or {}).items()):
            self.visit(child, f"{path}.{name}", attributes, name)

    def _is_own(self, module: str | None) -> bool:
        return is_own_module(module or "", self._packages)

    def _add_tensor(self, tensor: Tensor, path: str, holder: Any, key: Any) -> None:
        self.contents.values[f"{path}!"] = f"tensor {tuple(tensor.shape)} {tensor.dtype}"
        if holder is not None:
            self.contents.places[path] = Slot(holder, key, tensor)
        if holder is None or isinstance(holder, Outside):
            self.contents.unsettable[path] = tensor
        else:
            self.contents.slots[path] = Slot(holder, key, tensor)

    def _add_primitive(self, value: Any, path: str, holder: Any, key: Any) -> None:
        self.contents.values[path] = value
        if holder is None:
            return
        self.contents.places[path] = Slot(holder, key, value)
        if isinstance(holder, Outside):
            return
        if isinstance(value, float):
            self.contents.floats[path] = Slot(holder, key, value)
        elif isinstance(value, int):
            self.contents.counts[path] = Slot(holder, key, value)

    def _visit_class(self, cls: type, path: str) -> None:
        """Record which class is referred to; visit the attributes of the user's classes."""
        name = f"{cls.__module__}.{cls.__qualname__}"
        self.contents.values[f"{path}@"] = f"class {name}"
        own = [base for base in cls.__mro__ if self._is_own(base.__module__)]
        met = [(base, f"class {base.__module__}.{base.__qualname__}") for base in own]
        self._visit_shared(met, self._enqueue)

    def _visit_libraries(self, cls: type) -> None:
        """Visit the data of libraries' classes, which a scenario may change, once."""
        for base in cls.__mro__:
            if base in self._libraries or self._is_own(base.__module__):
                continue
            self._libraries.add(base)
            for name, value in vars(base).items():
                if type(value) in DATA and not name.startswith("__"):
                    path = f"class {base.__module__}.{base.__qualname__}.{name}"
                    self.visit(value, path, None, None)

    def _visit_object(self, thing: Any, path: str, holder: Any, key: Any) -> None:
        text = leaf_text(thing)
        if text is HARMLESS:
            return
        if isinstance(thing, np.ndarray):
            self.contents.arrays[path] = thing
        if text is UNKNOWN:
            self.contents.unwatched[path] = type(thing).__qualname__
        elif text is not None:
            self.contents.values[path] = text
            self.contents.objects[path] = thing
            if isinstance(thing, np.ndarray):
                self._visit_attributes(thing, path)
            return
        if isinstance(thing, enum.Enum):
            self.contents.values[f"{path}@"] = f"{thing}"
            if not self._is_own(type(thing).__module__):
                return
            path = f"enum {type(thing).__module__}.{plain(str(thing))}"
        name = entity_name(thing)
        if name is not None:
            self._add_entity(thing, name, path, holder, key)
            path = f"<{plain(name)}>"
        self._enqueue(thing, path)

    def _add_entity(self, entity: Any, name: str, path: str, holder: Any, key: Any) -> None:
        self.contents.values[f"{path}@"] = name
        if holder is not None and not isinstance(holder, Outside):
            self.contents.entities[path] = Slot(holder, key, entity)

    def _enqueue(self, thing: Any, path: str) -> None:
        """Let an object wait, once."""
        _, first = self._seen.setdefault(id(thing), (thing, path))
        if first is not path:
            if first != path:
                self.contents.values[f"{path}@"] = first
            return
        (self._shared if self._visits_shared else self._waiting).append((thing, path))

    def visit_waiting(self) -> None:
        """Visit the children of the objects that wait, and all values below."""
        while self._waiting:
            thing, path = self._waiting.popleft()
            self.contents.objects[path] = thing
            self.contents.values[f"{path}!"] = described(thing)
            self._visit_libraries(type(thing))
            for suffix, child, holder, key in self._children(thing):
                self.visit(child, path + suffix, holder, key)

    def _visit_shared(
        self, met: Iterable[tuple[Any, str]], visit: Callable[[Any, str], None]
    ) -> None:
        """Visit classes, modules or globals, and all values below, before anything that waits.

        Args:
            met: the classes, modules or globals, with their paths.
            visit: visits one of them, or lets it wait.
        """
        outermost = not self._visits_shared
        self._visits_shared = True
        for thing, path in met:
            visit(thing, path)
        while outermost and self._shared:
            thing, path = self._shared.popleft()
            self.contents.objects[path] = thing
            self.contents.values[f"{path}!"] = described(thing)
            for suffix, child, holder, key in self._children(thing):
                self.visit(child, path + suffix, _outside(holder), key)
        self._visits_shared = not outermost

    def _children(self, thing: Any) -> list[tuple[str, Any, Any, Any]]:
        """Return the values that an object holds.

        Returns:
            (suffix of the path, child, holder, key) for each child; holder and key are None where
            no other value can be put.
        """
        if isinstance(thing, types.FunctionType):
            return self._of_function(thing)
        if isinstance(thing, types.ModuleType):
            holder = Outside(vars(thing).__setitem__)
            return [(f".{k}", child, holder, k) for k, child in module_data(thing).items()]
        if isinstance(thing, type):
            holder = Outside(functools.partial(setattr, thing))
            return [(f".{k}", child, holder, k) for k, child in class_data(thing)]
        own = []
        if self._is_own(type(thing).__module__):
            own = [(":class", type(thing), None, None)]
        return own + children(thing)

    def _of_function(self, function: types.FunctionType) -> list[tuple[str, Any, Any, Any]]:
        """Return the closure, defaults and attributes of a function, and its globals if it is of
        the user's code."""
        found = [
            (
                f":closure[{i}]",
                cell.cell_contents,
                Outside(functools.partial(setattr, cell)),
                "cell_contents",
            )
            for i, cell in enumerate(function.__closure__ or ())
            if is_filled(cell)
        ]
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        found += [(f":default[{i}]", value, None, None) for i, value in enumerate(defaults)]
        attributes = function.__dict__
        found += [(f".{k}", value, attributes, k) for k, value in sorted(attributes.items())]
        home = function.__globals__.get("__name__", "")
        if self._is_own(home):
            holder = Outside(function.__globals__.__setitem__)
            # Under the module's path: all functions see the same global.
            met = referenced_globals(function)
            self._visit_shared(
                [(value, f"module {home}.{name}") for name, value in met.items()],
                lambda value, path: self.visit(value, path, holder, path.rpartition(".")[2]),
            )
            imported = loaded_modules(function)
            by_name = map(sys.modules.get, names_in(function.__code__))  # it may be held elsewhere
            self._visit_named(function, [*met.values(), *imported, *filter(None, by_name)])
            for module in imported:
                self.visit(module, f"module {module.__name__}", None, None)
        return found

    def _visit_named(self, function: types.FunctionType, met: Iterable[Any]) -> None:
        """Visit the data of libraries' modules that a function names, such as ``torch.limit``.

        Args:
            function: of the user's code.
            met: the globals and modules that it names.
        """
        names, waiting, seen = names_in(function.__code__), list(met), set()
        while waiting:
            thing = waiting.pop()
            if isinstance(thing, type):
                self._visit_libraries(thing)
            if not self._is_library(thing) or thing in seen:
                continue
            seen.add(thing)
            for name in sorted(names & vars(thing).keys()):
                value = vars(thing)[name]
                if isinstance(value, types.ModuleType | type):
                    waiting.append(value)
                elif type(value) in DATA:
                    self.visit(value, f"module {thing.__name__}.{name}", None, None)

    def _is_library(self, thing: Any) -> bool:
        return isinstance(thing, types.ModuleType) and not self._is_own(thing.__name__)


def _outside(holder: Any) -> Any:
    """Return a holder whose tensors all simulators share."""
    if holder is None or isinstance(holder, Outside):
        return holder
    if isinstance(holder, types.MappingProxyType):  # of a class, which cannot be set
        return None
    return Outside(holder.__setitem__)
