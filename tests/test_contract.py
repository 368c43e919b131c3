"""The contract of environments: environments that break it, and unknown families."""

import pytest
from torchrl.data import Composite, Unbounded
from torchrl.envs.libs.vmas import VmasEnv
from vmas_tools import make_env

from qmix_trl import env_dims
from qmix_trl import make_env as make_env_of
from qmix_trl.errors import ConfigError


def test_an_environment_without_the_canonical_entries_is_refused():
    theirs = VmasEnv("balance", num_envs=2, continuous_actions=False, seed=0)
    with pytest.raises(ConfigError, match="expected an entry"):
        env_dims(theirs)


def test_an_entry_of_another_shape_is_refused():
    env = make_env("balance")
    agents = Composite(reward=Unbounded((2, 3, 1)), shape=(2, 3))
    env.reward_spec = Composite(reward=Unbounded((2, 3)), agents=agents, shape=(2,))
    with pytest.raises(ConfigError, match=r"expected 'reward' of \(2, 1\), got \(2, 3\)"):
        env_dims(env)


def test_an_unknown_family_is_refused():
    with pytest.raises(ConfigError, match=r"unknown family 'vnas'; did you mean 'vmas'\?; known: "):
        make_env_of("vnas", scenario="balance")
