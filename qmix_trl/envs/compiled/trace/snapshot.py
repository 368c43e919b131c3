"""Saving and restoring a VMAS simulator in full, as a dictionary of tensors."""

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from qmix_trl.envs.compiled.trace.walk import overlapping, walk


def snapshot(simulator: Environment) -> dict[str, Tensor]:
    """Return copies of all tensors, numbers and references to entities, by path.

    The suffix of a key tells its kind: "()" a tensor that cannot be replaced, "=" the index of an
    earlier path that holds the same tensor, "@" the index of the entity referred to. Tensors that
    can be replaced, and numbers, have no suffix.
    """
    contents, names = walk(simulator), [e.name for e in simulator.world.entities]
    saved = {path + "()": tensor.clone() for path, tensor in contents.unsettable.items()}
    first: dict[int, int] = {}  # index of the first path, by id of the tensor
    for i, (path, slot) in enumerate(contents.slots.items()):
        if id(slot.value) in first:
            saved[path + "="] = torch.tensor(first[id(slot.value)])
        else:
            first[id(slot.value)] = i
            saved[path] = slot.value.clone()
    for path, slot in (contents.floats | contents.counts).items():
        saved[path] = torch.tensor(slot.value, dtype=_exact_dtype(slot.value))
    for path, slot in contents.entities.items():
        if slot.value.name in names:
            saved[path + "@"] = torch.tensor(names.index(slot.value.name))
    return saved


def _exact_dtype(value: float | int | bool) -> torch.dtype:
    """Return the dtype that holds a Python number exactly."""
    if isinstance(value, bool):
        return torch.bool
    return torch.float64 if isinstance(value, float) else torch.int64


def restore(simulator: Environment, saved: dict[str, Tensor]) -> None:
    """Put a snapshot back into its simulator."""
    contents = walk(simulator)
    for path, tensor in contents.unsettable.items():
        tensor.copy_(saved[path + "()"])
    restored: list[Tensor] = []
    views = overlapping(contents, contents.slots)
    for path, slot in contents.slots.items():
        shared = saved.get(path + "=")
        if shared is not None:
            value = restored[int(shared)]
        elif path in views and slot.value.shape == saved[path].shape:
            value = slot.value.copy_(saved[path])  # in place, so that its views see it
        else:
            value = saved[path].clone()
        slot.set(value)
        restored.append(value)
    for path, slot in (contents.floats | contents.counts).items():
        slot.set(type(slot.value)(saved[path].item()))
    for path, slot in contents.entities.items():
        if path + "@" in saved:
            slot.set(simulator.world.entities[int(saved[path + "@"])])
