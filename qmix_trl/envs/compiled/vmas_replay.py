"""Unmodified VMAS that takes the steps of one environment from their packed states."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.packed_state import CHOICE, as_numbers, pack, unpack_state
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.gate import Outcome
from qmix_trl.envs.compiled.trace.contents import Contents
from qmix_trl.envs.compiled.trace.draws import DrawMode, as_environments, draw
from qmix_trl.envs.compiled.trace.pure import spawning
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import ConfigError, Refused

PROBES = 3  # resets that show whether packed numbers determine the first observation


class VmasReplay:
    """VMAS in which all environments replay the same one, from its first step to its last.

    Tensors and floats of the packed state are written before each step. What else VMAS keeps, such
    as a counter in Python, goes on from step to step as in any simulation.

    Args:
        fresh: the pool of the engine, which knows the task and the packed state.
        n_envs: of VMAS.
        draws: steps draw the engine's random numbers from the first step on. To replace VMAS's
            takes a third of the time, so else they do from the first step after one that drew: the
            outcome of that one is not the engine's.

    Attributes:
        simulation: VMAS.

    Raises:
        Refused: if VMAS does not run the task in so many environments, or a number of the packed
            state or a choice cannot be written to it.
    """

    def __init__(self, fresh: FreshStates, n_envs: int, *, draws: bool) -> None:
        self._fresh, self._step, self._draws = fresh, fresh.step, draws
        try:
            self.simulation = VmasSimulation(fresh.simulation.task, n_envs, 0, torch.device("cpu"))
        except ConfigError as error:
            raise Refused(f"VMAS does not run in {n_envs} environments: {error}") from error
        self._paths = {number.path for number in self._step.numbers} - {CHOICE}
        self._places = walk(self.simulation.simulator)
        self._check_writable(self._places)

    def _check_writable(self, contents: Contents) -> None:
        n_envs, places = self.simulation.n_envs, contents.slots | contents.floats
        for number in self._step.numbers:
            if number.path == CHOICE:
                continue
            slot = places.get(number.path)
            size = 0 if slot is None else torch.as_tensor(slot.value).numel()
            if number.place * (n_envs if number.batched else 1) >= size:
                raise Refused(f"{number.path} cannot be written in {n_envs} environments of VMAS")
        for path in self._step.paths.choices:
            if path.removesuffix("@") not in contents.entities | contents.counts:
                raise Refused(f"a reset's choice of {path} cannot be written")

    def begin(self, choice: int) -> None:
        """Reset VMAS, which then is to replay an episode with a choice of this kind."""
        self.simulation.reset()
        self._places = walk(self.simulation.simulator)
        entities = {entity.name: entity for entity in self.simulation.simulator.world.entities}
        # Any choice of the kind will do: the step is the same for all of them.
        values: list[Any] = self._step.choices[choice][0]
        for path, value in zip(self._step.paths.choices, values, strict=True):
            if path.endswith("@"):
                self._places.entities[path[:-1]].set(entities[value])
            else:
                self._places.counts[path].set(value)

    def observe(self, packed: Tensor) -> Tensor:
        """Return observation and state float32 [n, R] in a packed state float32 [n, K]."""
        unpack_state(self._present(walks=True), self._step.numbers, packed)
        return self._step.layout.pack(self.simulation.observe())

    def step(
        self, packed: Tensor, action: Tensor, key: Tensor, e: int, *, walks: bool = False
    ) -> Outcome:
        """Take a step from a packed state.

        Args:
            packed: float32 [n, K].
            action: int64 [n, N].
            key: int64 [2], of the random numbers.
            e: the number of the environment that is replayed, for the random numbers.
            walks: find the places of the packed state again. It takes as long as a step, and is
                needed if a step puts another list or object in their way.
        """
        first = 0

        def source(kind: str, shape: tuple[int, ...]) -> Tensor:
            nonlocal first
            numbers = draw(kind, key, shape[0], first, shape[1:])
            first += numbers[0].numel()
            return numbers

        unpack_state(self._present(walks=walks), self._step.numbers, packed)
        own, before = self.simulation.random_stream.in_vmas(), torch.get_rng_state()
        replayed = torch.full((self.simulation.n_envs,), e)
        replaced = DrawMode(source) if self._draws else nullcontext()
        with own, as_environments(replayed), spawning(key), replaced:
            stepped = self.simulation.pure_step(action)
        self._draws = self._draws or not torch.equal(torch.get_rng_state(), before)
        choice = choice_of(packed[:1], self._fresh)
        then = pack(
            self._present(walks=walks), self.simulation.simulator, self._step.numbers, choice
        )
        return Outcome(
            self._step.layout.pack(stepped.seen),
            stepped.agent_reward.clone(),
            stepped.reward.clone(),
            stepped.terminated.float(),
            as_numbers(then, self._step.numbers),
        )

    def _present(self, *, walks: bool) -> Contents:
        """Return the places of the packed state, with the values that they hold now."""
        if walks:
            return walk(self.simulation.simulator)
        kept = self._places
        slots, floats = (
            {p: replace(s, value=s.holder[s.key]) for p, s in of.items() if p in self._paths}
            for of in (kept.slots, kept.floats)
        )
        return Contents(slots=slots, floats=floats)

    def determines_observation(self) -> bool:
        """Return whether the packed state after a reset determines the observation.

        It does not if the observation has noise, or reads numbers that a step computes first.
        """
        for _ in range(PROBES):
            self.simulation.reset()
            seen = self._step.layout.pack(self.simulation.observe()).clone()
            contents = walk(self.simulation.simulator)
            choice = self._fresh.choice(contents)
            packed = pack(contents, self.simulation.simulator, self._step.numbers, choice)
            self.begin(choice)
            if not torch.allclose(self.observe(packed), seen, equal_nan=True):
                return False
        return True


def choice_of(packed: Tensor, fresh: FreshStates) -> int:
    """Return the kind of choice in a packed state float32 [1, K]; 0 if there is one kind only."""
    for number, column in zip(fresh.step.numbers, packed.unbind(1), strict=True):
        if number.path == CHOICE:
            return int(column.contiguous().view(torch.int32))
    return 0
