"""The gate: a compiled step runs beside unmodified VMAS before it is used."""

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
ABSOLUTE, RELATIVE = 1e-4, 1e-5  # what a few roundings make of a number
# Stiff contacts and joints multiply roundings by any factor. How much is measured: VMAS takes the
# same step again from states that are a rounding away.
PERTURBATIONS = 3
ROUNDING = 2.0**-23
AMPLIFIED = 16.0
# Of all environments' steps: at a threshold a rounding changes a reward or an end by itself.
TOLERATED = 1e-3
PARTS = ("seen", "agent_reward", "reward", "terminated", "state")


class Mismatch(Refused):
    """A compiled step is not that of VMAS; says where and by how much."""


@dataclass(frozen=True)
class Outcome:
    """What a step gives, to be compared; float32 with the environments first."""

    seen: Tensor
    agent_reward: Tensor
    reward: Tensor
    terminated: Tensor
    state: Tensor

    def parts(self) -> list[Tensor]:
        """Return all parts, float32 [E, ..]."""
        return [getattr(self, part).flatten(1) for part in PARTS]


@dataclass(frozen=True)
class Reference:
    """Unmodified VMAS, beside which steps are compared.

    Attributes:
        simulation: VMAS.
        scratch: another one, to take steps from any state in.
        paths: where its state stands.
        layout: of what is seen.
        read_state: returns a simulation's state, float32 [E, K].
    """

    simulation: VmasSimulation
    scratch: VmasSimulation
    paths: StatePaths
    layout: SeenLayout
    read_state: Callable[[VmasSimulation], Tensor]

    def state(self) -> list[Tensor]:
        """Return a copy of the whole state."""
        return [value.clone() for value in self.paths.read(self.simulation.simulator)]

    def step(self, action: Tensor, key: Tensor) -> Outcome:
        """Take one step with the random numbers of a key."""
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
        """Take one step from a state, without VMAS's broad phase."""
        simulator = self.scratch.simulator
        self.paths.copy_choices(self.simulation.simulator, simulator)
        self.paths.copy_into(simulator, state)
        with static_collisions(simulator.world):
            return self._step(self.scratch, action, key)

    def allowed(self, state: list[Tensor], action: Tensor, key: Tensor) -> list[Tensor]:
        """Return by how much each number of an outcome may differ for float error."""
        exact = self.step_from(state, action, key).parts()
        generator = torch.Generator().manual_seed(0)
        spread = [torch.zeros_like(part) for part in exact]
        for _ in range(PERTURBATIONS):
            near = self.step_from([rounded(value, generator) for value in state], action, key)
            for most, a, b in zip(spread, exact, near.parts(), strict=True):
                torch.maximum(most, distance(a, b), out=most)
        return [AMPLIFIED * torch.maximum(most, finite_most(most)) for most in spread]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return how far numbers are apart; 0 if both are none, infinite if one is."""
    apart = (a - b).abs().nan_to_num(torch.inf)
    return apart.masked_fill((a == b) | (a.isnan() & b.isnan()), 0)


def finite_most(spread: Tensor) -> Tensor:
    """Return the greatest finite number of each environment: [E, 1] of [E, ..]."""
    return spread.masked_fill(spread.isinf(), 0).amax(1, keepdim=True)


def rounded(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return floats that differ by about a rounding, anything else as it is."""
    if not value.is_floating_point():
        return value
    noise = torch.rand(value.shape, generator=generator) * 2 - 1
    return value + noise * ROUNDING * value.abs().clamp(min=0.1)


def differing(a: list[Tensor], b: list[Tensor], allowed: list[Tensor] | None = None) -> Tensor:
    """Return which numbers of which part differ: for each part bool [E, ..]."""
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
        step: takes the compiled step of (action, key) from the state where the reference is.
        n_steps: how many are compared.

    Raises:
        Mismatch: if they differ beyond float error, and not for VMAS's broad phase of collisions,
            which is of the whole batch.
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
            raise Mismatch(described(ours, theirs, wrong, i))


def described(ours: Outcome, theirs: Outcome, wrong: list[Tensor], i: int) -> str:
    """Return one line on the first number that differs."""
    part = next(p for p, bad in enumerate(wrong) if bad.any())
    e, j = wrong[part].nonzero()[0].tolist()
    a, b = ours.parts()[part][e, j], theirs.parts()[part][e, j]
    return (
        f"its step differs from VMAS's: {PARTS[part]}[{j}] is {a:.6g} instead of {b:.6g} in step "
        f"{i} of the gate"
    )
