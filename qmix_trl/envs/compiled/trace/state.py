"""The state of a VMAS simulator: the values that steps and resets write."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from qmix_trl.envs.compiled.trace.walk import Memory, differing, is_written, walk

N_PROBES = 8  # resets and steps after which a value that never changed counts as constant


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


def _aliases(paths: tuple[str, ...], memories: list[Memory]) -> dict[str, str]:
    """Return which paths hold the tensor of one earlier path in all of the memories."""
    firsts = []
    for memory in memories:
        first: dict[int, str] = {}
        held = {path: memory.slots[path].value for path in paths if path in memory.slots}
        firsts.append({path: first.setdefault(id(t), path) for path, t in held.items()})
    always = {path: {first.get(path, path) for first in firsts} for path in paths}
    return {path: next(iter(of)) for path, of in always.items() if len(of) == 1 and path not in of}
