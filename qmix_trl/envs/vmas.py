"""VMAS scenarios as TorchRL environments under the canonical contract.

TorchRL's own ``VmasEnv`` makes the time limit a termination, has neither state nor team reward,
and draws from one random stream for all environments of a process; hence an environment here.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from qmix_trl import keys
from qmix_trl.envs.contract import (
    STATES,
    EnvDims,
    check_choice,
    check_keywords,
    check_sizes,
    resets,
    set_flags,
    set_specs,
)
from qmix_trl.envs.vmas_scenarios import agent_groups, load_scenario, scenario_keywords
from qmix_trl.errors import ConfigError, nearest, one_line

TEAM_REWARDS = ("mean", "sum", "shared")


def make_env(
    *,
    scenario: str | BaseScenario,
    n_envs: int,
    max_steps: int,
    state: str,
    team_reward: str,
    seed: int,
    device: torch.device | str = "cpu",
    group: str | None = None,
    scenario_kwargs: Mapping[str, Any] | None = None,
    reset_when_done: bool = True,
) -> "VmasTeam":
    """Return ``n_envs`` copies of a VMAS scenario with discrete actions, stepped together.

    Args:
        scenario: a name in ``vmas_scenarios.SCENARIOS``, or a scenario of one's own.
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates.
        state: "world", every entity's position, velocity, rotation and angular velocity; or
            "observations", those of the team side by side.
        team_reward: "mean" or "sum" of the agents' rewards, or "shared", the first agent's, for
            a scenario that gives all of them the same.
        seed: of the environment's random stream, which is its own.
        device: of the simulation.
        group: the group of agents that is the team, where there are several; the others then
            do nothing. None where there is one.
        scenario_kwargs: the scenario's own keywords.
        reset_when_done: an environment that is done is reset by itself. If not, it runs on until
            all are reset together; what it gives in between belongs to no episode.

    Raises:
        ConfigError: if the scenario, a keyword or the group is unknown, a size is below 1, or
            an option is none of the above.
    """
    check_sizes(n_envs=n_envs, max_steps=max_steps)
    check_choice("state", state, STATES)
    check_choice("team_reward", team_reward, TEAM_REWARDS)
    name = scenario if isinstance(scenario, str) else type(scenario).__name__
    scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
    scenario_kwargs = dict(scenario_kwargs or {})
    if scenario_kwargs:
        check_keywords(f"VMAS scenario {name!r}", scenario_keywords(scenario), scenario_kwargs)
    return VmasTeam(
        name,
        scenario,
        n_envs=n_envs,
        max_steps=max_steps,
        state=state,
        team_reward=team_reward,
        seed=seed,
        device=device,
        group=group,
        scenario_kwargs=scenario_kwargs,
        reset_when_done=reset_when_done,
    )


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


class VmasTeam(EnvBase):
    """A VMAS scenario whose team of agents acts in discrete steps; made by ``make_env``."""

    batch_locked = True

    def __init__(
        self,
        name: str,
        scenario: BaseScenario,
        *,
        n_envs: int,
        max_steps: int,
        state: str,
        team_reward: str,
        seed: int,
        device: torch.device | str,
        group: str | None,
        scenario_kwargs: Mapping[str, Any],
        reset_when_done: bool,
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([n_envs]))
        self.name = name
        self.max_steps = max_steps
        self.reset_when_done = reset_when_done
        self._state = state
        self._team_reward = team_reward
        self._random_state = self._seeded_state(seed)
        with self._own_randomness():
            self.simulator = self._simulate(scenario, seed, scenario_kwargs)
        self.team = self._choose_team(group)
        self._steps = torch.zeros(n_envs, 1, dtype=torch.int64, device=self.device)
        self._make_specs()

    def _simulate(
        self, scenario: BaseScenario, seed: int, scenario_kwargs: Mapping[str, Any]
    ) -> Environment:
        try:
            simulator = Environment(
                scenario,
                num_envs=self.batch_size[0],
                device=self.device,
                continuous_actions=False,
                seed=seed,
                **scenario_kwargs,
            )
            # Some values are first used in a step.
            idle = torch.zeros(*self.batch_size, 1, dtype=torch.int64, device=self.device)
            simulator.step([idle.clone() for _ in simulator.agents])
            simulator.reset(seed=seed)
            return simulator
        # What a scenario makes of a value that it cannot use is anything.
        except (TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
            raise ConfigError(
                f"env.scenario_kwargs: VMAS scenario {self.name!r} cannot be made with "
                f"{dict(scenario_kwargs)}: {one_line(error)}"
            ) from error

    def _choose_team(self, group: str | None) -> list[int]:
        groups = agent_groups([agent.name for agent in self.simulator.agents])
        listed = ", ".join(f"{g} ({len(members)})" for g, members in groups.items())
        if group is None and len(groups) > 1:
            raise ConfigError(
                f"env.group: VMAS scenario {self.name!r} has agents in several groups: {listed}; "
                f"choose the team, e.g. env.group={next(iter(groups))}; the others do nothing"
            )
        if group is not None and group not in groups:
            raise ConfigError(
                f"env.group: VMAS scenario {self.name!r} has no group {group!r}"
                f"{nearest(group, groups)}; it has: {listed}"
            )
        return groups[next(iter(groups)) if group is None else group]

    def _make_specs(self) -> None:
        n_actions = {self.simulator.action_space[i].n for i in self.team}
        if len(n_actions) > 1:
            raise ConfigError(
                f"VMAS scenario {self.name!r}: expected one number of actions for all agents of "
                f"the team, got {sorted(n_actions)}"
            )
        first = self._observe()
        _, n_agents, observation_dim = first.get(keys.OBSERVATION).shape
        dims = EnvDims(
            n_agents=n_agents,
            observation_dim=observation_dim,
            n_actions=n_actions.pop(),
            state_shape=first.get(keys.STATE).shape[1:],
        )
        set_specs(self, dims)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        reset = resets(self, tensordict, reset_when_done=self.reset_when_done)  # [E, 1]
        # Without resets what was seen last stands: to observe again could draw noise again.
        if reset.any():
            with self._own_randomness():
                self._reset_simulator(reset[:, 0])
            self._observed = self._observe()
        self._steps.masked_fill_(reset, 0)
        packed = self._observed.copy().set(keys.IS_INIT, reset)
        return set_flags(packed, torch.zeros_like(reset), torch.zeros_like(reset))

    def _reset_simulator(self, reset: Tensor) -> None:
        """Reset the environments [E] that are asked for, all together if it is all of them."""
        if reset.all():
            self.simulator.reset(return_observations=False)
            return
        for i in reset.nonzero()[:, 0].tolist():
            self.simulator.reset_at(i, return_observations=False)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get(keys.ACTION)  # [E, N]
        actions = [torch.zeros_like(action[:, :1]) for _ in self.simulator.agents]
        for column, i in enumerate(self.team):
            actions[i] = action[:, column, None]
        with self._own_randomness():
            observations, rewards, terminated, _ = self.simulator.step(actions)
        self._steps += 1
        terminated = terminated.reshape(-1, 1)
        truncated = self._steps >= self.max_steps
        reward = torch.stack([rewards[i].reshape(-1, 1) for i in self.team], 1)  # [E, N, 1]
        self._observed = self._pack(observations)
        packed = self._observed.copy()
        packed.set(keys.AGENT_REWARD, reward)
        packed.set(keys.REWARD, self._of_team(reward))
        packed.set(keys.IS_INIT, torch.zeros_like(terminated))
        return set_flags(packed, terminated, truncated)

    def _of_team(self, reward: Tensor) -> Tensor:
        """Return the team's reward [E, 1] from the agents' [E, N, 1]."""
        if self._team_reward == "shared":
            return reward[:, 0]
        return reward.mean(1) if self._team_reward == "mean" else reward.sum(1)

    def _observe(self) -> TensorDict:
        with self._own_randomness():
            (observations,) = self.simulator.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        return self._pack(observations)

    def _pack(self, observations: list[Tensor | dict[str, Tensor]]) -> TensorDict:
        team = [flat_observation(observations[i]) for i in self.team]
        if len({part.shape for part in team}) > 1:
            raise ConfigError(
                f"VMAS scenario {self.name!r}: expected observations of one size for all agents "
                f"of the team, got {[part.shape[-1] for part in team]}"
            )
        observation = torch.stack(team, 1)  # [E, N, O]
        state = observation.flatten(1) if self._state == "observations" else None
        packed = TensorDict(
            {"agents": TensorDict({}, observation.shape[:2], device=self.device)},
            self.batch_size,
            device=self.device,
        )
        packed.set(keys.OBSERVATION, observation)
        return packed.set(keys.STATE, world_state(self.simulator) if state is None else state)

    def _set_seed(self, seed: int | None) -> None:
        self._random_state = self._seeded_state(0 if seed is None else seed)

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
    def _own_randomness(self) -> Iterator[None]:
        """Lend VMAS this environment's random stream; its own is one for the whole process."""
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
