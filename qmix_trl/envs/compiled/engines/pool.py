"""The pool of initial states, drawn by unmodified VMAS.

VMAS resets environments one by one, and each reset costs as much as a reset of the whole batch. A
reset of the batch draws every environment from the same distribution. Where it draws a number once
for the whole batch, its states are alike; the pool of such a scenario mixes many small resets.

VMAS draws on the pool's device, so that a GPU need not wait for the CPU. Small resets stay on the
CPU: a GPU takes as long for 16 environments as for 100,000, and longer than the CPU.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.packed_state import pack
from qmix_trl.envs.compiled.trace.alike import check_any_number
from qmix_trl.envs.compiled.trace.contents import Contents, differing
from qmix_trl.envs.compiled.trace.draws import KINDS, OTHER_DRAWS
from qmix_trl.envs.compiled.trace.guard import Watch
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.time_limit import NoEnd
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import MachineError, Refused, one_line

CPU = torch.device("cpu")
SHARED_STATES = 16  # environments of a reset that draws once for all of them
STATES_PER_ENV = 4  # states of a pool for each environment; 1 where resets share draws
PASSES = 4  # through a pool before a refill, which takes VMAS 0.1 s
LEAST_STATES = 1024
MOST_TOGETHER = 4096  # environments of one reset, unless E is greater; bounds VMAS's memory
MOST_ON_A_GPU = 2**16  # a GPU resets so many in the time of one: launches take it
WATCHED = (*KINDS, *OTHER_DRAWS, torch.Tensor.uniform_, torch.Tensor.normal_)


class SharedDraws(TorchFunctionMode):
    """Records whether a number is drawn once for all environments.

    Args:
        n_envs: E.

    Attributes:
        found: a draw had no axis of size E.
    """

    def __init__(self, n_envs: int) -> None:
        super().__init__()
        self.n_envs = n_envs
        self.found = False

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in WATCHED and self.n_envs not in result.shape:
            self.found = True
        return result


def shares_draws(simulation: VmasSimulation) -> bool:
    """Return whether a reset of all environments draws anything once for all of them.

    Args:
        simulation: its number of environments must differ from the scenario's other sizes; left in
            another state.
    """
    simulation.reset()
    before = walk(simulation.simulator)
    with simulation.random_stream.everywhere(), SharedDraws(simulation.n_envs) as watch:
        generators = _python_generators()
        simulation.pure_reset()
        drawn = watch.found or generators != _python_generators()
    after = walk(simulation.simulator)
    return (
        drawn or bool(differing(before, after)) or _moves_as_one(before, after, simulation.n_envs)
    )


def _moves_as_one(before: Contents, after: Contents, n_envs: int) -> bool:
    """Return whether a reset set some tensor to one new value for all environments."""

    def is_one(x: Tensor) -> bool:
        return x.shape[:1] != (n_envs,) or bool((x == x[:1]).all())

    old = before.tensors()
    return any(
        path in old
        and x.shape == old[path].shape
        and is_one(x)
        and is_one(old[path])
        and not torch.equal(x, old[path])
        for path, x in after.tensors().items()
    )


def _python_generators() -> tuple:
    kind, words, *rest = np.random.get_state()  # noqa: NPY002 - VMAS draws from it
    return random.getstate(), kind, words.tobytes(), *rest


def counts_environments(one: Tensor, other: Tensor) -> bool:
    """Return whether numbers differ between environments and are the same for two seeds.

    Args:
        one: float32 [E, K], the numbers of a simulation.
        other: the same of a simulation of another seed.
    """
    bits, others = one.view(torch.int32), other.view(torch.int32)
    return bool(((bits == others).all(0) & (bits != bits[:1]).any(0)).any())


class FreshStates:
    """A pool of P initial states, packed, with the observation and state of each.

    Reset r of environment e takes state e + r E. Each further pass through the pool is shifted by
    one state, so that an environment never gets a state twice. After ``PASSES`` passes, or E if
    that is fewer, the pool is refilled.

    Args:
        task: the task to simulate.
        n_envs: E.
        seed: of the pool's random numbers.
        step: the compiled step.
        least_states: P is at least this, and at least ``STATES_PER_ENV`` E, or E where a reset
            draws numbers once for all environments.
        device: of the pool. VMAS draws there, from the random numbers of that device; on the CPU
            if a reset draws numbers once for all environments.

    Attributes:
        simulation: VMAS, which draws the states.
        pool: float32 [P, K + R], packed states, each followed by observation and state.
        taken: the number of resets since the pool was drawn.
        refusal: why the step does not serve a state that VMAS drew; None if it serves all.

    Raises:
        Refused: if the step does not serve a state of the first pool.
    """

    def __init__(
        self,
        task: Task,
        n_envs: int,
        seed: int,
        step: CompiledStep,
        *,
        least_states: int = LEAST_STATES,
        device: torch.device = CPU,
    ) -> None:
        self.n_envs = n_envs
        self.device = device
        self.step = step
        self.states_per_env = max(1 if step.shared else STATES_PER_ENV, -(-least_states // n_envs))
        most = MOST_TOGETHER if device.type == "cpu" else MOST_ON_A_GPU
        together = max(n_envs, min(self.states_per_env * n_envs, most))
        drawn_together, of_draws = (SHARED_STATES, CPU) if step.shared else (together, device)
        if step.reads_in_resets:
            # A reset that draws until all environments are right takes longer the more there are.
            drawn_together = min(n_envs, drawn_together)
        self.simulation = VmasSimulation(task, drawn_together, seed, of_draws)
        self.taken = 0
        self.refusal: str | None = None
        self._watch = Watch(step.guard, walk(self.simulation.simulator))
        self.pool = self.drawn().to(device)

    def choice(self, contents: Contents) -> int:
        """Return the kind of choice that a simulation's last reset made in Python.

        Args:
            contents: of the simulator.

        Raises:
            Refused: if the step was not compiled for this choice.
        """
        chosen = [contents.values.get(path) for path in self.step.paths.choices]
        for kind, known in enumerate(self.step.choices):
            if chosen in known:
                return kind
        raise Refused(
            f"a reset chose {chosen} for {self.step.paths.choices}, which none did when the step "
            "was compiled"
        )

    def drawn(self) -> Tensor:
        """Return the states of a new pool, float32 [P, K + R], on the simulation's device.

        Raises:
            Refused: if the step does not serve a state.
        """
        wanted = self.states_per_env * self.n_envs
        parts = [self._reset() for _ in range(-(-wanted // self.simulation.n_envs))]
        pool = torch.cat(parts)[:wanted]
        if self.step.shared:
            # State j of every reset, before state j + 1 of any: neighbours differ in the reset.
            n = self.simulation.n_envs
            order = torch.arange(len(parts) * n).view(-1, n).t().flatten()
            pool = torch.cat(parts)[order][:wanted]
        return pool.contiguous()

    def _reset(self) -> Tensor:
        try:
            self.simulation.reset()
        except NoEnd as error:
            raise Refused(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"initial states: expected room for {self.simulation.n_envs:,} environments of "
                f"VMAS on {self.device}, got {one_line(error)}; lower env.n_envs"
            ) from error
        seen = self.step.layout.pack(self.simulation.observe())
        contents = walk(self.simulation.simulator)
        broken = self._watch.broken_path(contents)
        if broken is not None:
            raise Refused(f"a reset changed {broken}, which none did when the step was compiled")
        choice = self.choice(contents)
        state = pack(contents, self.simulation.simulator, self.step.numbers, choice)
        return torch.cat([state, seen], 1)

    def first_states(self) -> Tensor:
        """Return packed states of environments before their first reset, float32 [E, K].

        Numbers that resets leave as they are come from new simulations, all others from the pool.

        Raises:
            Refused: if such a number depends on the number of its environment, and several
                simulations are needed.
        """
        packed = self.pool[:1, : len(self.step.numbers)].repeat(self.n_envs, 1)
        columns = self.step.carried_columns
        if not columns:
            return packed
        if self.n_envs > MOST_TOGETHER:
            one, other = (self._begun(MOST_TOGETHER, seed) for seed in (0, 1))
            if counts_environments(one, other):
                raise Refused(
                    f"it numbers its environments, and there are more than {MOST_TOGETHER:,}"
                )
        for first in range(0, self.n_envs, MOST_TOGETHER):
            n = min(MOST_TOGETHER, self.n_envs - first)
            packed[first : first + n, columns] = self._begun(n, first).to(self.device)
        return packed

    def _begun(self, n_envs: int, seed: int) -> Tensor:
        """Return the numbers that resets leave as they are, of a new simulation: float32 [E, K]."""
        simulation = VmasSimulation(self.simulation.task, n_envs, seed, CPU, idle_step=False)
        numbers = [self.step.numbers[k] for k in self.step.carried_columns]
        return pack(walk(simulation.simulator), simulation.simulator, numbers, 0)

    def check_resets(self) -> None:
        """Refuse resets that depend on the number of environments, if the pool resets more than E.

        Simulations on the CPU are compared, of E environments and of more.

        Raises:
            Untraceable: if they are.
        """
        n_envs, of_pool = min(self.n_envs, MOST_TOGETHER), self.simulation
        if n_envs < of_pool.n_envs or self.step.shared:
            if of_pool.device != CPU:  # the equal numbers are drawn there
                more = min(of_pool.n_envs, 2 * MOST_TOGETHER)
                of_pool = VmasSimulation(of_pool.task, more, 0, CPU)
            other = VmasSimulation(of_pool.task, n_envs, 0, CPU)
            check_any_number(of_pool, other, self.step.paths, self.step.carried)

    def states_for(self, resets: Tensor) -> Tensor:
        """Return the next state of each environment, float32 [E, K + R].

        Args:
            resets: int64 [E], each environment's resets since the pool was drawn.
        """
        place = torch.arange(self.n_envs, device=resets.device) + resets * self.n_envs
        return self.pool[(place + place // len(self.pool)) % len(self.pool)]

    def is_due(self) -> bool:
        """Return whether every state was taken as often as it may be."""
        return self.taken >= min(PASSES, self.n_envs) * len(self.pool)

    def renew(self) -> None:
        """Draw new states into the same tensor; keep the old ones after a refusal."""
        self.taken = 0
        if self.refusal is not None:
            return
        try:
            self.pool.copy_(self.drawn())
        except Refused as refused:
            self.refusal = str(refused)

    def reseed(self, seed: int) -> None:
        """Restart the random numbers from a seed, and draw a new pool."""
        self.simulation.random_stream.seed(seed)
        self.renew()
