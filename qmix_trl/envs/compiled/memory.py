"""Where a VMAS simulator keeps its state: all that hangs on it, by path.

VMAS has no list of its state. A scenario may keep tensors in attributes of its own, of entities,
controllers, sensors or joints, in lists, dictionaries, closures and distributions. ``walk`` finds
them all; ``find_state`` runs the simulator and keeps what steps and resets write.
"""

import types
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping, MutableSequence
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
N_PROBES = 8  # resets and steps after which a value that never changed counts as constant


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


@dataclass(frozen=True)
class StatePaths:
    """Which places of a simulator are its state.

    Attributes:
        tensors: paths of tensors that steps or resets write.
        floats: paths of Python floats that resets change, such as masses.
        aliases: path to the path before it that always holds the same tensor.
        choices: paths of other Python values that resets change, such as which landmark is the
            goal; a trace holds for one value of each.
        fleeting: paths of other Python values that steps change.
        unsettable: paths of tensors that are written, but where no other can be put in their
            place: in a tuple or a closure.
    """

    tensors: tuple[str, ...]
    floats: tuple[str, ...]
    aliases: dict[str, str]
    choices: tuple[str, ...]
    fleeting: tuple[str, ...]
    unsettable: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Tensors, then floats."""
        return self.tensors + self.floats

    def read(self, simulator: Environment) -> list[Tensor]:
        """Return the state, a zero where a place is gone."""
        memory = walk(simulator)
        tensors = [memory.slots[p].value if p in memory.slots else None for p in self.tensors]
        tensors = [torch.zeros(()) if t is None else t for t in tensors]
        return tensors + [_as_tensor(memory, path) for path in self.floats]

    def write(self, simulator: Environment, state: list[Tensor]) -> None:
        """Put a state in place; aliases get one tensor again."""
        memory = walk(simulator)
        places = {**memory.floats, **memory.slots}
        by_path = dict(zip(self.all, state, strict=True))
        for path, value in by_path.items():
            if path in places:
                places[path].set(by_path.get(self.aliases.get(path, path), value))

    def copy_into(self, simulator: Environment, state: list[Tensor]) -> None:
        """Copy a state into the tensors that are there, so that views of them see it."""
        memory = walk(simulator)
        for path, value in zip(self.all, state, strict=True):
            if path in memory.floats:
                memory.floats[path].set(value.item())
            elif path in memory.slots:
                slot = memory.slots[path]
                if slot.value.shape == value.shape and 0 not in slot.value.stride():
                    slot.value.copy_(value)
                else:
                    slot.set(value.clone())

    def copy_choices(self, source: Environment, target: Environment) -> None:
        """Give a simulator the Python values that resets of another one have chosen."""
        theirs, ours = walk(source), walk(target)
        entities = {entity.name: entity for entity in target.world.entities}
        for path in self.choices:
            if path.endswith("@") and path[:-1] in ours.entities:
                ours.entities[path[:-1]].set(entities[theirs.values[path]])
            elif path in ours.counts:
                ours.counts[path].set(theirs.values[path])

    def chosen(self, simulator: Environment) -> tuple:
        """Return the values of ``choices``."""
        values = walk(simulator).values
        return tuple(values.get(path) for path in self.choices)


def _as_tensor(memory: Memory, path: str) -> Tensor:
    if path in memory.slots:
        return memory.slots[path].value
    return torch.tensor(memory.values.get(path, 0.0), dtype=torch.float32)


def find_state(simulator: Environment, step: Callable[[], None]) -> StatePaths:
    """Find the state by running: what steps and resets write.

    Args:
        simulator: left after a reset and two steps.
        step: takes one random step of it.
    """
    changed: set[str] = set()

    def run(action: Callable[[], Any], before: Memory) -> Memory:
        versions = {path: (t, t._version) for path, t in before.tensors().items()}
        action()
        after = walk(simulator)
        changed.update(p for p, t in after.tensors().items() if is_written(t, versions.get(p)))
        return after

    by_steps, by_resets = set(), set()
    step()
    memory = walk(simulator)
    kept = []
    for _ in range(N_PROBES):
        reset = run(lambda: simulator.reset(return_observations=False), memory)
        by_resets |= differing(memory, reset)
        stepped = run(step, reset)
        memory = run(step, stepped)
        by_steps |= differing(reset, stepped) | differing(stepped, memory)
        kept += [reset, memory]
    by_resets -= by_steps
    tensors = tuple(path for path in memory.slots if path in changed)
    floats = tuple(p for p in memory.floats if p in by_resets | by_steps)
    return StatePaths(
        tensors=tensors,
        floats=floats,
        aliases=_aliases(tensors, kept),
        choices=tuple(sorted(by_resets - set(floats))),
        fleeting=tuple(sorted(by_steps - set(floats))),
        unsettable=tuple(sorted(changed & memory.fixed.keys())),
    )


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


def _aliases(paths: tuple[str, ...], memories: list[Memory]) -> dict[str, str]:
    """Return which paths hold the tensor of one earlier path in all of the memories."""
    firsts = []
    for memory in memories:
        first: dict[int, str] = {}
        held = {path: memory.slots[path].value for path in paths if path in memory.slots}
        firsts.append({path: first.setdefault(id(t), path) for path, t in held.items()})
    always = {path: {first.get(path, path) for first in firsts} for path in paths}
    return {path: next(iter(of)) for path, of in always.items() if len(of) == 1 and path not in of}


def snapshot(simulator: Environment) -> dict[str, Tensor]:
    """Return copies of all tensors, numbers and references to entities, by path.

    A tensor that several places hold stands under the first; under the others, whose name then
    ends in "=", stands the number of the first.
    """
    memory, names = walk(simulator), [e.name for e in simulator.world.entities]
    kept = {path + "()": tensor.clone() for path, tensor in memory.fixed.items()}
    first: dict[int, int] = {}
    for i, (path, slot) in enumerate(memory.slots.items()):
        if id(slot.value) in first:
            kept[path + "="] = torch.tensor(first[id(slot.value)])
        else:
            first[id(slot.value)] = i
            kept[path] = slot.value.clone()
    for path, slot in (memory.floats | memory.counts).items():
        kept[path] = torch.tensor(slot.value, dtype=_wide(slot.value))
    for path, slot in memory.entities.items():
        if slot.value.name in names:
            kept[path + "@"] = torch.tensor(names.index(slot.value.name))
    return kept


def _wide(value: float | int | bool) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    return torch.float64 if isinstance(value, float) else torch.int64


def restore(simulator: Environment, kept: dict[str, Tensor]) -> None:
    """Put back what ``snapshot`` returned."""
    memory, restored = walk(simulator), []
    for path, tensor in memory.fixed.items():
        tensor.copy_(kept[path + "()"])
    views = overlapping(memory, memory.slots)
    for path, slot in memory.slots.items():
        shared = kept.get(path + "=")
        if shared is None and path in views and slot.value.shape == kept[path].shape:
            slot.value.copy_(kept[path])  # so that the others go on seeing it
            restored.append(slot.value)
            continue
        restored.append(kept[path].clone() if shared is None else restored[int(shared)])
        slot.set(restored[-1])
    for path, slot in (memory.floats | memory.counts).items():
        slot.set(type(slot.value)(kept[path].item()))
    for path, slot in memory.entities.items():
        if path + "@" in kept:
            slot.set(simulator.world.entities[int(kept[path + "@"])])
