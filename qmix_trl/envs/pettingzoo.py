"""Environments of PettingZoo's parallel API as teams under the canonical contract."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any, NamedTuple

import numpy as np
import torch

from qmix_trl.envs.contract import STATES, EnvDims, check_choice, check_keywords
from qmix_trl.envs.custom import errors_told
from qmix_trl.envs.make_team import make_team
from qmix_trl.envs.process_team import ProcessTeam
from qmix_trl.envs.python_team import PythonTeam
from qmix_trl.envs.single_env import Shown
from qmix_trl.envs.user_code import load_function, name_of
from qmix_trl.errors import ConfigError, check_extra, nearest

OTHERS = ("no_op", "random")
ALL = "all"  # agents of all groups
FUNCTION = "parallel_env"  # of PettingZoo's modules
MASK = "action_mask"  # PettingZoo's name, in observations and infos


def make_env(
    *,
    scenario: str | Callable[..., Any],
    n_envs: int,
    max_steps: int,
    state: str,
    team_reward: str,
    seed: int,
    device: torch.device | str = "cpu",
    scenario_kwargs: Mapping[str, Any] | None = None,
    group: str | None = None,
    others: str = "no_op",
    pad: bool = False,
    processes: int = 1,
    reset_when_done: bool = True,
) -> PythonTeam | ProcessTeam:
    """Return environments of PettingZoo's parallel API as a team.

    An agent that has terminated sees zeros, earns nothing and has one available action, the first
    one. The team is done when all its agents are; it is truncated if one of them is at that step.
    Action masks are those of observations or infos under ``action_mask``.

    Args:
        scenario: a module with a function ``parallel_env``, such as "mpe2.simple_spread_v3";
            "module:function"; "path/to/file.py:function"; or the function.
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates. A limit of the environment's own
            holds as well.
        state: "world", the environment's ``state()``; or "observations", those of the team.
        team_reward: "mean" or "sum" of the agents' rewards.
        seed: of the environments.
        device: of the team; the environments step on the CPU.
        scenario_kwargs: keywords of the function.
        group: the agents of the team, by their names without numbers; "all" for all agents; None
            if there is one group.
        others: the actions of agents outside the team: "no_op", the first available one; or
            "random", any available one.
        pad: whether observations are filled up with zeros to the largest, and actions that an
            agent lacks are masked. If not, agents of different sizes are refused.
        processes: over how many processes the environments are spread; with 1 they stay in this.
        reset_when_done: whether an environment that is done is reset at once. If not, it waits
            until all are reset together.

    Raises:
        ConfigError: if PettingZoo is not installed, there is no such environment, it fails in its
            first steps, its agents are no team, or an argument does not fit it.
    """
    check_extra("pettingzoo", "envs", "env.family")
    check_choice("state", state, STATES)
    check_choice("others", others, OTHERS)
    path, kwargs = path_of(scenario), dict(scenario_kwargs or {})
    with errors_told(path, "env.scenario"):
        check_module(path)
        function = scenario if callable(scenario) else load_function(path)
        known = keywords_of(path, function)
        if known is not None:
            check_keywords(path, known, kwargs)
        make = partial(
            ParallelSingle,
            scenario if callable(scenario) else path,
            kwargs,
            has_state=state == "world",
            group=group,
            others=others,
            pad=pad,
        )
        return make_team(
            make,
            n_envs=n_envs,
            max_steps=max_steps,
            team_reward=team_reward,
            seed=seed,
            device=device,
            processes=processes,
            reset_when_done=reset_when_done,
        )


def path_of(scenario: str | Callable[..., Any]) -> str:
    """Return "module:function" or "path/to/file.py:function" of a scenario."""
    if callable(scenario):
        return name_of(scenario)
    return scenario if ":" in scenario else f"{scenario}:{FUNCTION}"


def check_module(path: str) -> None:
    """Refuse a module that is not installed.

    Args:
        path: as ``path_of`` returns it.

    Raises:
        ConfigError: if it is not; it tells whether its package is.
    """
    where = path.rpartition(":")[0]
    if where.endswith(".py"):
        return
    package, _, inside = where.partition(".")
    if find_spec(package) is None:
        raise ConfigError(
            f"expected an installed package, got {package!r}; pip install -e '.[envs]' installs "
            "mpe2 and PettingZoo"
        )
    if inside and find_spec(where) is None:
        parent, _, name = where.rpartition(".")
        known = [module.name for module in iter_modules(import_module(parent).__path__)]
        raise ConfigError(f"expected a module of {parent}, got {name!r}{nearest(name, known)}")


class Agent(NamedTuple):
    """An agent and its spaces.

    Attributes:
        name: in PettingZoo.
        size: of its observation as a vector.
        vector: returns an observation without its mask as a vector.
        has_dict: whether observations are dictionaries with a mask.
        n_actions: the number of its actions.
        first_action: the number of the first one in PettingZoo.
    """

    name: str
    size: int
    vector: Callable[[Any], np.ndarray]
    has_dict: bool
    n_actions: int
    first_action: int


class ParallelSingle:
    """One environment of PettingZoo as a ``SingleEnv``.

    Args:
        make: the function that makes it, or that function's path.
        kwargs: keywords of the function.
        has_state: whether ``state()`` is the state; if not, the team's observations are.
        group: as in ``make_env``.
        others: as in ``make_env``.
        pad: as in ``make_env``.

    Raises:
        ConfigError: if it is no parallel environment, or its agents are no team.
    """

    masked = True  # an agent that has terminated has one action

    def __init__(
        self,
        make: str | Callable[..., Any],
        kwargs: Mapping[str, Any],
        *,
        has_state: bool,
        group: str | None,
        others: str,
        pad: bool,
    ) -> None:
        self._env = (load_function(make) if isinstance(make, str) else make)(**kwargs)
        check_parallel(self._env)
        names = list(self._env.possible_agents)
        team = team_of(names, group)
        agents = {name: agent_of(self._env, name) for name in names}
        self._team = [agents[name] for name in team]
        self._rest = [agents[name] for name in names if name not in team]
        check_alike(self._team, pad)
        self._are_random = others == "random"
        self._live: set[str] = set()  # agents that act in the next step
        self._masks: dict[str, np.ndarray] = {}  # of agents that have had one, the last one
        self.has_state = has_state
        self.dims = self._sizes()

    def _sizes(self) -> EnvDims:
        size = max(agent.size for agent in self._team)
        shape = (len(self._team) * size,)
        if self.has_state:
            self._env.reset(seed=0)
            shape = self._state().shape
        return EnvDims(
            n_agents=len(self._team),
            observation_dim=size,
            n_actions=max(agent.n_actions for agent in self._team),
            state_shape=torch.Size(shape),
        )

    def _state(self) -> np.ndarray:
        """Return the environment's state, with at least one dimension.

        Raises:
            ConfigError: if it has none.
        """
        try:
            return np.atleast_1d(np.asarray(self._env.state(), np.float32))
        except (NotImplementedError, AttributeError):
            raise ConfigError(
                "state='world': expected an environment with state(), got one without; take "
                "state='observations'"
            ) from None

    def reset(self, seed: int) -> Shown:
        """Begin the episode of a seed.

        Raises:
            ConfigError: if observations or masks do not fit the spaces.
        """
        returned = self._env.reset(seed=seed)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise ConfigError(
                "expected reset() to return observations and infos, as PettingZoo says, got "
                f"{type(returned).__name__}"
            )
        seen, infos = returned
        self._live = set(self._env.agents)
        self._generator = np.random.default_rng(seed)
        return self._shown(seen, infos, self._live)

    def step(self, action: list[int]) -> tuple[Shown, list[float], bool, bool]:
        """Take a step of the agents that act.

        Raises:
            ConfigError: if observations or masks do not fit the spaces.
        """
        chosen = dict(zip((agent.name for agent in self._team), action, strict=True))
        chosen.update({agent.name: self._other_action(agent) for agent in self._rest})
        joint = {
            agent.name: agent.first_action + chosen[agent.name]
            for agent in (*self._team, *self._rest)
            if agent.name in self._live
        }
        seen, rewards, terminated, truncated, infos = self._env.step(joint)
        earned = [float(rewards.get(a.name, 0)) * (a.name in joint) for a in self._team]
        showing = {name for name in joint if not terminated.get(name)}
        shown = self._shown(seen, infos, showing)
        self._live = {name for name in self._env.agents if name in showing}
        self._live -= {name for name in showing if truncated.get(name)}
        is_done = not any(agent.name in self._live for agent in self._team)
        is_cut = is_done and any(truncated.get(agent.name) for agent in self._team)
        return shown, earned, is_done and not is_cut, is_cut

    def _other_action(self, agent: Agent) -> int:
        """Return the action of an agent outside of the team."""
        mask = self._masks.get(agent.name, np.ones(agent.n_actions, bool))
        if self._are_random and mask.any():
            return int(self._generator.choice(mask.nonzero()[0]))
        return int(mask.argmax())

    def _shown(self, seen: Mapping, infos: Mapping, showing: set[str]) -> Shown:
        """Return all that the team is shown.

        Args:
            seen: observations by agent.
            infos: by agent.
            showing: the agents that are shown; all others see zeros, and have one action.

        Raises:
            ConfigError: if an observation or a mask is missing, or does not fit its space.
        """
        dims = self.dims
        observation = np.zeros((dims.n_agents, dims.observation_dim), np.float32)
        mask = np.zeros((dims.n_agents, dims.n_actions), bool)
        for i, agent in enumerate(self._team):
            if agent.name in showing:
                observation[i, : agent.size] = agent.vector(self._observation(agent, seen))
                mask[i, : agent.n_actions] = self._mask(agent, seen, infos)
        for agent in self._rest:
            if agent.name in showing:
                self._mask(agent, seen, infos)
        mask[:, 0] |= ~mask.any(-1)
        return Shown(observation, self._state() if self.has_state else None, mask)

    def _observation(self, agent: Agent, seen: Mapping) -> Any:
        """Return an agent's observation without its mask.

        Raises:
            ConfigError: if there is none.
        """
        if agent.name not in seen:
            raise ConfigError(f"expected an observation of {agent.name!r}, which acts, got none")
        own = seen[agent.name]
        return {k: x for k, x in own.items() if k != MASK} if agent.has_dict else own

    def _mask(self, agent: Agent, seen: Mapping, infos: Mapping) -> np.ndarray | bool:
        """Return an agent's mask, True for one without; keep it for actions of others.

        Raises:
            ConfigError: if it is missing, or of another size than the actions.
        """
        own = seen[agent.name] if agent.has_dict else infos.get(agent.name) or {}
        mask = own.get(MASK)
        if mask is None and agent.name not in self._masks and not agent.has_dict:
            return True
        if mask is None or np.shape(mask) != (agent.n_actions,):
            got = "none" if mask is None else f"one of shape {list(np.shape(mask))}"
            raise ConfigError(
                f"expected an action mask of [{agent.n_actions}] for {agent.name!r}, at every step "
                f"if at any, got {got}"
            )
        self._masks[agent.name] = np.asarray(mask, bool)
        return self._masks[agent.name]

    def render(self) -> Any:
        """Return the environment's picture."""
        return self._env.render()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def check_parallel(env: Any) -> None:
    """Refuse all but parallel environments.

    Raises:
        ConfigError: if it is another object.
    """
    from pettingzoo import AECEnv, ParallelEnv

    if isinstance(env, AECEnv):
        raise ConfigError(
            "expected an environment whose agents act together, got one in which they take turns "
            "(AECEnv); make it by the module's parallel_env, if it has one"
        )
    if not isinstance(env, ParallelEnv):
        raise ConfigError(
            f"expected a ParallelEnv of PettingZoo, got {type(env).__name__}; for environments of "
            "TorchRL take family custom"
        )


def group_of(name: str) -> str:
    """Return an agent's group: its name without the number behind it."""
    return re.sub(r"_?\d+$", "", name)


def team_of(names: Sequence[str], group: str | None) -> list[str]:
    """Return the agents of a team.

    Args:
        names: of all agents.
        group: as in ``make_env``.

    Raises:
        ConfigError: if there are several groups and none is chosen, or the group is unknown.
    """
    known = list(dict.fromkeys(map(group_of, names)))
    if group is None and len(known) > 1:
        raise ConfigError(
            f"agents are of several groups: {', '.join(known)}; choose the team, such as "
            f"env.group={known[0]}, or env.group={ALL}; env.others chooses the actions of all "
            "other agents"
        )
    if group not in (None, ALL, *known):
        raise ConfigError(
            f"env.group: expected a group of agents, got {group!r}{nearest(group, known)}; it has: "
            f"{', '.join(known)}"
        )
    return [name for name in names if group in (None, ALL, group_of(name))]


def agent_of(env: Any, name: str) -> Agent:
    """Return an agent of an environment with its spaces.

    Raises:
        ConfigError: if its observations have no fixed size, or its actions are not discrete.
    """
    from gymnasium import spaces  # pyright: ignore[reportMissingImports]

    from qmix_trl.envs.spaces import discrete, vector_space

    space = env.observation_space(name)
    has_dict = isinstance(space, spaces.Dict) and MASK in space.spaces
    if has_dict:
        space = spaces.Dict({key: part for key, part in space.items() if key != MASK})
    size, vector = vector_space(space, name)
    n_actions, first_action = discrete(env.action_space(name), name)
    return Agent(name, size, vector, has_dict, n_actions, first_action)


def check_alike(team: Sequence[Agent], pad: bool) -> None:
    """Refuse agents of different sizes that are not padded.

    Raises:
        ConfigError: if they are.
    """
    for part in ("size", "n_actions"):
        sizes = {agent.name: getattr(agent, part) for agent in team}
        if not pad and len(set(sizes.values())) > 1:
            of = {"size": "observations", "n_actions": "numbers of actions"}[part]
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ConfigError(
                f"expected {of} of one size for all agents of the team, got {listed}; env.pad=true "
                "fills observations with zeros and masks the actions that are missing"
            )


def keywords_of(path: str, function: Callable[..., Any]) -> list[str] | None:
    """Return the keywords of a function that makes environments; None if it takes any.

    PettingZoo's ``parallel_env`` gives all of its keywords to ``raw_env`` of the same module.
    """
    where, _, name = path.rpartition(":")
    inner = getattr(sys.modules.get(where), "raw_env", None)
    takes = inspect.signature(inner if name == FUNCTION and callable(inner) else function)
    kinds = {parameter.kind for parameter in takes.parameters.values()}
    return None if inspect.Parameter.VAR_KEYWORD in kinds else list(takes.parameters)
