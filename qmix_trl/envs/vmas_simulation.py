"""A VMAS simulator with a team of agents."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment.environment import Environment
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.others import NO_OP, Acting, Simulation, acting, forced
from qmix_trl.envs.scenario_copies import copied
from qmix_trl.envs.scenario_errors import errors_told
from qmix_trl.envs.scenario_outputs import Observation, ScenarioOutputs, stacked
from qmix_trl.envs.time_limit import ended_within
from qmix_trl.envs.vmas_random_stream import VmasRandomStream
from qmix_trl.envs.vmas_scenarios import ALL, agent_groups, generators_restored, instance_of
from qmix_trl.errors import ConfigError, nearest

TEAM_REWARDS = ("mean", "sum", "shared")
RESET_SECONDS = 60.0  # in which a reset has to end


@dataclass(frozen=True)
class Seen:
    """Observations and states of E environments.

    Attributes:
        observation: float [E, N, O].
        state: float [E, S], the state that the mixer sees.
        mask: float [E, N, A], 1 for available actions; None if all are.
    """

    observation: Tensor
    state: Tensor
    mask: Tensor | None = None

    @property
    def state_and_mask(self) -> Tensor:
        """The state with the mask behind it: float [E, S] or [E, S + N A]."""
        return self.state if self.mask is None else torch.cat([self.state, self.mask.flatten(1)], 1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Stepped:
    """The result of one step of E environments, before any reset.

    Attributes:
        seen: the observations and states after the step.
        agent_reward: float [E, N, 1].
        reward: float [E, 1], the team's reward.
        terminated: bool [E, 1].
        infos: a dictionary for each agent of the scenario, as it returned them.
    """

    seen: Seen
    agent_reward: Tensor
    reward: Tensor
    terminated: Tensor
    infos: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A scenario with its settings, for any number of environments.

    Attributes:
        name: the scenario's name.
        scenario: a scenario that no simulator holds yet.
        scenario_kwargs: its keywords.
        state: one of ``contract.STATES``.
        team_reward: one of ``TEAM_REWARDS``.
        group: the group of agents that is the team, or ``ALL``; None if there is only one group.
        made_by: the class of which each simulation makes its own scenario; None if simulations
            copy ``scenario``.
        others: the actions of the agents outside the team: one of ``others.OTHERS``, or a function
            that returns them for a simulation.
        actions_per_dimension: the number of actions for each dimension of an agent's force, odd;
            None for the scenario's own.
    """

    name: str
    scenario: BaseScenario
    scenario_kwargs: Mapping[str, Any]
    state: str
    team_reward: str
    group: str | None
    made_by: type[BaseScenario] | None = None
    others: str | Callable[[Simulation], Acting] = NO_OP
    actions_per_dimension: int | None = None

    def new_scenario(self) -> BaseScenario:
        """Return a scenario for one simulator, which keeps its state in it.

        Raises:
            ConfigError: if there can be no other one.
        """
        return copied(self.scenario) if self.made_by is None else instance_of(self.made_by)


class VmasSimulation:
    """``n_envs`` copies of a task, stepped together by unmodified VMAS.

    Args:
        task: the scenario and its settings.
        n_envs: E.
        seed: of the simulation's own random stream.
        device: the device of the simulation.
        idle_step: take a step and reset before anything else, as some scenarios set attributes
            only in their first step. Without it the simulation begins exactly as one of VMAS,
            which matters to a scenario that carries state over episodes.

    Attributes:
        simulator: VMAS.
        random_stream: from which it draws.
        team: the indices of the team's agents.
        others: the indices of all other agents that act.
        action_counts: the number of actions of each agent of the team.
        n_actions: A, the largest of them.
        observation_sizes: the size of each observation of the team, before it is padded.
        mask_dim: A, if there is an action mask; 0 if there is none.
        infos: of the last step, as ``Stepped`` has them.

    Raises:
        ConfigError: if the scenario cannot be made or stepped, does not end its first reset, or
            has no such team.
    """

    def __init__(
        self, task: Task, n_envs: int, seed: int, device: torch.device, *, idle_step: bool = True
    ) -> None:
        self.task = task
        self.n_envs = n_envs
        self.device = device
        self.infos: list[dict[str, Any]] = []
        self.random_stream = VmasRandomStream(seed, device)
        scenario = task.new_scenario()
        with generators_restored(), self._errors_told(), self.limited("making"):
            with self.random_stream.in_vmas():
                self.simulator = Environment(
                    scenario,
                    num_envs=n_envs,
                    device=device,
                    continuous_actions=False,
                    seed=seed,
                    **task.scenario_kwargs,
                )
            self._outputs = ScenarioOutputs(task.name, self.simulator)
            self._discretise()
            self.team = self._choose_team()
            self.others = [i for i in range(len(self.simulator.agents)) if i not in self.team]
            self.action_counts = [self.n_actions_of(i) for i in self.team]
            self.n_actions = max(self.action_counts)
            self._acting = acting(task.others, self)
            if idle_step:
                self._step_and_reset(seed)

    def _step_and_reset(self, seed: int) -> None:
        """Take a step in which no agent does anything, and reset; restart the random stream."""
        self.step(torch.zeros(self.n_envs, len(self.team), dtype=torch.int64, device=self.device))
        with self.random_stream.in_vmas():
            self.simulator.reset(seed=seed)
        self._acting.forget(None)

    def _discretise(self) -> None:
        """Set the number of actions for each dimension, if the task has one."""
        n = self.task.actions_per_dimension
        if n is not None:
            for agent in self.simulator.agents:
                agent.discrete_action_nvec = [n] * agent.action_size
            self.simulator.action_space = self.simulator.get_action_space()

    def limited(self, action: str) -> AbstractContextManager[None]:
        """Limit the time of a ``with`` block that runs the scenario's resets.

        Args:
            action: of the block, for the message.

        Raises:
            NoEnd: if the block takes longer.
        """
        of = f"VMAS scenario {self.task.name!r}: {action} {self.n_envs} environments"
        return ended_within(RESET_SECONDS, of)

    def _errors_told(self) -> AbstractContextManager[None]:
        """Turn an error of the scenario's code within a ``with`` block into one line."""
        task = self.task
        return errors_told(
            task.scenario, name=task.name, kwargs=task.scenario_kwargs, n_envs=self.n_envs
        )

    def _choose_team(self) -> list[int]:
        """Return the indices of the team's agents."""
        group, name = self.task.group, self.task.name
        groups = agent_groups([agent.name for agent in self.simulator.agents])
        if group == ALL and ALL not in groups:
            return list(range(len(self.simulator.agents)))
        listed = ", ".join(f"{g} ({len(members)})" for g, members in groups.items())
        if group is None and len(groups) > 1:
            raise ConfigError(
                f"env.group: VMAS scenario {name!r} has agents in several groups: {listed}; "
                f"choose the team, e.g. env.group={next(iter(groups))}; env.others says what "
                f"the others do; or all of them by env.group={ALL}"
            )
        if group is not None and group not in groups:
            raise ConfigError(
                f"env.group: VMAS scenario {name!r} has no group {group!r}"
                f"{nearest(group, groups)}; it has: {listed}"
            )
        return groups[next(iter(groups)) if group is None else group]

    def reset(self) -> None:
        """Reset all environments.

        Raises:
            NoEnd: if it does not end.
        """
        with self._errors_told(), self.random_stream.in_vmas(), self.limited("a reset of"):
            self.simulator.reset(return_observations=False)
        self._acting.forget(None)

    def reset_at(self, i: int) -> None:
        """Reset environment i.

        Raises:
            NoEnd: if it does not end.
        """
        with self._errors_told(), self.random_stream.in_vmas(), self.limited("a reset of one of"):
            self.simulator.reset_at(i, return_observations=False)
        self._acting.forget(i)

    def pure_reset(self, i: int | None = None) -> None:
        """Reset environment i, or all, drawing from torch's present generator.

        Raises:
            NoEnd: if it does not end.
        """
        with self.limited("a reset of"):
            if i is None:
                self.simulator._reset(return_observations=False)
            else:
                self.simulator._reset_at(i, return_observations=False)
        self._acting.forget(i)

    def observe(self) -> Seen:
        """Return the present observations and states."""
        with self._errors_told(), self.random_stream.in_vmas():
            (observations,) = self.simulator.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        return self._seen(observations)

    def step(self, action: Tensor) -> Stepped:
        """Take one step by actions int64 [E, N] of the team.

        Raises:
            ConfigError: if agents have rewards of their own where they should share one.
        """
        with self._errors_told(), self.random_stream.everywhere():
            stepped = self.pure_step(action)
        self.infos = stepped.infos
        self.check_shared(stepped.agent_reward)
        return stepped

    def check_shared(self, agent_reward: Tensor) -> None:
        """Refuse agents' rewards [E, N, 1] that differ, where the first one is the team's.

        Raises:
            ConfigError: with two of them.
        """
        if self.task.team_reward != "shared":
            return
        differ = (agent_reward != agent_reward[:, :1]) & ~agent_reward.isnan()
        if differ.any():
            e, n, _ = differ.nonzero()[0].tolist()
            first, other = agent_reward[e, 0].item(), agent_reward[e, n].item()
            raise ConfigError(
                f"env.team_reward: shared wants one reward for all agents, but VMAS scenario "
                f"{self.task.name!r} gives {self._name(self.team[0])} {first:.4g} and "
                f"{self._name(self.team[n])} {other:.4g} at a step; set env.team_reward=mean or sum"
            )

    def pure_step(self, action: Tensor) -> Stepped:
        """Take one step by actions int64 [E, N], drawing from torch's present generator."""
        actions = [torch.zeros_like(action[:, :1]) for _ in self.simulator.agents]
        for column, i in enumerate(self.team):
            count = self.action_counts[column]
            own = action[:, column, None]
            # An agent of fewer actions: numbers beyond them, which the mask excludes, begin again.
            actions[i] = own if count == self.n_actions else own % count
        forces = {}
        for i, command in self._acting.commands().items():
            if command.is_floating_point():
                forces[self._name(i)] = command
            else:
                actions[i] = command
        unseeded_step = Environment.step.__wrapped__  # without VMAS's own random stream
        with forced(forces) if forces else nullcontext():
            observations, rewards, terminated, infos = unseeded_step(self.simulator, actions)
        columns = [
            self._outputs.column_of(rewards[i], f"reward of {self._name(i)}") for i in self.team
        ]
        agent_reward = torch.stack([c.to(torch.float32) for c in columns], 1)  # [E, N, 1]
        return Stepped(
            self._seen(observations),
            agent_reward,
            self._team_reward(agent_reward),
            self._outputs.column_of(terminated, "done").to(torch.bool),
            infos,
        )

    def _name(self, i: int) -> str:
        """Return the name of agent i."""
        return self.simulator.agents[i].name

    def _team_reward(self, agent_reward: Tensor) -> Tensor:
        """Return the team's reward [E, 1] from the agents' rewards [E, N, 1]."""
        if self.task.team_reward == "shared":
            return agent_reward[:, 0]
        return agent_reward.mean(1) if self.task.team_reward == "mean" else agent_reward.sum(1)

    def _seen(self, observations: list[Observation]) -> Seen:
        """Return the team's observations and the state, given all agents' observations."""
        team = [self._outputs.observation_of(i, observations[i]) for i in self.team]
        self.observation_sizes = [part.shape[1] for part in team]
        observation = stacked(team)  # [E, N, O]
        mask = self._outputs.masks_of(self.team, [observations[i] for i in self.team])
        self.mask_dim = 0 if mask is None else self.n_actions
        if self.task.state == "observations":
            return Seen(observation, observation.flatten(1), mask)
        return Seen(observation, world_state(self.simulator).to(torch.float32), mask)

    def seen_by(self, indices: list[int]) -> tuple[Tensor, Tensor | None]:
        """Return observation [E, M, O] and mask [E, M, A], or None, of some agents now."""
        seen = [self.simulator.scenario.observation(self.simulator.agents[i]) for i in indices]
        parts = [
            self._outputs.observation_of(i, part) for i, part in zip(indices, seen, strict=True)
        ]
        return stacked(parts), self._outputs.masks_of(indices, seen)

    def n_actions_of(self, i: int) -> int:
        """Return the number of actions of agent i."""
        return self.simulator.action_space[i].n

    def team_info(self) -> dict[tuple[str, ...], Tensor]:
        """Return the team's infos of the last step by key, float32 [E, N, ...].

        Raises:
            ConfigError: if the agents' infos differ in their keys or shapes.
        """
        return self._outputs.infos_of([self.infos[i] for i in self.team])


def world_state(env: Environment) -> Tensor:
    """Return the state of the world: float [E, S] with 6 numbers for each entity."""
    parts = []
    for entity in env.world.entities:
        body = entity.state
        parts += [body.pos, body.vel, body.rot, body.ang_vel]  # [E, 2], [E, 2], [E, 1], [E, 1]
    return torch.cat(parts, -1)
