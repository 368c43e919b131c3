"""The gate: a compiled step is compared with unmodified VMAS before it is used."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.gate_runs import (
    EDGE_STEPS,
    RESET_EVERY,
    Extent,
    Pilots,
    edge_names,
    random_actions,
    write_edges,
)
from qmix_trl.envs.compiled.trace.contents import Contents
from qmix_trl.envs.compiled.trace.draws import DrawMode, as_environments, draw
from qmix_trl.envs.compiled.trace.pure import spawning, static_collisions
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import Refused

ABSOLUTE, RELATIVE = 1e-4, 1e-5  # the effect of a few roundings
# Stiff contacts and joints multiply roundings by any factor. The factor is measured: VMAS takes the
# same step again from states that differ by a rounding.
PERTURBATIONS = 3
COPIES = 1 + PERTURBATIONS  # of a batch: exact and perturbed
ROUNDING = 2.0**-23
AMPLIFIED = 16.0
COMMON = 1e-2
# The share of all steps that may differ: at a threshold, a rounding changes a reward or an end.
TOLERATED = 1e-3
# The share of all steps that may differ because VMAS skips pairs that are far apart everywhere, if
# the scenario asks VMAS for these pairs.
BROAD_PHASE = 1e-2
FEW_SKIPPED = 10
FEW = 1  # steps of one rule or one kind of edge state that may differ
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
        contents: of VMAS after the step; None for a compiled step.
    """

    seen: Tensor
    agent_reward: Tensor
    reward: Tensor
    terminated: Tensor
    state: Tensor
    contents: Contents | None = None

    def parts(self) -> list[Tensor]:
        """Return all results, float32 [E, ..], in the order of ``PARTS``."""
        return [getattr(self, part).flatten(1) for part in PARTS]


@dataclass(frozen=True)
class Reference:
    """Unmodified VMAS, to compare steps with.

    Attributes:
        simulation: VMAS.
        scratch: another simulation, of ``COPIES`` times as many environments, for steps from any
            state.
        paths: of VMAS's state.
        layout: of observation and state.
        pack: returns the packed state, float32 [E, K], of a simulation and its contents.
        values: returns the values of a packed state, float32 [E, K].
        draws: compiled steps draw random numbers, which VMAS's steps then draw, too.
    """

    simulation: VmasSimulation
    scratch: VmasSimulation
    paths: StatePaths
    layout: SeenLayout
    pack: Callable[[VmasSimulation, Contents], Tensor]
    values: Callable[[Tensor], Tensor]
    draws: bool

    def step(self, action: Tensor, key: Tensor, *, every_pair: bool) -> Outcome:
        """Take one step.

        Args:
            action: int64 [E, N].
            key: int64 [2], of the random numbers.
            every_pair: compute every pair of entities that may collide; VMAS skips a pair that is
                far apart in all environments of the batch.
        """
        simulation = self.simulation
        with static_collisions(simulation.simulator) if every_pair else nullcontext():
            return self._step(simulation, action, key)

    def _step(self, simulation: VmasSimulation, action: Tensor, key: Tensor) -> Outcome:
        first = 0

        def source(kind: str, shape: tuple[int, ...]) -> Tensor:
            nonlocal first
            numbers = draw(kind, key, shape[0], first, shape[1:])
            first += numbers[0].numel()
            return numbers

        # A mode takes a third of the time of VMAS's step.
        with spawning(key), DrawMode(source) if self.draws else nullcontext():
            stepped = simulation.pure_step(action)
        simulation.check_shared(stepped.agent_reward)
        contents = walk(simulation.simulator)
        return Outcome(
            self.layout.pack(stepped.seen).clone(),
            stepped.agent_reward.clone(),
            stepped.reward.clone(),
            stepped.terminated.float(),
            self.values(self.pack(simulation, contents)),
            contents,
        )

    def lines_that_ask(self) -> set[str]:
        """Return the lines of the scenario's code that ask ``World.collides`` in a step."""
        team = len(self.scratch.team)
        with static_collisions(self.scratch.simulator) as lines:
            self.scratch.step(torch.zeros(self.scratch.n_envs, team, dtype=torch.int64))
        return lines

    def near(
        self, state: list[Tensor], action: Tensor, key: Tensor
    ) -> tuple[Outcome, list[Tensor]]:
        """Take a step from a state, and from states that are a rounding away.

        Every pair of entities that may collide is computed. All states are one batch: the time of
        VMAS's step hardly depends on the number of environments.

        Args:
            state: of the simulation, before the step.
            action: int64 [E, N].
            key: int64 [2], of the random numbers.

        Returns:
            The outcome from the state itself, and the margins of float error of its parts,
            float32 [E, ..] each.
        """
        simulator, n_envs = self.scratch.simulator, len(action)
        generator = torch.Generator().manual_seed(0)
        self.paths.copy_choices(self.simulation.simulator, simulator)
        self.paths.copy_into(simulator, [copies(value, n_envs, generator) for value in state])
        numbers = torch.arange(n_envs).repeat(COPIES)
        with static_collisions(simulator), as_environments(numbers):
            outcomes = self._step(self.scratch, action.repeat(COPIES, 1), key)
        of_state = {part: getattr(outcomes, part)[:n_envs] for part in PARTS}
        return Outcome(**of_state), [_margin_of_copies(part, n_envs) for part in outcomes.parts()]


def copies(value: Tensor, n_envs: int, generator: torch.Generator) -> Tensor:
    """Return a tensor of ``COPIES`` times as many environments.

    The first copy is exact, the others differ from it by about a rounding. A tensor without an
    axis of environments is the same for all.

    Args:
        value: of a state of E environments.
        n_envs: E.
        generator: draws the roundings.
    """
    if n_envs not in value.shape:
        return value
    near = [rounded(value, generator) for _ in range(PERTURBATIONS)]
    return torch.cat([value, *near], value.shape.index(n_envs))


def _margin_of_copies(part: Tensor, n_envs: int) -> Tensor:
    """Return the margins, float32 [E, ..], of a part [COPIES * E, ..] of outcomes."""
    exact, *near = part.split(n_envs)
    return margin(torch.stack([distance(exact, each) for each in near]).amax(0), exact)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the absolute difference; 0 where both are NaN, infinite where one is."""
    apart = (a - b).abs().nan_to_num(torch.inf)
    return apart.masked_fill((a == b) | (a.isnan() & b.isnan()), 0)


def margin(spread: Tensor, exact: Tensor) -> Tensor:
    """Return the margins of float error of a part of an outcome.

    Few perturbations may miss the number that roundings move most. So each number has the greatest
    spread of its environment, if that is small beside the number itself.

    Args:
        spread: [E, ..], how far perturbed outcomes are apart.
        exact: [E, ..], the outcome.
    """
    common = torch.minimum(finite_most(spread), COMMON * (exact.abs() + ABSOLUTE).nan_to_num(0))
    return AMPLIFIED * torch.maximum(spread, common)


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


@dataclass(frozen=True)
class Report:
    """The steps that the gate compared, each of one environment.

    Attributes:
        compared: the number of steps.
        by_rounding: steps that differ, as a rounding changes a reward or an end.
        by_broad_phase: steps that equal VMAS's only if every pair of entities that may collide is
            computed: VMAS skips a pair that is far apart in all environments of the batch. A
            scenario that asks VMAS for no pair may have more of them (``Comparison``).
    """

    compared: int
    by_rounding: int
    by_broad_phase: int


Step = Callable[[Tensor, Tensor, Tensor], Outcome]


class Comparison:
    """Compares a compiled step with VMAS's, from equal states.

    After ``FEW_SKIPPED`` steps that differ because VMAS skips pairs, VMAS computes every pair, if
    the scenario asks it for none: whatever their number, such steps are no mismatch then, and to
    take each of them a second time would double the time of the gate.

    Args:
        reference: unmodified VMAS.
        step: takes a compiled step from a packed state float32 [E, K], by actions int64 [E, N] and
            a key int64 [2].
        most: the number of steps of all runs that may differ.
    """

    def __init__(self, reference: Reference, step: Step, most: float) -> None:
        self.reference = reference
        self._step = step
        self._most = most
        self._compared = self._by_broad_phase = 0
        self._every_pair = False
        self._wrong: Counter[str] = Counter()  # steps that differ, by rule
        self._seen: Counter[str] = Counter()  # steps compared, by rule
        self._contents: Contents | None = None  # of VMAS at present

    @property
    def report(self) -> Report:
        """The steps compared so far."""
        return Report(self._compared, self._wrong.total(), self._by_broad_phase)

    def jump(self) -> None:
        """Continue after VMAS's state was changed from outside."""
        self._contents = None

    def step(self, action: Tensor, rules: list[str], run: str) -> None:
        """Take one step in both, and compare.

        Args:
            action: int64 [E, N].
            rules: the name of each environment's rule, or kind of state.
            run: the name of the run and of the step, for the message.

        Raises:
            Mismatch: if too many steps of a rule, or of all, differ.
        """
        reference, simulation = self.reference, self.reference.simulation
        contents = self._contents or walk(simulation.simulator)
        before = [value.clone() for value in reference.paths.read_from(contents)]
        key = torch.tensor([1, self._compared])
        ours = self._step(reference.pack(simulation, contents), action, key)
        in_batch = reference.step(action, key, every_pair=self._every_pair)
        self._contents = in_batch.contents
        self._compared += len(rules)
        self._seen.update(rules)
        of_batch = by_environment(differing(ours.parts(), in_batch.parts()))
        if not of_batch.any():
            return
        theirs, allowed = reference.near(before, action, key)
        if not by_environment(differing(ours.parts(), theirs.parts())).any():
            self._count_skipped(of_batch)
            return
        of_batch = by_environment(differing(ours.parts(), in_batch.parts(), allowed))
        wrong = differing(ours.parts(), theirs.parts(), allowed)
        is_wrong = by_environment(wrong)
        self._count_skipped(of_batch & ~is_wrong)
        for e in is_wrong.nonzero()[:, 0].tolist():
            self._wrong[rules[e]] += 1
            many = self._wrong[rules[e]] > max(FEW, TOLERATED * self._seen[rules[e]])
            if many or self._wrong.total() > self._most:
                raise Mismatch(_described(ours, theirs, wrong, e, f"{run} where {rules[e]}"))

    def _count_skipped(self, is_skipped: Tensor) -> None:
        """Count the environments, bool [E], whose step differs because VMAS skips a pair."""
        self._by_broad_phase += int(is_skipped.sum())
        self._every_pair = self._by_broad_phase > FEW_SKIPPED and self._asks_for_no_pair

    @cached_property
    def _asks_for_no_pair(self) -> bool:
        return not self.reference.lines_that_ask()


def by_environment(wrong: list[Tensor]) -> Tensor:
    """Return which environments differ in any part, bool [E]."""
    return torch.stack([bad.any(1) for bad in wrong]).any(0)


def check(reference: Reference, step: Step, extent: Extent) -> Report:
    """Compare a compiled step with VMAS's, each step from equal states.

    The first run resets VMAS often. The second never does: environments are steered by random,
    held and adversarial actions. Then edge states are written, and a few steps follow each.

    Args:
        reference: unmodified VMAS.
        step: the compiled step, as ``Comparison`` takes it.
        extent: the lengths of the runs.

    Raises:
        Mismatch: if steps differ beyond float error, also from a step of VMAS in which every pair
            of entities that may collide is computed: more than ``TOLERATED`` of all, or more than
            ``FEW`` by one rule of the actions or from one kind of edge state.
    """
    simulation, generator = reference.simulation, torch.Generator().manual_seed(1)
    n_steps = extent.resets + extent.free + extent.edges * EDGE_STEPS
    compared = Comparison(reference, step, TOLERATED * n_steps * simulation.n_envs)
    for i in range(extent.resets):
        if i % RESET_EVERY == 0:
            simulation.reset()
            compared.jump()
        rules = ["actions are random"] * simulation.n_envs
        compared.step(random_actions(simulation, generator), rules, f"step {i} after resets")
    if extent.free:
        simulation.reset()
        compared.jump()
        pilots = Pilots(simulation, reference.scratch, extent.free)
        for i in range(extent.free):
            compared.step(pilots.actions(i), pilots.names(i), f"step {i} without resets")
    for _ in range(extent.edges):
        simulation.reset()
        write_edges(simulation, generator)
        compared.jump()
        for i in range(EDGE_STEPS):
            action = random_actions(simulation, generator)
            compared.step(action, edge_names(simulation.n_envs), f"step {i} after edge states")
    report = compared.report
    if report.by_broad_phase > max(FEW_SKIPPED, BROAD_PHASE * report.compared):
        lines = reference.lines_that_ask()
        if lines:
            raise Mismatch(
                f"{report.by_broad_phase:,} of {report.compared:,} steps differ from VMAS's, which "
                f"skips pairs that are far apart in all environments, at {min(lines)}"
            )
    return report


def _described(ours: Outcome, theirs: Outcome, wrong: list[Tensor], e: int, where: str) -> str:
    """Return a line that names the first number of an environment that differs."""
    part = next(p for p, bad in enumerate(wrong) if bad[e].any())
    j = int(wrong[part][e].nonzero()[0])
    a, b = ours.parts()[part][e, j], theirs.parts()[part][e, j]
    return (
        f"its step differs from VMAS's: {PARTS[part]}[{j}] is {a:.6g} instead of {b:.6g} in {where}"
    )
