"""One VMAS simulator, its team of agents, and a random stream of its own."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment.environment import Environment, local_seed
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.vmas_scenarios import agent_groups
from qmix_trl.errors import ConfigError, nearest, one_line

TEAM_REWARDS = ("mean", "sum", "shared")


@dataclass(frozen=True)
class Seen:
    """What can be observed of E environments.

    Attributes:
        observation: float [E, N, O].
        state: float [E, S], what the mixer sees.
    """

    observation: Tensor
    state: Tensor


@dataclass(frozen=True)
class Stepped:
    """What a step of E environments gives, before any reset.

    Attributes:
        seen: behind the step.
        agent_reward: float [E, N, 1].
        reward: float [E, 1], the team's.
        terminated: bool [E, 1].
    """

    seen: Seen
    agent_reward: Tensor
    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is simulated, whatever the number of environments.

    Attributes:
        name: of the scenario.
        scenario: a scenario that is not yet simulated.
        scenario_kwargs: its keywords.
        state: one of ``contract.STATES``.
        team_reward: "mean", "sum" or "shared".
        group: the group of agents that is the team; None where there is one.
    """

    name: str
    scenario: BaseScenario
    scenario_kwargs: Mapping[str, Any]
    state: str
    team_reward: str
    group: str | None


class VmasSimulation:
    """``n_envs`` copies of a task, stepped together by unmodified VMAS.

    Args:
        task: what is simulated.
        n_envs: E.
        seed: of the random stream, which is this simulation's own.
        device: of the simulation.

    Raises:
        ConfigError: if the scenario cannot be made, or has no such team.
    """

    def __init__(self, task: Task, n_envs: int, seed: int, device: torch.device) -> None:
        self.task = task
        self.n_envs = n_envs
        self.device = device
        self._random_state = self._seeded_state(seed)
        with self.own_randomness():
            self.simulator = self._simulate(seed)
        self.team = self._choose_team()
        self.n_actions = self._count_actions()

    def _simulate(self, seed: int) -> Environment:
        task = self.task
        try:
            simulator = Environment(
                deepcopy(task.scenario),  # a scenario holds its simulation
                num_envs=self.n_envs,
                device=self.device,
                continuous_actions=False,
                seed=seed,
                **task.scenario_kwargs,
            )
            # Some values are first used in a step.
            idle = torch.zeros(self.n_envs, 1, dtype=torch.int64, device=self.device)
            simulator.step([idle.clone() for _ in simulator.agents])
            simulator.reset(seed=seed)
            return simulator
        # What a scenario makes of a value that it cannot use is anything.
        except (TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
            raise ConfigError(
                f"env.scenario_kwargs: VMAS scenario {task.name!r} cannot be made with "
                f"{dict(task.scenario_kwargs)}: {one_line(error)}"
            ) from error

    def _choose_team(self) -> list[int]:
        group, name = self.task.group, self.task.name
        groups = agent_groups([agent.name for agent in self.simulator.agents])
        listed = ", ".join(f"{g} ({len(members)})" for g, members in groups.items())
        if group is None and len(groups) > 1:
            raise ConfigError(
                f"env.group: VMAS scenario {name!r} has agents in several groups: {listed}; "
                f"choose the team, e.g. env.group={next(iter(groups))}; the others do nothing"
            )
        if group is not None and group not in groups:
            raise ConfigError(
                f"env.group: VMAS scenario {name!r} has no group {group!r}"
                f"{nearest(group, groups)}; it has: {listed}"
            )
        return groups[next(iter(groups)) if group is None else group]

    def _count_actions(self) -> int:
        counts = {self.simulator.action_space[i].n for i in self.team}
        if len(counts) > 1:
            raise ConfigError(
                f"VMAS scenario {self.task.name!r}: expected one number of actions for all agents "
                f"of the team, got {sorted(counts)}"
            )
        return counts.pop()

    def reset(self) -> None:
        """Begin all environments anew."""
        with self.own_randomness():
            self.simulator.reset(return_observations=False)

    def reset_at(self, i: int) -> None:
        """Begin one environment anew."""
        with self.own_randomness():
            self.simulator.reset_at(i, return_observations=False)

    def observe(self) -> Seen:
        """Return what can be observed."""
        with self.own_randomness():
            (observations,) = self.simulator.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        return self._seen(observations)

    def step(self, action: Tensor) -> Stepped:
        """Take one step; agents that are not of the team do nothing.

        Args:
            action: int64 [E, N].
        """
        with self.own_randomness(), local_seed(Environment.vmas_random_state):
            return self.pure_step(action)

    def pure_step(self, action: Tensor) -> Stepped:
        """Take one step with whatever random numbers torch gives now."""
        actions = [torch.zeros_like(action[:, :1]) for _ in self.simulator.agents]
        for column, i in enumerate(self.team):
            actions[i] = action[:, column, None]
        unseeded_step = Environment.step.__wrapped__  # what VMAS wraps into its random state
        observations, rewards, terminated, _ = unseeded_step(self.simulator, actions)
        agent_reward = torch.stack([rewards[i].reshape(-1, 1) for i in self.team], 1)  # [E, N, 1]
        return Stepped(
            self._seen(observations),
            agent_reward,
            self._of_team(agent_reward),
            terminated.reshape(-1, 1),
        )

    def _of_team(self, reward: Tensor) -> Tensor:
        """Return the team's reward [E, 1] from the agents' [E, N, 1]."""
        if self.task.team_reward == "shared":
            return reward[:, 0]
        return reward.mean(1) if self.task.team_reward == "mean" else reward.sum(1)

    def _seen(self, observations: list[Tensor | dict[str, Tensor]]) -> Seen:
        team = [flat_observation(observations[i]) for i in self.team]
        if len({part.shape for part in team}) > 1:
            raise ConfigError(
                f"VMAS scenario {self.task.name!r}: expected observations of one size for all "
                f"agents of the team, got {[part.shape[-1] for part in team]}"
            )
        observation = torch.stack(team, 1)  # [E, N, O]
        if self.task.state == "observations":
            return Seen(observation, observation.flatten(1))
        return Seen(observation, world_state(self.simulator))

    def random_state(self) -> dict[str, Tensor]:
        """Return the random stream's state."""
        torch_state, (_, words, *rest), (_, ours, gauss), *cuda = self._random_state
        state = {
            "random torch": torch_state,
            "random numpy words": torch.from_numpy(words.astype(np.int64)),
            "random numpy rest": torch.tensor(rest, dtype=torch.float64),
            "random python words": torch.tensor(ours),
            "random python gauss": torch.tensor(
                [] if gauss is None else [gauss], dtype=torch.float64
            ),
        }
        return {**state, **({"random cuda": cuda[0]} if cuda else {})}

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with a stream from what ``random_state`` returned."""
        words = state["random numpy words"].numpy().astype(np.uint32)
        place, has_gauss, gauss = state["random numpy rest"].tolist()
        ours = tuple(state["random python words"].tolist())
        last = state["random python gauss"].tolist()
        self._random_state[:3] = [
            state["random torch"].clone(),
            ("MT19937", words, int(place), int(has_gauss), gauss),
            (3, ours, last[0] if last else None),
        ]
        if "random cuda" in state:
            self._random_state[3] = state["random cuda"].clone()

    def seed(self, seed: int) -> None:
        """Begin another random stream."""
        self._random_state = self._seeded_state(seed)

    def _seeded_state(self, seed: int) -> list:
        """Return new states of the generators that scenarios draw from."""
        state = [
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(seed).get_state(),
            random.Random(seed).getstate(),
        ]
        if self.device.type == "cuda":
            state.append(torch.Generator(self.device).manual_seed(seed).get_state())
        return state

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Lend VMAS this simulation's random stream; its own is one for the whole process."""
        shared = Environment.vmas_random_state
        outside, shared[:] = list(shared), self._random_state[:3]
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            outside_cuda = torch.cuda.get_rng_state(self.device)
            torch.cuda.set_rng_state(self._random_state[3], self.device)
        try:
            yield
        finally:
            self._random_state[:3], shared[:] = list(shared), outside
            if on_cuda:
                self._random_state[3] = torch.cuda.get_rng_state(self.device)
                torch.cuda.set_rng_state(outside_cuda, self.device)


def world_state(env: Environment) -> Tensor:
    """Return the state of everything that can be seen: float [E, S], 6 numbers for each entity."""
    parts = []
    for entity in env.world.entities:
        body = entity.state
        parts += [body.pos, body.vel, body.rot, body.ang_vel]  # [E, 2], [E, 2], [E, 1], [E, 1]
    return torch.cat(parts, -1)


def flat_observation(observation: Tensor | dict[str, Tensor]) -> Tensor:
    """Return one agent's observation as float [E, O]; entries of a dictionary side by side."""
    if isinstance(observation, dict):
        return torch.cat([flat_observation(part) for part in observation.values()], -1)
    return observation.flatten(1)
