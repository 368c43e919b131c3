"""What every environment offers, whatever its family: canonical keys, shapes and dtypes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from qmix_trl import keys
from qmix_trl.errors import ConfigError, nearest

STATES = ("world", "observations")  # what the mixer sees: the true state, or the team's views


@dataclass(frozen=True, kw_only=True)
class EnvDims:
    """The sizes that agents and mixers are built from."""

    n_agents: int
    observation_dim: int
    n_actions: int
    state_shape: torch.Size


@runtime_checkable
class BufferedEnv(Protocol):
    """An environment that steps rows of T steps by itself, for ``fused.FusedCollector``.

    Attributes:
        reset_when_done: an environment that is done is reset by itself.
    """

    reset_when_done: bool

    def begin_buffers(self, n_steps: int) -> Any:
        """Return rows whose first observation is the present one."""

    def observation_at(self, rows: Any, t: int) -> TensorDict:
        """Return the observation of a step, a TensorDict [E]."""

    def step_buffers(self, rows: Any, t: int, action: Tensor) -> Tensor:
        """Take one step by actions [E, N], with resets; return which are done: bool [E, 1]."""

    def pack_buffers(self, rows: Any, batch: TensorDict) -> None:
        """Write all that was seen and earned to a batch [E, T]."""


def env_dims(env: EnvBase) -> EnvDims:
    """Return an environment's sizes; refuse one that breaks the contract.

    The contract, for E environments in a batch: ``observation`` float [E, N, O] and ``state``
    float [E, *S]; a categorical ``action`` [E, N]; optionally ``action_mask`` bool [E, N, A];
    the team's ``reward`` [E, 1] and the agents' [E, N, 1]; ``terminated``, ``truncated`` and
    ``done`` [E, 1]; ``is_init`` [E, 1].

    Raises:
        ConfigError: if an entry is missing or has another shape.
    """
    observed, done = env.observation_spec, env.full_done_spec
    offered = {
        **dict.fromkeys((keys.OBSERVATION, keys.STATE, keys.IS_INIT), observed),
        keys.ACTION: env.full_action_spec,
        **dict.fromkeys((keys.REWARD, keys.AGENT_REWARD), env.full_reward_spec),
        **dict.fromkeys((keys.TERMINATED, keys.TRUNCATED, keys.DONE), done),
    }
    for key, spec in offered.items():
        if key not in spec.keys(True, True):
            raise ConfigError(
                f"{env}: expected an entry {key!r}, got {list(spec.keys(True, True))}"
            )
    (n_envs,) = env.batch_size
    _, n_agents, observation_dim = observed[keys.OBSERVATION].shape
    n_actions = env.full_action_spec[keys.ACTION].space.n
    expected = {
        keys.ACTION: (n_envs, n_agents),
        keys.ACTION_MASK: (n_envs, n_agents, n_actions),
        keys.AGENT_REWARD: (n_envs, n_agents, 1),
        **dict.fromkeys((keys.REWARD, keys.TERMINATED, keys.TRUNCATED, keys.DONE), (n_envs, 1)),
    }
    offered[keys.ACTION_MASK] = observed
    for key, shape in expected.items():
        spec = offered[key]
        if key in spec.keys(True, True) and spec[key].shape != shape:
            raise ConfigError(f"{env}: expected {key!r} of {shape}, got {tuple(spec[key].shape)}")
    return EnvDims(
        n_agents=n_agents,
        observation_dim=observation_dim,
        n_actions=n_actions,
        state_shape=observed[keys.STATE].shape[1:],
    )


def set_specs(env: EnvBase, dims: EnvDims, *, masked: bool = False) -> None:
    """Give an environment the contract's specs, with an action mask if asked for."""
    (n_envs,), n_agents = env.batch_size, dims.n_agents
    to = {"device": env.device}
    flag = Binary(1, (n_envs, 1), dtype=torch.bool, **to)

    def team(**specs) -> Composite:
        return Composite(specs, shape=(n_envs, n_agents))

    agents = team(observation=Unbounded((n_envs, n_agents, dims.observation_dim), **to))
    if masked:
        shape = (n_envs, n_agents, dims.n_actions)
        agents[keys.ACTION_MASK[-1]] = Binary(dims.n_actions, shape, dtype=torch.bool, **to)
    env.observation_spec = Composite(
        agents=agents,
        state=Unbounded((n_envs, *dims.state_shape), **to),
        is_init=flag.clone(),
        shape=(n_envs,),
    )
    action = Categorical(dims.n_actions, shape=(n_envs, n_agents), **to)
    env.action_spec = Composite(agents=team(action=action), shape=(n_envs,))
    env.reward_spec = Composite(
        reward=Unbounded((n_envs, 1), **to),
        agents=team(reward=Unbounded((n_envs, n_agents, 1), **to)),
        shape=(n_envs,),
    )
    env.done_spec = Composite(
        done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=(n_envs,)
    )


def resets(env: EnvBase, tensordict: TensorDictBase | None, *, reset_when_done: bool) -> Tensor:
    """Return which environments a call of reset begins anew: bool [E, 1].

    Args:
        env: of E environments.
        tensordict: as TorchRL gives it; with an entry ``"_reset"`` where some of them are done.
        reset_when_done: if not, only all of them together are reset, and those that are done
            run on until then.
    """
    asked = None if tensordict is None else tensordict.get("_reset", None)  # [E, 1]
    if asked is None:
        return torch.ones(*env.batch_size, 1, dtype=torch.bool, device=env.device)
    return asked if reset_when_done else torch.zeros_like(asked)


def set_flags(packed: TensorDict, terminated: Tensor, truncated: Tensor) -> TensorDict:
    """Set the flags [E, 1] of an end in what an environment returns."""
    packed.set(keys.TERMINATED, terminated)
    packed.set(keys.TRUNCATED, truncated)
    return packed.set(keys.DONE, terminated | truncated)


def check_sizes(**sizes: int) -> None:
    """Refuse sizes of an environment that are below 1.

    Raises:
        ConfigError: naming the size.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"env.{name}: expected at least 1, got {size}")


def check_choice(name: str, choice: str, known: Sequence[str]) -> None:
    """Refuse an option that is none of those known.

    Raises:
        ConfigError: naming the option and those known.
    """
    if choice not in known:
        raise ConfigError(f"env.{name}: expected one of {', '.join(known)}, got {choice!r}")


def check_keywords(of: str, known: list[str], scenario_kwargs: Mapping[str, Any]) -> None:
    """Refuse keywords that a scenario does not take.

    Raises:
        ConfigError: naming the scenario's own keywords.
    """
    for keyword in scenario_kwargs:
        if keyword not in known:
            raise ConfigError(
                f"env.scenario_kwargs.{keyword}: unknown to {of}{nearest(keyword, known)}; "
                f"it takes: {', '.join(known) or 'none'}"
            )
