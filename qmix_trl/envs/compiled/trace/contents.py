"""All values reachable from a simulator, by path, and how two such records differ."""

import re
from collections.abc import Callable, Iterable, MutableMapping, MutableSequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

# The paths of VMAS's values that only rendering uses.
RENDERING = re.compile(r"(env\.(viewer|visible_display|headless|text_lines)|<[^>]*>\._render)\b")


@dataclass(frozen=True)
class Slot:
    """A place that holds a tensor, a number or an entity, and can hold another one."""

    holder: MutableMapping | MutableSequence
    key: Any
    value: Any

    def set(self, value: Any) -> None:
        """Put another value into the place."""
        self.holder[self.key] = value


class Outside(dict):
    """A module, a class or a closure's variable, as a mapping that can only be written to.

    Args:
        put: writes a value under a name.
    """

    def __init__(self, put: Callable[[str, Any], None]) -> None:
        super().__init__()
        self.put = put

    def __setitem__(self, name: str, value: Any) -> None:
        self.put(name, value)


@dataclass
class Contents:
    """All values reachable from a simulator, by path.

    Attributes:
        slots: places of tensors.
        floats: places of Python floats.
        counts: places of integers and booleans.
        entities: places that refer to an entity of the world.
        unsettable: tensors in tuples, closures, classes and modules, where no other can be put.
        arrays: arrays of NumPy.
        values: values to compare: primitives, texts of arrays and other leaves, lengths of
            containers (path + "#"), names of entities and first paths of other objects that are
            referred to (path + "@"), and types of objects (path + "!").
        unwatched: the types of objects whose state cannot be seen.
        places: all places of tensors and primitives, also in classes, modules and closures.
        objects: all other values, at the first path of each.
    """

    slots: dict[str, Slot] = field(default_factory=dict)
    floats: dict[str, Slot] = field(default_factory=dict)
    counts: dict[str, Slot] = field(default_factory=dict)
    entities: dict[str, Slot] = field(default_factory=dict)
    unsettable: dict[str, Tensor] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    unwatched: dict[str, str] = field(default_factory=dict)
    places: dict[str, Slot] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by path."""
        return {path: slot.value for path, slot in self.slots.items()} | self.unsettable


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
    """Return the paths of values that differ, except values for rendering."""
    before, now = a.values, b.values
    paths = {p for p in before.keys() | now.keys() if not _is_equal(before.get(p), now.get(p))}
    return {path for path in paths if not is_rendering(path)}


def _is_equal(a: Any, b: Any) -> bool:
    """Say whether two values are equal; NaN equals NaN."""
    return a == b or (a != a and b != b)


def is_rendering(path: str) -> bool:
    """Say whether only VMAS's rendering or its spaces use the value at a path."""
    return RENDERING.match(path) is not None
