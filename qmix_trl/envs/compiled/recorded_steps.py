"""Recorded steps of one environment, by the engine and by VMAS."""

from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber, as_numbers
from qmix_trl.envs.compiled.gate import PARTS, Outcome
from qmix_trl.envs.vmas_simulation import VmasSimulation

# Of one environment: position, velocity, rotation and angular velocity of an entity.
ENTITY = ("x", "y", "velocity x", "velocity y", "rotation", "angular velocity")


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
        first: the number of its first step within its episode.
        left: the greatest number of steps to check.

    Attributes:
        recorded: by the engine, so far.
        by_vmas: the outcomes of VMAS, so far.
        near_steps: the number of steps that VMAS has taken from states near by.
    """

    def __init__(self, e: int, first: int, left: int) -> None:
        self.e = e
        self.first = first
        self.left = left
        self.recorded: list[RecordedStep] = []
        self.by_vmas: list[Outcome] = []
        self.near_steps = 0

    def goes_on(self, steps: Tensor, key: Tensor) -> bool:
        """Return whether an engine's next step follows the last one that was recorded.

        Args:
            steps: int32 [E], since each environment's last reset.
            key: int64 [2], of the next step's random numbers.
        """
        last = self.recorded[-1]
        return int(key[1]) == int(last.key[1]) + 1 and int(steps[self.e]) == last.number


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
    if j >= layout.mask_at:
        agent, action = divmod(j - layout.mask_at, layout.mask_dim)
        return f"the mask of action {action} of {agents[agent]}"
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
