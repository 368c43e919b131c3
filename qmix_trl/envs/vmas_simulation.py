"""A VMAS simulator with a team of agents and its own random stream."""

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
    """Observations and states of E environments.

    Attributes:
        observation: float [E, N, O].
        state: float [E, S], the state that the mixer sees.
    """

    observation: Tensor
    state: Tensor


@dataclass(frozen=True)
class Stepped:
    """The result of one step of E environments, before any reset.

    Attributes:
        seen: the observations and states after the step.
        agent_reward: float [E, N, 1].
        reward: float [E, 1], the team's reward.
        terminated: bool [E, 1].
    """

    seen: Seen
    agent_reward: Tensor
    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True, kw_only=True)
class Task:
    """A scenario with its settings, for any number of environments.

    Attributes:
        name: the scenario's name.
        scenario: a scenario that no simulator holds yet.
        scenario_kwargs: its keywords.
        state: one of ``contract.STATES``.
        team_reward: one of ``TEAM_REWARDS``.
        group: the group of agents that is the team; None if there is only one group.
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
        task: the scenario and its settings.
        n_envs: E.
        seed: the seed of the simulation's own random stream.
        device: the device of the simulation.
        warm_up: take a step and reset, since some scenarios set attributes only in their first
            step. Without, the simulation is as VMAS makes it.

    Raises:
        ConfigError: if the scenario cannot be made, has no such team, or the agents of the team
            have different numbers of actions.
    """

    def __init__(
        self, task: Task, n_envs: int, seed: int, device: torch.device, *, warm_up: bool = True
    ) -> None:
        self.task = task
        self.n_envs = n_envs
        self.device = device
        self._random_state = self._seeded_state(seed)
        with self.own_randomness():
            self.simulator = self._simulate(seed, warm_up=warm_up)
        self.team = self._choose_team()
        self.n_actions = self._count_actions()

    def _simulate(self, seed: int, *, warm_up: bool) -> Environment:
        task = self.task
        try:
            simulator = Environment(
                deepcopy(task.scenario),  # as a simulator keeps its state in its scenario
                num_envs=self.n_envs,
                device=self.device,
                continuous_actions=False,
                seed=seed,
                **task.scenario_kwargs,
            )
            if warm_up:
                idle = torch.zeros(self.n_envs, 1, dtype=torch.int64, device=self.device)
                simulator.step([idle.clone() for _ in simulator.agents])
                simulator.reset(seed=seed)
            return simulator
        # A scenario's code can raise any of these on a keyword that it cannot use.
        except (TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
            raise ConfigError(
                f"env.scenario_kwargs: VMAS scenario {task.name!r} cannot be made with "
                f"{dict(task.scenario_kwargs)}: {one_line(error)}"
            ) from error

    def _choose_team(self) -> list[int]:
        """Return the indices of the team's agents."""
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
        """Return the number of actions of each agent of the team."""
        counts = {self.simulator.action_space[i].n for i in self.team}
        if len(counts) > 1:
            raise ConfigError(
                f"VMAS scenario {self.task.name!r}: expected one number of actions for all agents "
                f"of the team, got {sorted(counts)}"
            )
        return counts.pop()

    def reset(self) -> None:
        """Reset all environments."""
        with self.own_randomness():
            self.simulator.reset(return_observations=False)

    def reset_at(self, i: int) -> None:
        """Reset environment i."""
        with self.own_randomness():
            self.simulator.reset_at(i, return_observations=False)

    def observe(self) -> Seen:
        """Return the present observations and states."""
        with self.own_randomness():
            (observations,) = self.simulator.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        return self._seen(observations)

    def step(self, action: Tensor) -> Stepped:
        """Take one step by actions int64 [E, N]; agents outside the team do nothing."""
        with self.own_randomness(), local_seed(Environment.vmas_random_state):
            return self.pure_step(action)

    def pure_step(self, action: Tensor) -> Stepped:
        """Take one step by actions int64 [E, N], drawing from torch's present generator."""
        actions = [torch.zeros_like(action[:, :1]) for _ in self.simulator.agents]
        for column, i in enumerate(self.team):
            actions[i] = action[:, column, None]
        unseeded_step = Environment.step.__wrapped__  # without VMAS's own random stream
        observations, rewards, terminated, _ = unseeded_step(self.simulator, actions)
        agent_reward = torch.stack([rewards[i].reshape(-1, 1) for i in self.team], 1)  # [E, N, 1]
        return Stepped(
            self._seen(observations),
            agent_reward,
            self._team_reward(agent_reward),
            terminated.reshape(-1, 1),
        )

    def _team_reward(self, agent_reward: Tensor) -> Tensor:
        """Return the team's reward [E, 1] from the agents' rewards [E, N, 1]."""
        if self.task.team_reward == "shared":
            return agent_reward[:, 0]
        return agent_reward.mean(1) if self.task.team_reward == "mean" else agent_reward.sum(1)

    def _seen(self, observations: list[Tensor | dict[str, Tensor]]) -> Seen:
        """Return the team's observations and the state, given all agents' observations."""
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
        """Return the state of the random stream as tensors."""
        torch_state, numpy_state, python_state, *cuda = self._random_state
        _, words, *rest = numpy_state
        _, python_words, gauss = python_state
        state = {
            "random torch": torch_state,
            "random numpy words": torch.from_numpy(words.astype(np.int64)),
            "random numpy rest": torch.tensor(rest, dtype=torch.float64),
            "random python words": torch.tensor(python_words),
            "random python gauss": torch.tensor(
                [] if gauss is None else [gauss], dtype=torch.float64
            ),
        }
        if cuda:
            state["random cuda"] = cuda[0]
        return state

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the random stream to a state that ``random_state`` returned.

        A state saved on the CPU has no numbers of a GPU: a seed for them is drawn from it.
        """
        words = state["random numpy words"].numpy().astype(np.uint32)
        place, has_gauss, gauss = state["random numpy rest"].tolist()
        python_words = tuple(state["random python words"].tolist())
        python_gauss = state["random python gauss"].tolist()
        self._random_state[:3] = [
            state["random torch"].clone(),
            ("MT19937", words, int(place), int(has_gauss), gauss),
            (3, python_words, python_gauss[0] if python_gauss else None),
        ]
        if self.device.type == "cuda":
            self._random_state[3] = self._cuda_state(state)

    def _cuda_state(self, state: Mapping[str, Tensor]) -> Tensor:
        if "random cuda" in state:
            return state["random cuda"].clone()
        generator = torch.Generator()
        generator.set_state(state["random torch"])
        seed = int(torch.randint(2**62, (), generator=generator))
        return torch.Generator(self.device).manual_seed(seed).get_state()

    def seed(self, seed: int) -> None:
        """Start a new random stream."""
        self._random_state = self._seeded_state(seed)

    def _seeded_state(self, seed: int) -> list:
        """Return the seeded states of torch, NumPy, Python and, on a GPU, CUDA."""
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
        """Let VMAS draw from this simulation's random stream within a ``with`` block.

        VMAS itself has one random stream for the whole process, which is restored afterwards.
        """
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
    """Return the state of the world: float [E, S] with 6 numbers for each entity."""
    parts = []
    for entity in env.world.entities:
        body = entity.state
        parts += [body.pos, body.vel, body.rot, body.ang_vel]  # [E, 2], [E, 2], [E, 1], [E, 1]
    return torch.cat(parts, -1)


def flat_observation(observation: Tensor | dict[str, Tensor]) -> Tensor:
    """Return one agent's observation as float [E, O]; dictionary entries are concatenated."""
    if isinstance(observation, dict):
        return torch.cat([flat_observation(part) for part in observation.values()], -1)
    return observation.flatten(1)
