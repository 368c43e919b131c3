"""The state of a VMAS simulator: the reachable values that steps and resets write."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from qmix_trl.envs.compiled.trace.contents import Contents, differing, is_written
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

N_PROBES = 8  # resets, of two steps each, after which a value that never changed is constant


@dataclass(frozen=True)
class StatePaths:
    """The paths of a simulator's state.

    Attributes:
        tensors: paths of tensors that steps or resets write.
        floats: paths of Python floats that steps or resets change, such as masses.
        aliases: path -> earlier path that always holds the same tensor.
        choices: paths of other Python values that resets change, such as which landmark is the
            goal; a trace holds for one value of each.
        changed_by_steps: paths of other Python values that steps change.
        unsettable: paths of tensors that are written in tuples, closures, classes or modules,
            where no other tensor can be put.
        of_resets: paths of tensors and floats that resets write.
        unwatched: paths of objects whose state cannot be seen.
    """

    tensors: tuple[str, ...]
    floats: tuple[str, ...]
    aliases: dict[str, str]
    choices: tuple[str, ...]
    changed_by_steps: tuple[str, ...]
    unsettable: tuple[str, ...]
    of_resets: frozenset[str]
    unwatched: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the paths as values that JSON can hold."""
        return {**asdict(self), "of_resets": sorted(self.of_resets)}

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> "StatePaths":
        """Return paths from ``as_json``."""
        lists = {k: tuple(v) for k, v in kept.items() if isinstance(v, list | tuple)}
        return StatePaths(**{**kept, **lists, "of_resets": frozenset(kept["of_resets"])})

    def with_choices(self, changed: Iterable[str], contents: Contents) -> "StatePaths":
        """Return the paths with more values that resets change.

        Args:
            changed: paths of Python values.
            contents: of the simulator.
        """
        new = set(changed) - set(self.floats) - set(self.changed_by_steps)
        floats = tuple(path for path in contents.floats if path in new or path in self.floats)
        choices = tuple(sorted((new | set(self.choices)) - set(floats)))
        return replace(self, floats=floats, choices=choices, of_resets=self.of_resets | new)

    @property
    def all(self) -> tuple[str, ...]:
        """The paths of tensors, then of floats."""
        return self.tensors + self.floats

    def read(self, simulator: Environment) -> list[Tensor]:
        """Return the tensors and floats of a state, in the order of ``all``.

        A path that no longer exists yields a zero.
        """
        return self.read_from(walk(simulator))

    def read_from(self, contents: Contents) -> list[Tensor]:
        """Return the state as ``read`` does, from the contents of a simulator."""
        tensors = [_read_tensor(contents, path) for path in self.tensors]
        return tensors + [_read_float(contents, path) for path in self.floats]

    def write(self, simulator: Environment, state: list[Tensor]) -> None:
        """Put the tensors of a state in place; aliases share one tensor again."""
        contents = walk(simulator)
        places = {**contents.floats, **contents.slots}
        by_path = dict(zip(self.all, state, strict=True))
        for path, value in by_path.items():
            if path in places:
                places[path].set(by_path.get(self.aliases.get(path, path), value))

    def copy_into(self, simulator: Environment, state: list[Tensor]) -> None:
        """Copy a state into the simulator's own tensors, so that views of them see it."""
        contents = walk(simulator)
        for path, value in zip(self.all, state, strict=True):
            if path in contents.floats:
                contents.floats[path].set(value.item())
            elif path in contents.slots:
                slot = contents.slots[path]
                is_expanded = 0 in slot.value.stride()
                if slot.value.shape == value.shape and not is_expanded:
                    slot.value.copy_(value)
                else:
                    slot.set(value.clone())

    def copy_choices(self, source: Environment, target: Environment) -> None:
        """Copy the Python values that resets chose from one simulator to another."""
        if not self.choices:
            return
        theirs, ours = walk(source), walk(target)
        entities = {entity.name: entity for entity in target.world.entities}
        for path in self.choices:
            if path.endswith("@") and path[:-1] in ours.entities:
                ours.entities[path[:-1]].set(entities[theirs.values[path]])
            elif path in ours.counts:
                ours.counts[path].set(theirs.values[path])

    def chosen(self, simulator: Environment) -> tuple:
        """Return the values at the paths of ``choices``."""
        values = walk(simulator).values
        return tuple(values.get(path) for path in self.choices)


def _read_tensor(contents: Contents, path: str) -> Tensor:
    return contents.slots[path].value if path in contents.slots else torch.zeros(())


def _read_float(contents: Contents, path: str) -> Tensor:
    if path in contents.slots:  # ``write`` puts tensors where floats were
        return contents.slots[path].value
    return torch.tensor(contents.values.get(path, 0.0), dtype=torch.float32)


@dataclass(frozen=True)
class _Changes:
    """The simulator after an action, and the paths that the action changed."""

    after: Contents
    written: set[str]  # of tensors
    values: set[str]  # of Python values


def _observe(simulator: Environment, action: Callable[[], Any], before: Contents) -> _Changes:
    """Run a reset or a step and compare the simulator with its contents before."""
    versions = {path: (tensor, tensor._version) for path, tensor in before.tensors().items()}
    action()
    after = walk(simulator)
    written = {p for p, t in after.tensors().items() if is_written(t, versions.get(p))}
    return _Changes(after, written, differing(before, after))


def find_state(simulator: Environment, step: Callable[[], None]) -> StatePaths:
    """Find the paths of the state: run resets and steps, and record the values that change.

    A reset includes the first observation of the episode, which may write values, too.

    Args:
        simulator: the simulator; it ends two steps after a reset.
        step: takes one random step of the simulator.
    """

    step()
    before = walk(simulator)
    written, of_resets, by_resets, by_steps, probes = set(), set(), set(), set(), []
    for _ in range(N_PROBES):
        first = _observe(simulator, simulator.reset, before)
        second = _observe(simulator, step, first.after)
        third = _observe(simulator, step, second.after)
        before = third.after
        by_resets |= first.values
        by_steps |= second.values | third.values
        of_resets |= first.written | first.values
        written |= first.written | second.written | third.written
        probes += [first.after, third.after]
    by_resets -= by_steps
    tensors = tuple(path for path in before.slots if path in written)
    floats = tuple(path for path in before.floats if path in by_resets | by_steps)
    return StatePaths(
        tensors=tensors,
        floats=floats,
        aliases=_aliases(tensors, probes),
        choices=tuple(sorted(by_resets - set(floats))),
        changed_by_steps=tuple(sorted(by_steps - set(floats))),
        unsettable=tuple(sorted(written & before.unsettable.keys())),
        of_resets=frozenset(of_resets),
        unwatched=tuple(before.unwatched),
    )


def random_step(simulation: VmasSimulation) -> Callable[[], None]:
    """Return a function that takes one step of a simulation by random actions."""
    generator = torch.Generator(simulation.device).manual_seed(0)
    shape = (simulation.n_envs, len(simulation.team))  # [E, N]

    def step() -> None:
        action = torch.randint(
            simulation.n_actions, shape, generator=generator, device=simulation.device
        )
        simulation.step(action)

    return step


def _aliases(paths: tuple[str, ...], probes: list[Contents]) -> dict[str, str]:
    """Return path -> earlier path, for paths that hold the earlier path's tensor in all probes."""
    firsts = [_first_paths(paths, contents) for contents in probes]
    found = {}
    for path in paths:
        earlier = {first.get(path, path) for first in firsts}
        if len(earlier) == 1 and path not in earlier:
            found[path] = earlier.pop()
    return found


def _first_paths(paths: tuple[str, ...], contents: Contents) -> dict[str, str]:
    """Return path -> first path that holds the same tensor."""
    first: dict[int, str] = {}
    held = {path: contents.slots[path].value for path in paths if path in contents.slots}
    return {path: first.setdefault(id(tensor), path) for path, tensor in held.items()}
