"""Where a VMAS simulator keeps its state: all that hangs on it, by path.

VMAS has no list of its state. A scenario may keep tensors in attributes of its own, of entities,
controllers, sensors or joints, in lists, dictionaries, closures and distributions. ``walk`` finds
them all; ``find_state`` runs the simulator and keeps what steps and resets write.
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
DRAWING = ("render", "viewer", "visible_display", "headless", "text_lines", "_seed")


@dataclass(frozen=True)
class Slot:
    """One place that holds a tensor, a number or an entity."""

    holder: MutableMapping | MutableSequence
    key: Any
    value: Any

    def set(self, value: Any) -> None:
        """Put another value there."""
        self.holder[self.key] = value


@dataclass
class Memory:
    """What hangs on a simulator: tensors by path, and everything else that can be compared."""

    slots: dict[str, Slot] = field(default_factory=dict)
    floats: dict[str, Slot] = field(default_factory=dict)
    counts: dict[str, Slot] = field(default_factory=dict)  # whole numbers and booleans
    entities: dict[str, Slot] = field(default_factory=dict)  # places that refer to one
    fixed: dict[str, Tensor] = field(default_factory=dict)  # in tuples, closures and partials
    # Paths of primitives, lengths of lists ("#") and names of entities referred to ("@").
    values: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by path."""
        return {path: slot.value for path, slot in self.slots.items()} | self.fixed


def walk(simulator: Environment) -> Memory:
    """Return all that hangs on a simulator; an entity has one path, however it is reached."""
    memory, seen, kept = Memory(), set(), []

    def visit(thing: Any, path: str, holder: Any, key: Any) -> None:
        if isinstance(thing, Tensor):
            if holder is None:
                memory.fixed[path] = thing
            else:
                memory.slots[path] = Slot(holder, key, thing)
            return
        if isinstance(thing, PRIMITIVES):
            memory.values[path] = thing
            if isinstance(thing, (float, int)) and holder is not None:
                kind = memory.floats if isinstance(thing, float) else memory.counts
                kind[path] = Slot(holder, key, thing)
            return
        if isinstance(thing, OPAQUE) or _is_foreign(thing):
            return
        entity = entity_name(thing)
        if entity is not None:
            memory.values[f"{path}@"] = entity
            if holder is not None:
                memory.entities[path] = Slot(holder, key, thing)
            path = f"<{entity}>"
        if id(thing) in seen:
            return
        seen.add(id(thing))
        kept.append(thing)  # or its id could be given anew
        if isinstance(thing, (list, tuple, set, frozenset, deque)):
            memory.values[f"{path}#"] = len(thing)
        for name, child, place, at in children(thing):
            visit(child, path + name, place, at)

    visit(simulator, "env", None, None)
    return memory


def _is_foreign(thing: Any) -> bool:
    module = type(thing).__module__ or ""
    if type(thing) in (list, tuple, set, frozenset, dict) or isinstance(thing, _FOLLOWED):
        return False
    if module.startswith("torch"):
        return not module.startswith("torch.distributions")
    return module.split(".")[0] in FOREIGN


_FOLLOWED = (deque, types.MethodType, types.FunctionType, partial)


def entity_name(thing: Any) -> str | None:
    """Return the name of a VMAS entity, None of anything else."""
    name = getattr(thing, "_name", None)
    return name if isinstance(name, str) and hasattr(thing, "_state") else None


def children(thing: Any) -> list[tuple[str, Any, Any, Any]]:
    """Return what hangs on one thing: (path behind it, child, what holds the child, key in it)."""
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
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _key_name(key: Any) -> str:
    if isinstance(key, PRIMITIVES):
        return str(key)
    if isinstance(key, (tuple, list, frozenset)):
        return ",".join(_key_name(part) for part in key)
    return entity_name(key) or type(key).__name__


def is_written(now: Tensor, before: tuple[Tensor, int] | None) -> bool:
    """Say whether a place holds another tensor than before, or one written since that version."""
    return before is None or before[0] is not now or before[1] != now._version


def overlapping(memory: Memory, paths: Iterable[str]) -> set[str]:
    """Return the paths of tensors that are views of the memory of others among them."""
    seen: dict[int, tuple[str, Tensor]] = {}
    found = set()
    for path in paths:
        tensor = memory.slots[path].value
        other, first = seen.setdefault(tensor.untyped_storage().data_ptr(), (path, tensor))
        if first is not tensor and tensor.numel():
            found |= {path, other}
    return found


def differing(a: Memory, b: Memory) -> set[str]:
    """Return the paths of Python values that differ, but for what is only drawn."""
    paths = {p for p in a.values.keys() | b.values.keys() if a.values.get(p) != b.values.get(p)}
    return {p for p in paths if not any(word in p for word in DRAWING)}
