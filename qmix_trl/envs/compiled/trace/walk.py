"""All values reachable from a VMAS simulator, by path.

VMAS has no list of its state. A scenario may keep tensors in its own attributes, in those of
entities, controllers, sensors or joints, in lists, dictionaries, closures and distributions.
``walk`` follows all of them.
"""

import types
from collections import deque
from collections.abc import Iterable, MutableMapping, MutableSequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

PRIMITIVES = (int, float, str, bool, type(None), bytes, complex)
OPAQUE = (
    type,
    types.ModuleType,
    torch.device,
    torch.dtype,
    np.ndarray,
    np.generic,
    torch.Generator,
)
# Packages whose objects hold no state of a simulation.
FOREIGN = {"gym", "gymnasium", "numpy", "threading", "pyglet", "builtins", "logging", "random"}
CONTAINERS = (list, tuple, set, frozenset, dict)
FOLLOWED = (deque, types.MethodType, types.FunctionType, partial)  # though of foreign packages
# Words in the paths of values that only rendering and seeding use.
RENDERING = ("render", "viewer", "visible_display", "headless", "text_lines", "_seed")


@dataclass(frozen=True)
class Slot:
    """A place that holds a tensor, a number or an entity, and can hold another one."""

    holder: MutableMapping | MutableSequence
    key: Any
    value: Any

    def set(self, value: Any) -> None:
        """Put another value into the place."""
        self.holder[self.key] = value


@dataclass
class Contents:
    """All values reachable from a simulator, by path.

    Attributes:
        slots: places of tensors.
        floats: places of Python floats.
        counts: places of integers and booleans.
        entities: places that refer to an entity of the world.
        unsettable: tensors in tuples, closures and partials, where no other can be put.
        values: Python values to compare: primitives, lengths of lists (path + "#") and names of
            entities referred to (path + "@").
    """

    slots: dict[str, Slot] = field(default_factory=dict)
    floats: dict[str, Slot] = field(default_factory=dict)
    counts: dict[str, Slot] = field(default_factory=dict)
    entities: dict[str, Slot] = field(default_factory=dict)
    unsettable: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by path."""
        return {path: slot.value for path, slot in self.slots.items()} | self.unsettable


def walk(simulator: Environment) -> Contents:
    """Return everything reachable from a simulator; each entity has one path."""
    walker = _Walker()
    walker.visit(simulator, "env", None, None)
    return walker.contents


class _Walker:
    """Fills the contents of a simulator; visits each object once."""

    def __init__(self) -> None:
        self.contents = Contents()
        self._seen: dict[int, Any] = {}  # objects by id: held, as a freed id can be reused

    def visit(self, thing: Any, path: str, holder: Any, key: Any) -> None:
        """Record a value that ``holder[key]`` holds, and all values below it.

        Args:
            thing: the value.
            path: its path.
            holder: the list or dictionary that holds it; None if it cannot be replaced there.
            key: the key in the holder.
        """
        if isinstance(thing, Tensor):
            self._add_tensor(thing, path, holder, key)
        elif isinstance(thing, PRIMITIVES):
            self._add_primitive(thing, path, holder, key)
        elif not (isinstance(thing, OPAQUE) or _is_foreign(thing)):
            name = entity_name(thing)
            if name is not None:
                self._add_entity(thing, name, path, holder, key)
                path = f"<{name}>"
            self._visit_children(thing, path)

    def _add_tensor(self, tensor: Tensor, path: str, holder: Any, key: Any) -> None:
        if holder is None:
            self.contents.unsettable[path] = tensor
        else:
            self.contents.slots[path] = Slot(holder, key, tensor)

    def _add_primitive(self, value: Any, path: str, holder: Any, key: Any) -> None:
        self.contents.values[path] = value
        if holder is None:
            return
        if isinstance(value, float):
            self.contents.floats[path] = Slot(holder, key, value)
        elif isinstance(value, int):
            self.contents.counts[path] = Slot(holder, key, value)

    def _add_entity(self, entity: Any, name: str, path: str, holder: Any, key: Any) -> None:
        self.contents.values[f"{path}@"] = name
        if holder is not None:
            self.contents.entities[path] = Slot(holder, key, entity)

    def _visit_children(self, thing: Any, path: str) -> None:
        if id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        if isinstance(thing, (list, tuple, set, frozenset, deque)):
            self.contents.values[f"{path}#"] = len(thing)
        for suffix, child, holder, key in children(thing):
            self.visit(child, path + suffix, holder, key)


def _is_foreign(thing: Any) -> bool:
    """Say whether an object's class belongs to a package that holds no state of a simulation."""
    if type(thing) in CONTAINERS or isinstance(thing, FOLLOWED):
        return False
    module = type(thing).__module__ or ""
    if module.startswith("torch"):
        return not module.startswith("torch.distributions")
    return module.split(".")[0] in FOREIGN


def entity_name(thing: Any) -> str | None:
    """Return the name of a VMAS entity, None for anything else."""
    name = getattr(thing, "_name", None)
    return name if isinstance(name, str) and hasattr(thing, "_state") else None


def children(thing: Any) -> list[tuple[str, Any, Any, Any]]:
    """Return the values that an object holds.

    Returns:
        (suffix of the path, child, holder, key) for each child; holder and key are None where
        no other value can be put.
    """
    if isinstance(thing, (list, deque)):
        return [(f"[{i}]", child, thing, i) for i, child in enumerate(thing)]
    if isinstance(thing, (tuple, set, frozenset)):
        return [(f"({i})", child, None, None) for i, child in enumerate(thing)]
    if isinstance(thing, dict):
        return [(f"[{_key_name(k)}]", child, thing, k) for k, child in list(thing.items())]
    if isinstance(thing, types.MethodType):
        return [(".self", thing.__self__, None, None)]
    if isinstance(thing, partial):
        return [(f".args[{i}]", child, None, None) for i, child in enumerate(thing.args)]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        return [(f".closure[{i}]", child, None, None) for i, child in enumerate(cells)]
    attributes = getattr(thing, "__dict__", {})
    return [(f".{k}", child, attributes, k) for k, child in sorted(attributes.items())]


def _is_filled(cell: types.CellType) -> bool:
    """Say whether a closure's variable has a value other than the cell itself."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _key_name(key: Any) -> str:
    """Return a dictionary's key as a part of a path."""
    if isinstance(key, PRIMITIVES):
        return str(key)
    if isinstance(key, (tuple, list, frozenset)):
        return ",".join(_key_name(part) for part in key)
    return entity_name(key) or type(key).__name__


def is_written(now: Tensor, before: tuple[Tensor, int] | None) -> bool:
    """Say whether a path holds another tensor than before, or one that was written since.

    Args:
        now: the tensor at the path.
        before: the earlier tensor and its version then; None if the path is new.
    """
    return before is None or before[0] is not now or before[1] != now._version


def overlapping(contents: Contents, paths: Iterable[str]) -> set[str]:
    """Return the paths whose tensors share storage with another tensor among them."""
    seen: dict[int, tuple[str, Tensor]] = {}
    found = set()
    for path in paths:
        tensor = contents.slots[path].value
        other, first = seen.setdefault(tensor.untyped_storage().data_ptr(), (path, tensor))
        if first is not tensor and tensor.numel():
            found |= {path, other}
    return found


def differing(a: Contents, b: Contents) -> set[str]:
    """Return the paths of Python values that differ, except values for rendering."""
    paths = {p for p in a.values.keys() | b.values.keys() if a.values.get(p) != b.values.get(p)}
    return {p for p in paths if not any(word in p for word in RENDERING)}
