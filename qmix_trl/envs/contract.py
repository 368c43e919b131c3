"""The contract of all environments: canonical keys, shapes and dtypes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from qmix_trl import keys
from qmix_trl.chosen import named
from qmix_trl.errors import ConfigError, nearest

# The state that the mixer sees: the true state of the world, or all observations of the team.
STATES = ("world", "observations")


@dataclass(frozen=True, kw_only=True)
class EnvDims:
    """The sizes that agents and mixers are built from.

    Attributes:
        n_agents: N.
        observation_dim: O, the size of one agent's observation.
        n_actions: A.
        state_shape: S, the shape of one environment's state.
    """

    n_agents: int
    observation_dim: int
    n_actions: int
    state_shape: torch.Size


class BufferedEnv(Protocol):
    """An environment that writes T steps into buffers of its own, for ``fused.FusedCollector``.

    Attributes:
        reset_when_done: whether an environment that is done is reset at once.
        compiled_loop: the compiled loop that can take its steps: ``CPP_LOOP`` or ``CUDA_GRAPH`` of
            ``chosen.py``; None if there is none.
        refusal: why its engine cannot take the next episodes; None if it can.
    """

    reset_when_done: bool
    compiled_loop: str | None
    refusal: str | None

    def change_engine(self) -> None:
        """Go on with another engine; the caller resets all environments, whose episodes end."""

    def begin_buffers(self, n_steps: int) -> Any:
        """Return buffers of T steps that begin with the present observation."""

    def observation_at(self, buffers: Any, t: int) -> TensorDict:
        """Return the observation before step t: a TensorDict [E]."""

    def step_buffers(self, buffers: Any, t: int, action: Tensor) -> Tensor:
        """Take step t by actions int64 [E, N], with resets; return done: bool [E, 1]."""

    def pack_buffers(self, buffers: Any, batch: TensorDict) -> None:
        """Write observations, states, actions, rewards and ends to a batch [E, T]."""


def fills_buffers(env: EnvBase) -> bool:
    """Return whether an environment itself is a ``BufferedEnv``.

    Its class is asked. ``SerialEnv`` and the like answer for their workers' attributes, and have
    them only once they are started.
    """
    methods = [name for name, of in vars(BufferedEnv).items() if name[0] != "_" and callable(of)]
    return all(callable(getattr(type(env), name, None)) for name in methods)


def env_state(env: EnvBase) -> dict[str, Any]:
    """Return all that later steps of an environment and its transforms depend on.

    Raises:
        TypeError: if the environment has no ``run_state`` and ``load_run_state``.
    """
    if isinstance(env, TransformedEnv):
        return {"transforms": env.transform.state_dict(), "env": env_state(env.base_env)}
    _check_resumes(env)
    return {"env": env.run_state()}


def load_env_state(env: EnvBase, state: Mapping[str, Any]) -> None:
    """Let an environment and its transforms continue from an ``env_state``.

    Raises:
        TypeError: if the environment has no ``run_state`` and ``load_run_state``.
    """
    if isinstance(env, TransformedEnv):
        env.transform.load_state_dict(state["transforms"])
        load_env_state(env.base_env, state["env"])
        return
    _check_resumes(env)
    env.load_run_state(state["env"])


def _check_resumes(env: EnvBase) -> None:
    # The class is asked: environments of several workers answer for their workers' attributes.
    if not all(hasattr(type(env), name) for name in ("run_state", "load_run_state")):
        raise TypeError(
            f"{env_name(env)}: expected run_state() and load_run_state(state), which return and "
            "set all that later steps depend on, got none; its episodes cannot go on from a "
            "checkpoint: save the collector's state_dict() to begin new ones"
        )


def env_dims(env: EnvBase) -> EnvDims:
    """Return an environment's sizes; refuse an environment that breaks the contract.

    The contract, for a batch of environments of any shape B: ``observation`` float [*B, N, O] and
    ``state`` float [*B, *S]; a categorical ``action`` [*B, N]; optionally ``action_mask`` bool
    [*B, N, A]; the team's ``reward`` [*B, 1] and the agents' [*B, N, 1]; ``terminated``, ``done``
    and optionally ``truncated`` [*B, 1]; ``is_init`` [*B, 1].

    Raises:
        ConfigError: if an entry is missing or has another shape.
    """
    offered = _offered_entries(env)
    batch, observed = env.batch_size, env.observation_spec
    *_, n_agents, observation_dim = (1, 1, *observed[keys.OBSERVATION].shape)  # [*B, N, O]
    action = offered[keys.ACTION][keys.ACTION]
    if not isinstance(action, Categorical) or isinstance(action, MultiCategorical):
        raise ConfigError(
            f"{env_name(env)}: expected a categorical {keys.ACTION!r}, got "
            f"{type(action).__name__}; in TorchRL's environments categorical_actions=True makes "
            "them so"
        )
    dims = EnvDims(
        n_agents=n_agents,
        observation_dim=observation_dim,
        n_actions=int(action.space.n),
        state_shape=observed[keys.STATE].shape[len(batch) :],
    )
    for key, optional in ((keys.ACTION_MASK, observed), (keys.TRUNCATED, env.full_done_spec)):
        if key in optional.keys(True, True):
            offered[key] = optional
    for key, shape in _expected_shapes(batch, dims).items():
        if key in offered and offered[key][key].shape != shape:
            got = tuple(offered[key][key].shape)
            raise ConfigError(f"{env_name(env)}: expected {key!r} of {shape}, got {got}")
    return dims


def env_name(env: EnvBase) -> str:
    """Return an environment's class, or its classes where a transform wraps another one."""
    inner = f" of {env_name(env.base_env)}" if isinstance(env, TransformedEnv) else ""
    return f"{type(env).__name__}{inner}"


def env_repr(env: EnvBase, name: str | None = None) -> str:
    """Return an environment in one line: its sizes, and the implementation that steps it.

    Args:
        env: under the contract, with an attribute ``how``.
        name: of its task.
    """
    sizes = {"n_envs": env.batch_size.numel(), **vars(env_dims(env))}
    sizes["state_shape"] = tuple(sizes["state_shape"])
    task = "" if name is None else f"{name}, "
    return f"{type(env).__name__}({task}{named(sizes)}; {env.how.name})"


def _offered_entries(env: EnvBase) -> dict[NestedKey, Composite]:
    """Return the spec that holds each required entry; refuse an environment that lacks one."""
    entries = {
        **dict.fromkeys((keys.OBSERVATION, keys.STATE, keys.IS_INIT), env.observation_spec),
        keys.ACTION: env.full_action_spec,
        **dict.fromkeys((keys.REWARD, keys.AGENT_REWARD), env.full_reward_spec),
        **dict.fromkeys((keys.TERMINATED, keys.DONE), env.full_done_spec),
    }
    for key, spec in entries.items():
        if key not in spec.keys(True, True):
            raise ConfigError(
                f"{env_name(env)}: expected an entry {key!r}, got {list(spec.keys(True, True))}"
            )
    return entries


def _expected_shapes(batch: torch.Size, dims: EnvDims) -> dict[NestedKey, tuple[int, ...]]:
    """Return the contract's shape of each entry, for environments of a batch shape."""
    team = (*batch, dims.n_agents)
    flags = (keys.REWARD, keys.TERMINATED, keys.TRUNCATED, keys.DONE, keys.IS_INIT)
    return {
        keys.OBSERVATION: (*team, dims.observation_dim),
        keys.ACTION: team,
        keys.ACTION_MASK: (*team, dims.n_actions),
        keys.AGENT_REWARD: (*team, 1),
        **dict.fromkeys(flags, (*batch, 1)),
    }


def set_specs(env: EnvBase, dims: EnvDims, *, masked: bool = False) -> None:
    """Set the contract's specs of an environment, its ``n_agents`` and its ``group_map``.

    The group map, as in TorchRL's environments, lists the names of the agents of each group.

    Args:
        env: its batch may have any shape.
        dims: its sizes.
        masked: whether it has an action mask.
    """
    batch, n_agents = env.batch_size, dims.n_agents
    env.n_agents = n_agents
    env.group_map = {keys.OBSERVATION[0]: [f"agent_{i}" for i in range(n_agents)]}
    to = {"device": env.device}
    flag = Binary(1, (*batch, 1), dtype=torch.bool, **to)

    def team(**specs) -> Composite:
        return Composite(specs, shape=(*batch, n_agents))

    agents = team(observation=Unbounded((*batch, n_agents, dims.observation_dim), **to))
    if masked:
        shape = (*batch, n_agents, dims.n_actions)
        agents[keys.ACTION_MASK[-1]] = Binary(dims.n_actions, shape, dtype=torch.bool, **to)
    env.observation_spec = Composite(
        agents=agents,
        state=Unbounded((*batch, *dims.state_shape), **to),
        is_init=flag.clone(),
        shape=batch,
    )
    action = Categorical(dims.n_actions, shape=(*batch, n_agents), **to)
    env.action_spec = Composite(agents=team(action=action), shape=batch)
    env.reward_spec = Composite(
        reward=Unbounded((*batch, 1), **to),
        agents=team(reward=Unbounded((*batch, n_agents, 1), **to)),
        shape=batch,
    )
    env.done_spec = Composite(
        done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=batch
    )


def resets(env: EnvBase, tensordict: TensorDictBase | None, *, reset_when_done: bool) -> Tensor:
    """Return which environments a call of ``reset`` resets: bool [*B, 1].

    Args:
        env: its batch may have any shape B.
        tensordict: the argument of ``reset``; its entry ``"_reset"`` selects environments.
        reset_when_done: whether single environments are reset; if not, only calls for all of them
            reset any, and an environment that is done runs on until then.
    """
    asked = None if tensordict is None else tensordict.get("_reset", None)  # [*B, 1]
    if asked is None:
        return torch.ones(*env.batch_size, 1, dtype=torch.bool, device=env.device)
    return asked if reset_when_done else torch.zeros_like(asked)


def set_flags(packed: TensorDict, terminated: Tensor, truncated: Tensor) -> TensorDict:
    """Set the flags of an episode's end in an environment's output.

    Args:
        packed: the output, a TensorDict [E] or [E, T].
        terminated: bool [E, 1] or [E, T, 1].
        truncated: of the same shape.

    Returns:
        ``packed``.
    """
    packed.set(keys.TERMINATED, terminated)
    packed.set(keys.TRUNCATED, truncated)
    return packed.set(keys.DONE, terminated | truncated)


def check_sizes(**sizes: int) -> None:
    """Refuse sizes of an environment that are below 1.

    Raises:
        ConfigError: if a size is below 1; it names the size.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"env.{name}: expected at least 1, got {size}")


def check_choice(name: str, choice: str, known: Sequence[str]) -> None:
    """Refuse an unknown value of an option.

    Raises:
        ConfigError: if the value is unknown; it lists the known ones.
    """
    if choice not in known:
        raise ConfigError(f"env.{name}: expected one of {', '.join(known)}, got {choice!r}")


def check_resumed(of: str, state: Mapping[str, Any], **tensors: Tensor) -> None:
    """Refuse a state whose tensors do not have the shapes of an environment's.

    Args:
        of: the environment's class, for the message.
        state: with the saved tensors, by name.
        **tensors: the environment's own.

    Raises:
        ValueError: if a shape differs.
    """
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{of}: expected {name!r} of shape {tuple(tensor.shape)}, got "
                f"{tuple(state[name].shape)}; load a state of as many environments"
            )


def check_share(name: str, share: float) -> None:
    """Refuse a share that is not between 0 and 1.

    Raises:
        ConfigError: if it is not.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"env.{name}: expected a number from 0 to 1, got {share}")


def check_keywords(of: str, known: list[str], scenario_kwargs: Mapping[str, Any]) -> None:
    """Refuse keywords that a scenario or a game does not take.

    Raises:
        ConfigError: if a keyword is unknown; it lists the known ones.
    """
    for keyword in scenario_kwargs:
        if keyword not in known:
            raise ConfigError(
                f"env.scenario_kwargs.{keyword}: unknown to {of}{nearest(keyword, known)}; "
                f"it takes: {', '.join(known) or 'none'}; {{}} in their place clears all"
            )
