"""The shadow check: VMAS replays recorded steps of a run, and the first difference ends the run.

Now and then, for one environment of the batch, the engine's twin takes the recorded actions again
from the recorded state. It must reach the recorded results. Unmodified VMAS of one environment
takes the same steps, each from the twin's state before it.

A check neither reads nor changes the engine's random numbers or state: a run with checks has the
numbers of a run without.
"""

import time
import warnings
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.env_state import EnvState
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber, as_numbers
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.gate import (
    PARTS,
    PERTURBATIONS,
    ROUNDING,
    Outcome,
    differing,
    distance,
    margin,
)
from qmix_trl.envs.compiled.lower.expressions import FLOAT
from qmix_trl.envs.compiled.recorded_steps import (
    RecordedStep,
    Replay,
    of_environment,
    outcome_of,
    place_name,
    traces,
)
from qmix_trl.envs.compiled.trace.pure import static_collisions
from qmix_trl.envs.compiled.vmas_replay import VmasReplay, choice_of
from qmix_trl.envs.vmas_scenarios import generators_restored
from qmix_trl.errors import Refused, WrongStepError, one_line

FIRST_STEPS = 20  # of the first check, which short runs pay for, too
MOST_STEPS = 1000  # of any other check
# VMAS takes a step that differs again from states near by: one exact, ``PERTURBATIONS`` that are a
# rounding away and measure the effect of roundings, and others that are up to ``FAR`` roundings
# away. Near a threshold one of these has the engine's reward or end.
NEARBY, FAR = 16, 16
AGAIN = "its own step, taken again,"  # in messages


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
            with generators_restored():
                self._vmas = VmasReplay(self._fresh, 1, draws=False)
                self._sees_first = self._vmas.determines_observation()
        except Refused as refused:
            self.refusal = str(refused)
        except Exception as error:  # the scenario's code may raise anything
            self.refusal = f"VMAS fails in one environment: {one_line(error)}"
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
        self.refusal = reason
        self.forget()

    def forget(self) -> None:
        """End the present replay: the environments continue from another state."""
        self._start = self._replay = None

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
        """Compare the steps of buffers with VMAS's and with the twin's."""
        replay = self._replay
        if replay is None or not replay.goes_on(start.steps, start.key):
            replay = self._replay = self._new_replay(start.steps)
        else:
            self._compare_state(replay, start.packed)
        recorded = of_environment(start.buffers, replay.e)
        ends = recorded.done[0].nonzero()[:, 0].tolist()
        n_steps = min(replay.left, ends[0] + 1 if ends else recorded.done.shape[1])
        twin = self._twin = self._twin or self._engine.twin()
        twin.env_state.jump(start.packed, start.key)
        twin.env_state.steps.copy_(start.steps)
        for t in range(n_steps):
            twins = self._take_again(twin, replay, start.buffers.action[:, t], recorded, t)
            try:
                self._compare_with_vmas(replay, recorded.seen[:, t])
            except WrongStepError:
                raise
            except Exception as error:  # the scenario's code may raise anything
                self.stop(f"VMAS fails in a replay: {one_line(error)}")
                warnings.warn(f"env.verify: verified: {self.how}", stacklevel=5)
                return
            self._compare_with_twin(replay, twins)
            self._check_end(replay, recorded, t)
            self.verified_steps += 1
        replay.left -= n_steps
        if replay.left == 0 or ends:
            self._replay = None

    def _new_replay(self, steps: Tensor) -> Replay:
        """Return the replay of an environment, one that begins an episode if there is any.

        Args:
            steps: int32 [E], since each environment's last reset.
        """
        begins = (steps == 0).cpu()
        among = (begins if begins.any() else torch.ones_like(begins)).nonzero()[:, 0]
        e = int(among[torch.randint(len(among), (), generator=self._generator)])
        most = FIRST_STEPS if self.verified_steps == 0 else MOST_STEPS
        return Replay(e, int(steps[e]) + 1, most)

    def _take_again(
        self, twin: Verifiable, replay: Replay, action: Tensor, recorded: Buffers, t: int
    ) -> Outcome:
        """Take a recorded step again by the twin; add the recorded one to the replay.

        Args:
            twin: in the state before the step.
            replay: of the environment.
            action: int64 [E, N], of all environments.
            recorded: the steps of the environment.
            t: the step.

        Returns:
            the twin's outcome.
        """
        e, state, step = replay.e, twin.env_state, self._fresh.step
        number = replay.recorded[-1].number + 1 if replay.recorded else replay.first
        packed, key = state.packed[e, None].cpu().clone(), state.key.cpu().clone()
        again = Buffers.empty(len(action), 1, step.layout, action.device)
        again.action[:, 0] = action
        twin.advance(again, 0, 1, reset_when_done=False)
        then = state.packed[e, None].cpu().clone()
        values = as_numbers(then, step.numbers)
        outcome = outcome_of(recorded, recorded.next_seen, t, values)
        replay.recorded.append(
            RecordedStep(number, packed, then, recorded.action[:, t], key, outcome)
        )
        one = of_environment(again, e)
        return outcome_of(one, one.seen[:, 1:], 0, values)

    def _compare_with_twin(self, replay: Replay, twins: Outcome) -> None:
        """Compare the last step with the twin's outcome.

        Raises:
            WrongStepError: if they differ.
        """
        ours = replay.recorded[-1].outcome.parts()
        self._refuse(replay, twins, self._unequal(ours, twins.parts()), AGAIN)

    def _compare_state(self, replay: Replay, packed: Tensor) -> None:
        """Compare the engine's packed state float32 [E, K] with the twin's after the last step.

        Raises:
            WrongStepError: if they differ.
        """
        numbers = self._fresh.step.numbers
        ours = as_numbers(packed[replay.e, None].cpu(), numbers)
        right = as_numbers(replay.recorded[-1].then, numbers)
        (wrong,) = self._unequal([ours], [right])
        if wrong.any():
            j = int(wrong[0].nonzero()[0])
            place = self._place("state", j)
            self._raise(replay, AGAIN, place, ours[0, j].item(), right[0, j].item())

    def _unequal(self, ours: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        """Return where results of the engine and of its twin differ, bool [1, ..] each."""
        if self._fresh.device.type == "cuda":  # another launch may round otherwise
            return differing(ours, right)
        return [(a != b) & ~(a.isnan() & b.isnan()) for a, b in zip(ours, right, strict=True)]

    def _check_end(self, replay: Replay, recorded: Buffers, t: int) -> None:
        """Compare the recorded end of step ``t`` with the time limit and the termination.

        Raises:
            WrongStepError: if they differ.
        """
        is_last = replay.recorded[-1].number >= self._max_steps
        ends = is_last or bool(recorded.terminated[0, t])
        for name, flags, right in (
            ("truncated", recorded.truncated, is_last),
            ("done", recorded.done, ends),
        ):
            if bool(flags[0, t]) != right:
                self._raise(replay, "its time limit", name, not right, right)

    def _compare_with_vmas(self, replay: Replay, seen: Tensor) -> None:
        """Let VMAS take the last recorded step.

        Args:
            replay: of the environment.
            seen: float32 [1, R], observation and state before the step.

        Raises:
            WrongStepError: if the outcomes differ.
        """
        step = replay.recorded[-1]
        if len(replay.recorded) == 1:
            self._vmas.begin(choice_of(step.packed, self._fresh))
            if step.number == 1 and self._sees_first:
                self._compare_first(replay, seen)
        theirs = self._vmas.step(step.packed, step.action, step.key, replay.e)
        wrong = differing(step.outcome.parts(), theirs.parts())
        if any(bad.any() for bad in wrong):
            theirs, wrong = self._from_near_by(replay)
        replay.by_vmas.append(theirs)
        self._refuse(replay, theirs, wrong, "VMAS")

    def _compare_first(self, replay: Replay, seen: Tensor) -> None:
        """Compare the first observation of an episode with VMAS's.

        Args:
            replay: of the environment.
            seen: float32 [1, R], observation and state before the first step.

        Raises:
            WrongStepError: if they differ.
        """
        theirs = self._vmas.observe(replay.recorded[0].packed)
        (wrong,) = differing([seen], [theirs])
        if wrong.any():
            j = int(wrong[0].nonzero()[0])
            name = f"after the reset {self._place('seen', j)}"
            self._raise(replay, "VMAS", name, seen[0, j].item(), theirs[0, j].item())

    def _from_near_by(self, replay: Replay) -> tuple[Outcome, list[Tensor]]:
        """Take the last step by VMAS from states near by; every pair that may collide counts.

        Returns:
            the outcome of the exact state, and where the engine's differs, bool [1, ..] for each
            part: nowhere if it is the outcome of a state near by.
        """
        if self._near is None:
            self._near = VmasReplay(self._fresh, NEARBY, draws=True)
        near, (*before, step) = self._near, replay.recorded
        if replay.near_steps == 0:
            near.begin(choice_of(replay.recorded[0].packed, self._fresh))
        with static_collisions(near.simulation.simulator):
            for other in before[replay.near_steps :]:  # for what VMAS counts itself
                states = other.packed.expand(NEARBY, -1)
                near.step(states, other.action.expand(NEARBY, -1), other.key, replay.e)
            states = near_by(step.packed, self._fresh.step.numbers)
            actions = step.action.expand(NEARBY, -1)
            found = near.step(states, actions, step.key, replay.e, walks=True).parts()
        replay.near_steps = len(replay.recorded)
        spread = [
            distance(part[1 : PERTURBATIONS + 1], part[:1]).amax(0, keepdim=True) for part in found
        ]
        margins = [margin(most, part[:1]) for most, part in zip(spread, found, strict=True)]
        wrong = differing(step.outcome.parts(), found, margins)  # [NEARBY, ..] each
        agrees = ~torch.stack([bad.any(1) for bad in wrong]).any(0)  # [NEARBY]
        exact = Outcome(*(part[:1] for part in found))
        return exact, [bad[:1] & ~agrees.any() for bad in wrong]

    def _refuse(self, replay: Replay, theirs: Outcome, wrong: list[Tensor], whose: str) -> None:
        """Refuse the last step if a number is wrong.

        Args:
            replay: of the environment.
            theirs: the right outcome.
            wrong: where they differ, bool [1, ..] for each part.
            whose: is right.

        Raises:
            WrongStepError: if they differ.
        """
        parts = replay.recorded[-1].outcome.parts(), theirs.parts(), wrong
        for name, ours, right, bad in zip(PARTS, *parts, strict=True):
            if bad.any():
                j = int(bad[0].nonzero()[0])
                place = self._place(name, j)
                self._raise(replay, whose, place, ours[0, j].item(), right[0, j].item())

    def _place(self, part: str, j: int) -> str:
        """Return the name of number ``j`` of a part of an outcome."""
        step, simulation = self._fresh.step, self._vmas.simulation
        return place_name(part, j, step.layout, step.numbers, simulation)

    def _raise(self, replay: Replay, whose: str, name: str, ours: float, right: float) -> None:
        """Raise the error of a wrong number in the last step.

        Args:
            replay: of the environment.
            whose: is right.
            name: of the number.
            ours: the engine's.
            right: the right number.

        Raises:
            WrongStepError: always.
        """
        number = replay.recorded[-1].number
        message = (
            f"env.engine: {self._name} differs from {whose} in environment {replay.e}, step "
            f"{number} of its episode: {name} is {ours:.6g} instead of {right:.6g}; take "
            "env.engine=eager"
        )
        raise WrongStepError(message, traces(message, replay, self._fresh.step.numbers))


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
