"""A VMAS simulator with a team of agents and its own random stream."""

import linecache
import random
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment.environment import Environment, local_seed
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.compiled.trace.own_code import is_own_module, packages_of
from qmix_trl.envs.others import NO_OP, Acting, Simulation, acting, forced
from qmix_trl.envs.scenario_copies import copied
from qmix_trl.envs.time_limit import ended_within
from qmix_trl.envs.user_code import line_of, line_of_definition
from qmix_trl.envs.vmas_scenarios import ALL, agent_groups, generators_restored, instance_of
from qmix_trl.errors import ConfigError, Refused, nearest, one_line
from qmix_trl.keys import ACTION_MASK

MASK = ACTION_MASK[-1]  # in an observation that is a dictionary
TEAM_REWARDS = ("mean", "sum", "shared")
RESET_SECONDS = 60.0  # in which a reset has to end
CALLED = re.compile(r"scenario\.(observation|reward|done|info)\(")  # in a line of VMAS
OF_MEMORY = ("allocat", "out of memory")  # in the messages of torch's errors


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
        seed: the seed of the simulation's own random stream.
        device: the device of the simulation.
        idle_step: take a step and reset before anything else, as some scenarios set attributes
            only in their first step. Without it the simulation begins exactly as one of VMAS,
            which matters to a scenario that carries state over episodes.

    Attributes:
        simulator: VMAS.
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
        self._random_state = self._seeded_state(seed)
        scenario = task.new_scenario()
        with generators_restored(), self._errors_told(scenario), self.limited("making"):
            with self.own_randomness():
                self.simulator = Environment(
                    scenario,
                    num_envs=n_envs,
                    device=device,
                    continuous_actions=False,
                    seed=seed,
                    **task.scenario_kwargs,
                )
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
        with self.own_randomness():
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

    @contextmanager
    def _errors_told(self, scenario: BaseScenario) -> Iterator[None]:
        """Turn any error of the scenario's code within a ``with`` block into one line.

        Raises:
            ConfigError: if the code raises anything but a lack of memory.
        """
        try:
            yield
        except (ConfigError, Refused):
            raise
        except Exception as error:  # a scenario's code may raise anything
            if isinstance(error, MemoryError) or any(word in str(error) for word in OF_MEMORY):
                raise
            kwargs = dict(self.task.scenario_kwargs)
            given = f"env.scenario_kwargs: {kwargs}: " if kwargs else ""
            raise ConfigError(
                f"{given}VMAS scenario {self.task.name!r} fails in a batch of {self.n_envs}: "
                f"{one_line(error)} at {failing_line(error, scenario)}"
            ) from error

    def _told(self) -> AbstractContextManager[None]:
        """Turn an error of the scenario's code within a ``with`` block into one line."""
        return self._errors_told(self.simulator.scenario)

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
        with self._told(), self.own_randomness(), self.limited("a reset of"):
            self.simulator.reset(return_observations=False)
        self._acting.forget(None)

    def reset_at(self, i: int) -> None:
        """Reset environment i.

        Raises:
            NoEnd: if it does not end.
        """
        with self._told(), self.own_randomness(), self.limited("a reset of one of"):
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
        with self._told(), self.own_randomness():
            (observations,) = self.simulator.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        return self._seen(observations)

    def step(self, action: Tensor) -> Stepped:
        """Take one step by actions int64 [E, N] of the team.

        Raises:
            ConfigError: if agents have rewards of their own where they should share one.
        """
        with self._told(), self.own_randomness(), local_seed(Environment.vmas_random_state):
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
        columns = [self._column(rewards[i], f"reward of {self._name(i)}") for i in self.team]
        agent_reward = torch.stack([c.to(torch.float32) for c in columns], 1)  # [E, N, 1]
        return Stepped(
            self._seen(observations),
            agent_reward,
            self._team_reward(agent_reward),
            self._column(terminated, "done").to(torch.bool),
            infos,
        )

    def _name(self, i: int) -> str:
        """Return the name of agent i."""
        return self.simulator.agents[i].name

    def _wrong(self, of: str, message: str) -> ConfigError:
        """Return the error of a method's result.

        Args:
            of: the result; its first word is the method.
            message: what was expected, and what was got.
        """
        line = defined_at(self.simulator.scenario, of.split()[0])
        return ConfigError(f"VMAS scenario {self.task.name!r}: {of}: {message}{line}")

    def _column(self, value: Tensor, of: str) -> Tensor:
        """Return a number for each environment as [E, 1]; one number is for all of them."""
        if value.numel() == 1:
            return value.reshape(1, 1).expand(self.n_envs, 1)
        if value.shape not in ((self.n_envs,), (self.n_envs, 1)):
            raise self._wrong(
                of,
                f"expected a shape of [{self.n_envs}] or [{self.n_envs}, 1], got "
                f"{list(value.shape)}",
            )
        return value.reshape(-1, 1)

    def _team_reward(self, agent_reward: Tensor) -> Tensor:
        """Return the team's reward [E, 1] from the agents' rewards [E, N, 1]."""
        if self.task.team_reward == "shared":
            return agent_reward[:, 0]
        return agent_reward.mean(1) if self.task.team_reward == "mean" else agent_reward.sum(1)

    def _seen(self, observations: list[Tensor | dict[str, Tensor]]) -> Seen:
        """Return the team's observations and the state, given all agents' observations."""
        team = [self._observation(observations[i], self._name(i)) for i in self.team]
        self.observation_sizes = [part.shape[1] for part in team]
        observation = stacked(team)  # [E, N, O]
        mask = self._mask(self.team, [mask_in(observations[i]) for i in self.team])
        self.mask_dim = 0 if mask is None else self.n_actions
        if self.task.state == "observations":
            return Seen(observation, observation.flatten(1), mask)
        return Seen(observation, world_state(self.simulator).to(torch.float32), mask)

    def seen_by(self, indices: list[int]) -> tuple[Tensor, Tensor | None]:
        """Return observation [E, M, O] and mask [E, M, A], or None, of some agents now."""
        seen = [self.simulator.scenario.observation(self.simulator.agents[i]) for i in indices]
        parts = [
            self._observation(part, self._name(i)) for i, part in zip(indices, seen, strict=True)
        ]
        return stacked(parts), self._mask(indices, list(map(mask_in, seen)))

    def n_actions_of(self, i: int) -> int:
        """Return the number of actions of agent i."""
        return self.simulator.action_space[i].n

    def _mask(self, indices: list[int], given: list[Tensor | None]) -> Tensor | None:
        """Return the action mask of agents, float32 [E, M, A]; None if all are available.

        Args:
            indices: of the agents.
            given: the entries ``action_mask`` of their observations, [E, number of actions] each.
        """
        counts = [self.n_actions_of(i) for i in indices]
        if all(mask is None for mask in given) and len({*counts}) == 1:
            return None
        masks = []
        for i, mask, count in zip(indices, given, counts, strict=True):
            if mask is None:
                mask = torch.ones(self.n_envs, count, device=self.device)
            if mask.shape != (self.n_envs, count):
                raise self._wrong(
                    f"observation of {self._name(i)}",
                    f"expected {MASK!r} of [{self.n_envs}, {count}], for {count} actions, got "
                    f"{list(mask.shape)}",
                )
            masks.append(padded((mask != 0).to(torch.float32), max(counts)))
        return torch.stack(masks, 1)

    def _observation(self, observation: Tensor | dict[str, Tensor], agent: str) -> Tensor:
        """Return one agent's observation as float32 [E, O]; entries are concatenated."""
        if isinstance(observation, dict):
            parts = [self._observation(part, agent) for k, part in observation.items() if k != MASK]
            return torch.cat(parts, -1)
        if observation.shape[:1] != (self.n_envs,):
            raise self._wrong(
                f"observation of {agent}",
                f"expected a shape of [{self.n_envs}, ...], got {list(observation.shape)}",
            )
        return columns_of(observation)

    def team_info(self) -> dict[tuple[str, ...], Tensor]:
        """Return the team's infos of the last step by key, float32 [E, N, ...].

        Raises:
            ConfigError: if the agents' infos differ in their keys or shapes.
        """
        infos = [dict(self._flat_info(self.infos[i])) for i in self.team]
        described = [{key: list(v.shape[1:]) for key, v in info.items()} for info in infos]
        if any(shapes != described[0] for shapes in described):
            raise self._wrong(
                "info", f"expected the same entries for all agents of the team, got {described}"
            )
        return {key: torch.stack([info[key] for info in infos], 1) for key in infos[0]}

    def _flat_info(self, info: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Yield the entries of an agent's infos by key: float32 [E, ...], or [E, 1] of [E]."""
        for name, value in info.items():
            if isinstance(value, dict):
                yield from (((name, *key), part) for key, part in self._flat_info(value))
            elif not isinstance(value, Tensor):
                raise self._wrong(
                    f"info {name!r}", f"expected a tensor, got {type(value).__name__}"
                )
            elif value.dim() < 2:
                yield (name,), self._column(value, f"info {name!r}").to(torch.float32)
            else:
                yield (name,), value.to(torch.float32)

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

    @contextmanager
    def randomness_kept(self) -> Iterator[None]:
        """Restore the random stream after a ``with`` block."""
        before = list(self._random_state)
        try:
            with self.own_randomness():
                yield
        finally:
            self._random_state = before


def world_state(env: Environment) -> Tensor:
    """Return the state of the world: float [E, S] with 6 numbers for each entity."""
    parts = []
    for entity in env.world.entities:
        body = entity.state
        parts += [body.pos, body.vel, body.rot, body.ang_vel]  # [E, 2], [E, 2], [E, 1], [E, 1]
    return torch.cat(parts, -1)


def mask_in(observation: Tensor | dict[str, Tensor]) -> Tensor | None:
    """Return the action mask in an agent's observation; None if there is none."""
    return observation.get(MASK) if isinstance(observation, dict) else None


def padded(value: Tensor, size: int) -> Tensor:
    """Return numbers [E, n] as [E, size], with zeros behind them."""
    n = value.shape[1]
    return value if n == size else torch.cat([value, value.new_zeros(len(value), size - n)], 1)


def stacked(parts: list[Tensor]) -> Tensor:
    """Return the observations [E, n] of N agents as [E, N, O], with zeros behind shorter ones."""
    size = max(part.shape[1] for part in parts)
    return torch.stack([padded(part, size) for part in parts], 1)


def columns_of(value: Tensor) -> Tensor:
    """Return numbers [E, ...] as float32 [E, O]."""
    return (value[:, None] if value.dim() == 1 else value.flatten(1)).to(torch.float32)


def failing_line(error: Exception, scenario: BaseScenario) -> str:
    """Return file, number and text of the line of the scenario's code that raised an error.

    If there is none, the line of VMAS that raised it, the agent that it was about, and the
    scenario's method whose result it read.
    """
    packages = packages_of(scenario)
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [at for at in frames if is_own_module(at[0].f_globals.get("__name__", ""), packages)]
    frame, number = (own or frames)[-1]
    line = line_of(frame.f_code.co_filename, number)
    if own:
        return line
    agents = [at[0].f_locals["agent"].name for at in frames if "agent" in at[0].f_locals]
    about = f" for {agents[-1]}" if agents else ""
    lines = [_three_lines(frame.f_code.co_filename, number) for frame, number in frames]
    called = CALLED.findall(" ".join(lines))
    return f"{line}{about}{defined_at(scenario, called[-1]) if called else ''}"


def _three_lines(file: str, number: int) -> str:
    """Return the text of three lines, on which a call may be spread."""
    return "".join(linecache.getline(file, number + i) for i in range(3))


def defined_at(scenario: BaseScenario, method: str) -> str:
    """Return where a scenario's method is defined, as the end of a message."""
    return f"; {method} is defined at {line_of_definition(getattr(type(scenario), method))}"
