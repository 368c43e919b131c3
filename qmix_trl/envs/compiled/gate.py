"""The gate: a compiled step is compared with unmodified VMAS before it is used."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.trace.draws import DrawMode, draw
from qmix_trl.envs.compiled.trace.pure import spawning, static_collisions
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import Refused

STEPS = 60
RESET_EVERY = 6
ABSOLUTE, RELATIVE = 1e-4, 1e-5  # the effect of a few roundings
# Stiff contacts and joints multiply roundings by any factor. The factor is measured: VMAS takes the
# same step again from states that differ by a rounding.
PERTURBATIONS = 3
ROUNDING = 2.0**-23
AMPLIFIED = 16.0
# The share of all steps that may differ: at a threshold, a rounding changes a reward or an end.
TOLERATED = 1e-3
PARTS = ("seen", "agent_reward", "reward", "terminated", "state")


class Mismatch(Refused):
    """A compiled step differs from VMAS's; the message says where and by how much."""


@dataclass(frozen=True)
class Outcome:
    """The results of a step of E environments.

    Attributes:
        seen: float32 [E, R], observation and state.
        agent_reward: float32 [E, N].
        reward: float32 [E] or [E, 1], of the team.
        terminated: float32 [E] or [E, 1], 0 or 1.
        state: float32 [E, K], the values of the next packed state.
    """

    seen: Tensor
    agent_reward: Tensor
    reward: Tensor
    terminated: Tensor
    state: Tensor

    def parts(self) -> list[Tensor]:
        """Return all results, float32 [E, ..], in the order of ``PARTS``."""
        return [getattr(self, part).flatten(1) for part in PARTS]


@dataclass(frozen=True)
class Reference:
    """Unmodified VMAS, to compare steps with.

    Attributes:
        simulation: VMAS.
        scratch: another simulation, for steps from any state.
        paths: of VMAS's state.
        layout: of observation and state.
        read_state: returns the values of a simulation's packed state, float32 [E, K].
    """

    simulation: VmasSimulation
    scratch: VmasSimulation
    paths: StatePaths
    layout: SeenLayout
    read_state: Callable[[VmasSimulation], Tensor]

    def state(self) -> list[Tensor]:
        """Return a copy of VMAS's state, a tensor for each path."""
        return [value.clone() for value in self.paths.read(self.simulation.simulator)]

    def step(self, action: Tensor, key: Tensor) -> Outcome:
        """Take one step by actions int64 [E, N], with the random numbers of a key int64 [2]."""
        return self._step(self.simulation, action, key)

    def _step(self, simulation: VmasSimulation, action: Tensor, key: Tensor) -> Outcome:
        first = 0

        def source(kind: str, shape: tuple[int, ...]) -> Tensor:
            nonlocal first
            numbers = draw(kind, key, shape[0], first, shape[1:])
            first += numbers[0].numel()
            return numbers

        with spawning(key), DrawMode(source):
            stepped = simulation.pure_step(action)
        return Outcome(
            self.layout.pack(stepped.seen).clone(),
            stepped.agent_reward.clone(),
            stepped.reward.clone(),
            stepped.terminated.float(),
            self.read_state(simulation),
        )

    def step_from(self, state: list[Tensor], action: Tensor, key: Tensor) -> Outcome:
        """Take one step from a state; every pair of entities that may collide is computed.

        VMAS skips a pair that is far apart in all environments of the batch.
        """
        simulator = self.scratch.simulator
        self.paths.copy_choices(self.simulation.simulator, simulator)
        self.paths.copy_into(simulator, state)
        with static_collisions(simulator.world):
            return self._step(self.scratch, action, key)

    def allowed(self, state: list[Tensor], action: Tensor, key: Tensor) -> list[Tensor]:
        """Return the margins of float error of ``Outcome.parts``, float32 [E, ..] each."""
        exact = self.step_from(state, action, key).parts()
        generator = torch.Generator().manual_seed(0)
        spread = [torch.zeros_like(part) for part in exact]
        for _ in range(PERTURBATIONS):
            near = self.step_from([rounded(value, generator) for value in state], action, key)
            for most, a, b in zip(spread, exact, near.parts(), strict=True):
                torch.maximum(most, distance(a, b), out=most)
        return [AMPLIFIED * torch.maximum(most, finite_most(most)) for most in spread]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the absolute difference; 0 where both are NaN, infinite where one is."""
    apart = (a - b).abs().nan_to_num(torch.inf)
    return apart.masked_fill((a == b) | (a.isnan() & b.isnan()), 0)


def finite_most(spread: Tensor) -> Tensor:
    """Return the greatest finite number of each environment: [E, 1] of [E, ..]."""
    return spread.masked_fill(spread.isinf(), 0).amax(1, keepdim=True)


def rounded(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return floats that differ by about a rounding; other types unchanged."""
    if not value.is_floating_point():
        return value
    noise = torch.rand(value.shape, generator=generator) * 2 - 1
    return value + noise * ROUNDING * value.abs().clamp(min=0.1)


def differing(
    a: list[Tensor], b: list[Tensor], allowed: list[Tensor] | None = None
) -> list[Tensor]:
    """Return where two outcomes' parts differ beyond float error, bool [E, ..] for each part.

    ``allowed`` adds a margin [E, ..] to each part.
    """
    bad = []
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        margin = 0 if allowed is None else allowed[i]
        within = (x - y).abs() <= ABSOLUTE + RELATIVE * y.abs() + margin
        bad.append(~(within | (x == y) | (x.isnan() & y.isnan())))
    return bad


def check(
    reference: Reference, step: Callable[[Tensor, Tensor], Outcome], n_steps: int = STEPS
) -> None:
    """Compare a compiled step with VMAS's from equal states.

    Args:
        reference: unmodified VMAS.
        step: takes the compiled step from the reference's present state, by actions int64 [E, N]
            and a key int64 [2].
        n_steps: the number of steps to compare.

    Raises:
        Mismatch: if more than ``TOLERATED`` of the steps differ beyond float error, also from a
            step of VMAS in which every pair of entities that may collide is computed.
    """
    simulation, wrong_steps = reference.simulation, 0
    generator = torch.Generator().manual_seed(1)
    shape = (simulation.n_envs, len(simulation.team))
    for i in range(n_steps):
        if i % RESET_EVERY == 0:
            simulation.reset()
        action = torch.randint(simulation.n_actions, shape, generator=generator)
        key, before = torch.tensor([1, i]), reference.state()
        ours, theirs = step(action, key), reference.step(action, key)
        wrong = differing(ours.parts(), theirs.parts())
        if any(bad.any() for bad in wrong):
            theirs = reference.step_from(before, action, key)
            allowed = reference.allowed(before, action, key)
            wrong = differing(ours.parts(), theirs.parts(), allowed)
        wrong_steps += int(torch.stack([bad.any(1) for bad in wrong]).any(0).sum())
        if wrong_steps > TOLERATED * n_steps * simulation.n_envs:
            raise Mismatch(_described(ours, theirs, wrong, i))


def _described(ours: Outcome, theirs: Outcome, wrong: list[Tensor], i: int) -> str:
    """Return a line that names the first number that differs."""
    part = next(p for p, bad in enumerate(wrong) if bad.any())
    e, j = wrong[part].nonzero()[0].tolist()
    a, b = ours.parts()[part][e, j], theirs.parts()[part][e, j]
    return (
        f"its step differs from VMAS's: {PARTS[part]}[{j}] is {a:.6g} instead of {b:.6g} in step "
        f"{i} of the gate"
    )
