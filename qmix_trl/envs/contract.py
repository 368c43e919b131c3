"""What every environment offers, whatever its family: canonical keys, shapes and dtypes."""

from dataclasses import dataclass

import torch
from torchrl.envs import EnvBase

from qmix_trl import keys
from qmix_trl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EnvDims:
    """The sizes that agents and mixers are built from."""

    n_agents: int
    observation_dim: int
    n_actions: int
    state_shape: torch.Size


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
