"""Copies of everything that changes in a VMAS simulator, and their restoration."""

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from qmix_trl.envs.compiled.trace.walk import overlapping, walk


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
