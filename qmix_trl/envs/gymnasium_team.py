"""Packages of gymnasium environments in which agents act together, as teams under the contract."""

import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch

from qmix_trl.envs.contract import EnvDims, check_keywords
from qmix_trl.envs.custom import errors_told
from qmix_trl.envs.make_team import make_team
from qmix_trl.envs.process_team import ProcessTeam
from qmix_trl.envs.python_team import PythonTeam
from qmix_trl.envs.single_env import Shown
from qmix_trl.errors import ConfigError, check_extra, nearest


def leave(env: Any) -> None:
    """Do nothing with an environment."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of environments.

    Attributes:
        name: in Python; environments are registered when it is imported.
        example: an id.
        limit: the keyword of the environment's own time limit.
        no_limit: the value of that keyword by which there is none.
        prepare: is called with the environment before each reset.
    """

    name: str
    example: str
    limit: str
    no_limit: Any
    prepare: Callable[[Any], None] = leave


def make_env(
    package: Package,
    *,
    scenario: str,
    n_envs: int,
    max_steps: int,
    team_reward: str,
    seed: int,
    device: torch.device | str = "cpu",
    scenario_kwargs: Mapping[str, Any] | None = None,
    processes: int = 1,
    reset_when_done: bool = True,
) -> PythonTeam | ProcessTeam:
    """Return environments of a package as a team, whose state is all observations.

    Args:
        package: of the environments.
        scenario: the environment's id.
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates. It takes the place of the
            environment's own, which terminates.
        team_reward: "mean" or "sum" of the agents' rewards.
        seed: of the environments.
        device: of the team; the environments step on the CPU.
        scenario_kwargs: keywords of the environment's class, in place of those of the id; a member
            of an enumeration is given by its name.
        processes: over how many processes the environments are spread; with 1 they stay in this.
        reset_when_done: whether an environment that is done is reset at once. If not, it waits
            until all are reset together.

    Raises:
        ConfigError: if the package is not installed, it has no such environment, its agents are no
            team, or an argument does not fit it.
    """
    for name in ("gymnasium", package.name):
        check_extra(name, "envs", "env.family")
    import_module(package.name)
    make, kwargs = registered(package, scenario)
    with errors_told(f"{make.__module__}:{make.__name__}", "env.scenario"):
        own = keywords(make, scenario_kwargs or {}, package.limit)
        single = partial(JointSingle, make, {**kwargs, **own}, package.prepare)
        return make_team(
            single,
            n_envs=n_envs,
            max_steps=max_steps,
            team_reward=team_reward,
            seed=seed,
            device=device,
            processes=processes,
            reset_when_done=reset_when_done,
        )


def registered(package: Package, scenario: str) -> tuple[type, dict[str, Any]]:
    """Return the class of a registered environment, and its keywords without a time limit.

    Raises:
        ConfigError: if it is not of the package.
    """
    from gymnasium.envs import registration  # pyright: ignore[reportMissingImports]

    known = {
        name: spec
        for name, spec in registration.registry.items()
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith(f"{package.name}.")
    }
    if scenario not in known:
        raise ConfigError(
            f"env.scenario: unknown environment of {package.name} {scenario!r}"
            f"{nearest(scenario, known)}; an id is like {package.example}"
        )
    spec = known[scenario]
    make = registration.load_env_creator(spec.entry_point)
    return make, {**spec.kwargs, package.limit: package.no_limit}


def keywords(make: type, given: Mapping[str, Any], limit: str) -> dict[str, Any]:
    """Return the keywords of an environment's class, with enumerations' members for their names.

    Args:
        make: the class.
        given: by the user.
        limit: the keyword of the time limit.

    Raises:
        ConfigError: if one is unknown, the time limit, or no member of an enumeration.
    """
    if limit in given:
        raise ConfigError(f"env.scenario_kwargs.{limit}: expected in env.max_steps alone")
    parameters = inspect.signature(make, eval_str=True).parameters
    check_keywords(make.__name__, [name for name in parameters if name != limit], given)
    kinds = {name: parameters[name].annotation for name in given}
    return {name: member(name, kinds[name], value) for name, value in given.items()}


def member(name: str, kind: Any, value: Any) -> Any:
    """Return the member of an enumeration for its name; other values as they are.

    Args:
        name: of the keyword.
        kind: its annotation.
        value: of the keyword.

    Raises:
        ConfigError: if the enumeration has no such member.
    """
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)) or isinstance(value, kind):
        return value
    known = {each.name.lower(): each for each in kind}
    if str(value).lower() not in known:
        raise ConfigError(
            f"env.scenario_kwargs.{name}: expected one of {', '.join(known)}, got {value!r}"
        )
    return known[str(value).lower()]


class JointSingle:
    """One environment whose actions, observations and rewards are sequences, as a ``SingleEnv``.

    Args:
        make: its class.
        kwargs: keywords of the class.
        prepare: is called with the environment before each reset.

    Raises:
        ConfigError: if its agents are no team.
    """

    has_state = False
    masked = False

    def __init__(
        self, make: type, kwargs: Mapping[str, Any], prepare: Callable[[Any], None]
    ) -> None:
        from qmix_trl.envs.spaces import discrete, vector_space

        self._env = make(**kwargs)
        self._prepare = prepare
        seen = [vector_space(x, f"agent {i}") for i, x in enumerate(self._env.observation_space)]
        acts = [discrete(x, f"agent {i}") for i, x in enumerate(self._env.action_space)]
        for of, sizes in (("observations", [x.size for x in seen]), ("actions", acts)):
            if len(set(sizes)) > 1:
                raise ConfigError(f"expected {of} of one size for all agents, got {sizes}")
        self._vectors = [x.vector for x in seen]
        n_actions, self._first_action = acts[0]
        self.dims = EnvDims(
            n_agents=len(seen),
            observation_dim=seen[0].size,
            n_actions=n_actions,
            state_shape=torch.Size([len(seen) * seen[0].size]),
        )

    def reset(self, seed: int) -> Shown:
        """Begin the episode of a seed."""
        self._prepare(self._env)
        seen, _ = self._env.reset(seed=seed)
        return self._shown(seen)

    def step(self, action: list[int]) -> tuple[Shown, Sequence[float], bool, bool]:
        """Take a step."""
        joint = [number + self._first_action for number in action]
        seen, rewards, terminated, truncated, _ = self._env.step(joint)
        return self._shown(seen), rewards, bool(terminated), bool(truncated)

    def _shown(self, seen: Sequence) -> Shown:
        observation = np.empty((self.dims.n_agents, self.dims.observation_dim), np.float32)
        for i, vector in enumerate(self._vectors):
            observation[i] = vector(seen[i])
        return Shown(observation)

    def render(self) -> Any:
        """Return the environment's picture, uint8 [H, W, 3]."""
        return self._env.render(mode="rgb_array")

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
