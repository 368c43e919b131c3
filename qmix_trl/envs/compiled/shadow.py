"""The shadow check: VMAS replays recorded steps of a run, and the first difference ends the run.

Now and then, for one environment of the batch, the engine's twin takes the recorded actions again
from the recorded state. It must reach the recorded results. Unmodified VMAS of one environment
takes the same steps, each from the twin's state before it.

A check neither reads nor changes the engine's random numbers or state: a run with checks has the
numbers of a run without.
"""

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.env_state import EnvState
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber, as_numbers
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.gate import (
    AMPLIFIED,
    PARTS,
    PERTURBATIONS,
    ROUNDING,
    Outcome,
    differing,
    distance,
    finite_most,
)
from qmix_trl.envs.compiled.lower.expressions import FLOAT
from qmix_trl.envs.compiled.trace.pure import static_collisions
from qmix_trl.envs.compiled.vmas_replay import VmasReplay, choice_of
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import Refused, WrongStepError, one_line

FIRST_STEPS = 50  # of the first check, which short runs pay for, too
MOST_STEPS = 1000  # of any other check
# VMAS takes a step that differs again from states near by: one exact, ``PERTURBATIONS`` that are a
# rounding away and measure the effect of roundings, and others that are up to ``FAR`` roundings
# away. Near a threshold one of these has the engine's reward or end.
NEARBY, FAR = 16, 16
# Of one environment: position, velocity, rotation and angular velocity of an entity.
ENTITY = ("x", "y", "velocity x", "velocity y", "rotation", "angular velocity")


@runtime_checkable
class Verifiable(Protocol):
    """A compiled engine, which can continue from any packed state.

    Attributes:
        fresh: the pool that resets take states from.
        env_state: of its environments.
    """

    fresh: FreshStates
    env_state: EnvState

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """

    def twin(self) -> "Verifiable":
        """Return an engine of the same compiled step with a state of its own."""


@dataclass(frozen=True)
class Start:
    """The engine's state before the first step of buffers.

    Attributes:
        buffers: that the steps will be written to.
        packed: float32 [E, K], the packed state.
        steps: int32 [E], since each environment's last reset.
        key: int64 [2], of the first step's random numbers.
    """

    buffers: Buffers
    packed: Tensor
    steps: Tensor
    key: Tensor


@dataclass(frozen=True)
class RecordedStep:
    """One step of one environment by the engine.

    Attributes:
        number: within its episode, from 1.
        packed: float32 [1, K], the packed state before it.
        then: float32 [1, K], the packed state after it.
        action: int64 [1, N].
        key: int64 [2], of its random numbers.
        outcome: of one environment.
    """

    number: int
    packed: Tensor
    then: Tensor
    action: Tensor
    key: Tensor
    outcome: Outcome


class Replay:
    """The steps of one environment that are checked, maybe over several batches.

    Args:
        e: the environment.
        left: the greatest number of steps to check.

    Attributes:
        recorded: by the engine, so far.
        by_vmas: the outcomes of VMAS, so far.
        near_steps: the number of steps that VMAS has taken from states near by.
    """

    def __init__(self, e: int, left: int) -> None:
        self.e = e
        self.left = left
        self.recorded: list[RecordedStep] = []
        self.by_vmas: list[Outcome] = []
        self.near_steps = 0

    def goes_on(self, start: Start) -> bool:
        """Return whether an engine's state is the one after the last step that was recorded."""
        last = self.recorded[-1]
        return (
            torch.equal(as_words(start.packed[self.e, None].cpu()), as_words(last.then))
            and int(start.key[1]) == int(last.key[1]) + 1
            and int(start.steps[self.e]) == last.number
        )


class Shadow:
    """Compares recorded steps of an engine with VMAS.

    Args:
        engine: that steps the environments.
        name: of the engine.
        max_steps: the time limit in steps.
        share: the largest share of the time since now that checks may take, but for the first.
        seed: of the choice of environments.

    Attributes:
        verified_steps: the number of steps that were compared.
        refusal: why nothing is compared; None if steps are.
    """

    def __init__(
        self, engine: Verifiable, name: str, *, max_steps: int, share: float, seed: int
    ) -> None:
        self._engine, self._name, self._fresh = engine, name, engine.fresh
        self._max_steps, self._share = max_steps, share
        self._twin: Verifiable | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._made, self._spent = time.perf_counter(), 0.0
        self._start: Start | None = None
        self._replay: Replay | None = None
        self._near: VmasReplay | None = None
        self.verified_steps = 0
        self.refusal: str | None = None
        try:
            self._vmas = VmasReplay(self._fresh, 1, walks=False)
            self._sees_first = self._vmas.determines_observation()
        except Refused as refused:
            self.refusal = str(refused)
        self._spent += time.perf_counter() - self._made

    @property
    def how(self) -> str:
        """How much VMAS checks, or why it checks nothing."""
        if self.refusal is not None:
            return f"nothing: {self.refusal}"
        n_envs = self._fresh.n_envs
        return f"1 of {n_envs:,} environments by VMAS, at most {100 * self._share:g} % of the time"

    def stop(self, reason: str) -> None:
        """Check nothing from now on."""
        self.refusal, self._start, self._replay = reason, None, None

    def begin(self, buffers: Buffers) -> None:
        """Note the engine's state before the first step of buffers, if a check is due.

        Args:
            buffers: that all their steps are written to before the next call, or none.
        """
        self._start = None
        if self.refusal is None and (self._replay is not None or self._is_due()):
            state = self._engine.env_state
            self._start = Start(
                buffers, state.packed_state(), state.steps.clone(), state.key.clone()
            )

    def end(self, buffers: Buffers) -> None:
        """Compare the steps of buffers with VMAS, if ``begin`` noted how they began.

        Raises:
            WrongStepError: if they differ.
        """
        start, self._start = self._start, None
        if start is None or start.buffers is not buffers:
            return
        began = time.perf_counter()
        with torch.no_grad(), generators_restored():
            self._check(start)
        self._spent += time.perf_counter() - began

    def _is_due(self) -> bool:
        """Return whether another check would keep within the share of the time."""
        if self.verified_steps == 0:
            return True
        price = min(self._max_steps, MOST_STEPS) * self._spent / self.verified_steps
        return self._spent + price <= self._share * (time.perf_counter() - self._made)

    def _check(self, start: Start) -> None:
        """Compare the steps of buffers with the twin's and with VMAS's."""
        replay = self._replay
        if replay is None or not replay.goes_on(start):
            most = FIRST_STEPS if self.verified_steps == 0 else MOST_STEPS
            replay = self._replay = Replay(self._choose(start.steps), most)
        recorded = of_environment(start.buffers, replay.e)
        ends = recorded.done[0].nonzero()[:, 0].tolist()
        n_steps = min(replay.left, ends[0] + 1 if ends else recorded.done.shape[1])
        self._take_again(start, replay, recorded, n_steps)
        try:
            self._take_by_vmas(replay, recorded.seen[:, 0])
        except WrongStepError:
            raise
        except Exception as error:  # the scenario's code may raise anything
            self.stop(f"VMAS fails in a replay: {one_line(error)}")
            warnings.warn(f"env.verify: verified: {self.how}", stacklevel=4)
            return
        replay.left -= n_steps
        if replay.left == 0 or ends:
            self._replay = None

    def _choose(self, steps: Tensor) -> int:
        """Return an environment, one that begins an episode if there is any.

        Args:
            steps: int32 [E], since each environment's last reset.
        """
        begins = (steps == 0).cpu()
        among = (begins if begins.any() else torch.ones_like(begins)).nonzero()[:, 0]
        return int(among[torch.randint(len(among), (), generator=self._generator)])

    def _take_again(self, start: Start, replay: Replay, recorded: Buffers, n_steps: int) -> None:
        """Take recorded steps again, and keep those of one environment.

        Args:
            start: of the recorded steps.
            replay: of the environment.
            recorded: the steps of the environment.
            n_steps: the number of steps to take.

        Raises:
            WrongStepError: if results differ from the recorded ones.
        """
        if self._twin is None:
            self._twin = self._engine.twin()
        e, state, numbers = replay.e, self._twin.env_state, self._fresh.step.numbers
        actions = start.buffers.action
        again = Buffers.empty(len(actions), 1, self._fresh.step.layout, actions.device)
        state.jump(start.packed, start.key)
        state.steps.copy_(start.steps)
        first, next_seen = int(start.steps[e]) + 1, recorded.next_seen
        for t in range(n_steps):
            packed, key = state.packed[e, None].cpu().clone(), state.key.cpu().clone()
            again.action.copy_(actions[:, t, None])
            self._twin.advance(again, 0, 1, reset_when_done=False)
            then = state.packed[e, None].cpu().clone()
            values = as_numbers(then, numbers)
            outcome = outcome_of(recorded, next_seen, t, values)
            step = RecordedStep(first + t, packed, then, recorded.action[:, t], key, outcome)
            replay.recorded.append(step)
            one = of_environment(again, e)
            twins = outcome_of(one, one.seen[:, 1:], 0, values)
            if actions.is_cuda:  # another launch may round otherwise
                wrong = differing(outcome.parts(), twins.parts())
            else:
                pairs = zip(outcome.parts(), twins.parts(), strict=True)
                wrong = [(a != b) & ~(a.isnan() & b.isnan()) for a, b in pairs]
            self._refuse(replay, step, twins, wrong, "its own step, taken again,")
            is_last = step.number >= self._max_steps
            ends = bool(recorded.terminated[0, t]) or is_last
            if (bool(recorded.truncated[0, t]), bool(recorded.done[0, t])) != (is_last, ends):
                self._raise(replay, step, "VMAS", "whether the episode ends", not ends, ends)

    def _take_by_vmas(self, replay: Replay, first_seen: Tensor) -> None:
        """Let VMAS take the recorded steps that it has not taken.

        Args:
            replay: of the environment.
            first_seen: float32 [1, R], observation and state before the first of these steps.

        Raises:
            WrongStepError: if a step differs.
        """
        for i in range(len(replay.by_vmas), len(replay.recorded)):
            step = replay.recorded[i]
            if i == 0:
                self._vmas.begin(choice_of(step.packed, self._fresh))
                if step.number == 1 and self._sees_first:
                    self._compare_first(replay, step, first_seen)
            theirs = self._vmas.step(step.packed, step.action, step.key, replay.e)
            wrong = differing(step.outcome.parts(), theirs.parts())
            if any(bad.any() for bad in wrong):
                theirs, wrong = self._from_near_by(replay, i)
            replay.by_vmas.append(theirs)
            self._refuse(replay, step, theirs, wrong, "VMAS")
            self.verified_steps += 1

    def _compare_first(self, replay: Replay, step: RecordedStep, first_seen: Tensor) -> None:
        """Compare the first observation of an episode with VMAS's.

        Args:
            replay: of the environment.
            step: the first step.
            first_seen: float32 [1, R], observation and state before it.

        Raises:
            WrongStepError: if they differ.
        """
        theirs = self._vmas.observe(step.packed)
        (wrong,) = differing([first_seen], [theirs])
        if wrong.any():
            j = int(wrong[0].nonzero()[0])
            name = f"after the reset {self._place('seen', j)}"
            self._raise(replay, step, "VMAS", name, first_seen[0, j].item(), theirs[0, j].item())

    def _from_near_by(self, replay: Replay, i: int) -> tuple[Outcome, list[Tensor]]:
        """Take recorded step ``i`` by VMAS from states near by; every pair that may collide counts.

        Returns:
            the outcome of the exact state, and where the engine's differs, bool [1, ..] for each
            part: nowhere if it is the outcome of a state near by.
        """
        if self._near is None:
            self._near = VmasReplay(self._fresh, NEARBY, walks=True)
        near, recorded = self._near, replay.recorded
        if replay.near_steps == 0:
            near.begin(choice_of(recorded[0].packed, self._fresh))
        with static_collisions(near.simulation.simulator.world):
            for step in recorded[replay.near_steps : i]:  # for what VMAS counts itself
                states = step.packed.expand(NEARBY, -1)
                near.step(states, step.action.expand(NEARBY, -1), step.key, replay.e)
            step = recorded[i]
            states = near_by(step.packed, self._fresh.step.numbers)
            found = near.step(states, step.action.expand(NEARBY, -1), step.key, replay.e).parts()
        replay.near_steps = i + 1
        spread = [
            distance(part[1 : PERTURBATIONS + 1], part[:1]).amax(0, keepdim=True) for part in found
        ]
        margins = [AMPLIFIED * torch.maximum(most, finite_most(most)) for most in spread]
        wrong = differing(step.outcome.parts(), found, margins)  # [NEARBY, ..] each
        agrees = ~torch.stack([bad.any(1) for bad in wrong]).any(0)  # [NEARBY]
        exact = Outcome(*(part[:1] for part in found))
        return exact, [bad[:1] & ~agrees.any() for bad in wrong]

    def _refuse(
        self,
        replay: Replay,
        step: RecordedStep,
        theirs: Outcome,
        wrong: list[Tensor],
        whose: str,
    ) -> None:
        """Refuse a step with a wrong number.

        Args:
            replay: of the environment.
            step: by the engine.
            theirs: the right outcome.
            wrong: where they differ, bool [1, ..] for each part.
            whose: is right.

        Raises:
            WrongStepError: if they differ.
        """
        for part, ours, right, bad in zip(
            PARTS, step.outcome.parts(), theirs.parts(), wrong, strict=True
        ):
            if bad.any():
                j = int(bad[0].nonzero()[0])
                name = self._place(part, j)
                self._raise(replay, step, whose, name, ours[0, j].item(), right[0, j].item())

    def _place(self, part: str, j: int) -> str:
        """Return the name of number ``j`` of a part of an outcome."""
        step, simulation = self._fresh.step, self._vmas.simulation
        return place_name(part, j, step.layout, step.numbers, simulation)

    def _raise(
        self,
        replay: Replay,
        step: RecordedStep,
        whose: str,
        name: str,
        ours: float,
        right: float,
    ) -> None:
        """Raise the error of a wrong number.

        Args:
            replay: of the environment.
            step: by the engine.
            whose: is right.
            name: of the number.
            ours: the engine's.
            right: the right number.

        Raises:
            WrongStepError: always.
        """
        message = (
            f"env.engine: {self._name} differs from {whose} in environment {replay.e}, step "
            f"{step.number} of its episode: {name} is {ours:.6g} instead of {right:.6g}; take "
            "env.engine=eager"
        )
        raise WrongStepError(message, traces(message, replay, self._fresh.step.numbers))


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the process's generators of random numbers after a ``with`` block, also an error."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - scenarios use it
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def as_words(packed: Tensor) -> Tensor:
    """Return the bits of a packed state as int32, so that NaN equals itself."""
    return packed.contiguous().view(torch.int32)


def of_environment(buffers: Buffers, e: int) -> Buffers:
    """Return the steps of one environment on the CPU: buffers of E = 1."""
    return Buffers(*(getattr(buffers, field.name)[e, None].cpu() for field in fields(Buffers)))


def outcome_of(buffers: Buffers, next_seen: Tensor, t: int, values: Tensor) -> Outcome:
    """Return the outcome of step ``t`` of one environment.

    Args:
        buffers: of one environment.
        next_seen: float32 [1, T, R], observations and states before any reset.
        t: the step.
        values: float32 [1, K], of the packed state after the step.
    """
    return Outcome(
        next_seen[:, t],
        buffers.agent_reward[:, t],
        buffers.reward[:, t, None],
        buffers.terminated[:, t, None].float(),
        values,
    )


def near_by(packed: Tensor, numbers: list[PackedNumber]) -> Tensor:
    """Return states [NEARBY, K] near a packed state [1, K]; the first is the state itself."""
    generator = torch.Generator().manual_seed(0)
    shape = (NEARBY, packed.shape[1])
    noise = ROUNDING * (2 * torch.rand(shape, generator=generator) - 1)
    noise[0] = 0
    noise[PERTURBATIONS + 1 :] *= FAR
    moved = packed + noise * packed.abs().clamp(min=0.1)
    moves = torch.tensor([number.dtype == FLOAT for number in numbers])
    return torch.where(moves, moved, packed)


def place_name(
    part: str, j: int, layout: SeenLayout, numbers: list[PackedNumber], simulation: VmasSimulation
) -> str:
    """Return the name of a number of an outcome.

    Args:
        part: one of ``PARTS``.
        j: the number's index in the part.
        layout: of observation and state.
        numbers: of the packed state.
        simulation: of the task.
    """
    agents = [simulation.simulator.agents[i].name for i in simulation.team]
    if part == "state":
        return f"{numbers[j].path}[{numbers[j].place}]"
    if part == "agent_reward":
        return f"the reward of {agents[j]}"
    if part != "seen":
        return {"reward": "the team's reward", "terminated": "terminated"}[part]
    agent, place = divmod(j, layout.observation_dim)
    if agent < layout.n_agents:
        return f"observation[{place}] of {agents[agent]}"
    entity, place = divmod(j - layout.n_agents * layout.observation_dim, len(ENTITY))
    return f"{ENTITY[place]} of {simulation.simulator.world.entities[entity].name} in the state"


def traces(message: str, replay: Replay, numbers: list[PackedNumber]) -> dict[str, Any]:
    """Return the steps of the engine and of VMAS as values that JSON can hold.

    Args:
        message: how they differ.
        replay: the steps.
        numbers: of the packed state.
    """
    steps = [
        {
            "step": step.number,
            "action": step.action[0].tolist(),
            "key": step.key.tolist(),
            "packed_state_before": as_numbers(step.packed, numbers)[0].tolist(),
            "engine": _listed(step.outcome),
            "vmas": _listed(theirs),
        }
        for step, theirs in zip_longest(replay.recorded, replay.by_vmas)
    ]
    names = [f"{number.path}[{number.place}]" for number in numbers]
    return {"message": message, "environment": replay.e, "packed_state": names, "steps": steps}


def _listed(outcome: Outcome | None) -> dict[str, list[float]] | None:
    """Return an outcome of one environment, part by part; None where there is none."""
    if outcome is None:
        return None
    return {name: part[0].tolist() for name, part in zip(PARTS, outcome.parts(), strict=True)}
