"""Code that does not end is given up on, and nothing else is."""

import time

import pytest
import torch
from compiled_tools import Plain

from qmix_trl import make_env
from qmix_trl.envs import time_limit, vmas_simulation
from qmix_trl.envs.time_limit import NoEnd, ended_within
from qmix_trl.errors import ConfigError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Look for the end of the time often, and give a reset half a second."""
    monkeypatch.setattr(time_limit, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(vmas_simulation, "RESET_SECONDS", 0.5)


def spin(seconds):
    """Run Python code for some seconds, which catches every error."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            sum(range(100))
        except Exception:
            continue


def wait():
    """Wait without an end."""
    while True:
        time.sleep(0.01)


def test_code_that_takes_too_long_ends():
    told = r"the search did not end within 0\.1 s"
    with pytest.raises(NoEnd, match=told), ended_within(0.1, "the search"):
        spin(60)


def test_an_inner_block_has_the_limit_of_the_outer_one():
    outer, inner = ended_within(0.1, "the outer"), ended_within(60, "the inner")
    with pytest.raises(NoEnd, match="the outer"), outer, inner:
        spin(60)


def test_code_that_waits_has_ten_times_as_long():
    with ended_within(0.2, "it"):
        time.sleep(0.5)
    begin = time.monotonic()
    with pytest.raises(NoEnd, match="the wait did not end"), ended_within(0.1, "the wait"):
        wait()
    assert time.monotonic() - begin >= 1


def test_code_that_ends_is_left_alone_and_so_is_the_code_after_it():
    for _ in range(20):
        with ended_within(0.05, "it"):
            pass
    spin(0.3)


class Unfitting(Plain):
    """Draws until no environment is in the right half: never, in larger batches."""

    largest = 2

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        while self.world.batch_dim > self.largest and (torch.rand(4) < 2).any():
            pass


def env_of(scenario, n_envs, **settings):
    """Return an environment of a scenario, by the fastest engine that runs it."""
    return make_env(
        "vmas",
        scenario=scenario,
        n_envs=n_envs,
        max_steps=10,
        state="world",
        team_reward="mean",
        seed=0,
        **settings,
    )


def test_a_reset_that_does_not_end_in_the_user_s_batch_is_told():
    told = r"'Unfitting': making 3 environments did not end within 0\.5 s"
    with pytest.raises(ConfigError, match=told):
        env_of(Unfitting(), 3, engine="eager")


def test_a_reset_that_does_not_end_in_a_compiled_engine_s_batch_leaves_vmas_itself():
    env = env_of(Unfitting(), 2)
    assert env.how.name == "eager"
    assert "did not end within" in env.how.passed_over["kernel"]
    assert env.rollout(3).batch_size == (2, 3)
