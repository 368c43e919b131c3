"""Tensors that an episode hands over to the next stay an environment's own in every engine."""

import pytest
import torch
from compiled_tools import Plain, simulation_of

from qmix_trl import make_env
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.trace import traced
from qmix_trl.keys import REWARD, next_key
from qmix_trl.native import build

E, LIMIT = 5, 4

try:
    build.compiler()
except build.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)


class Tiring(Plain):
    """Counts the steps of each environment over all episodes; the reward is their number."""

    def make_world(self, batch_dim, device, **kwargs):
        self.steps = torch.arange(batch_dim, device=device) * 100.0
        return super().make_world(batch_dim, device)

    def post_step(self):
        self.steps = self.steps + 1

    def reward(self, agent):
        return self.steps.clone()


class Remembering(Tiring):
    """Writes the number in resets to a tensor that the next step overwrites, or reads."""

    def __init__(self, *, reads):
        super().__init__()
        self.reads = reads

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.before = self.steps.clone()

    def reward(self, agent):
        gained = self.steps - self.before if self.reads else self.steps
        self.before = self.steps.clone()
        return gained


class Showing(Tiring):
    """Shows the number in the observation."""

    def observation(self, agent):
        return agent.state.pos + self.steps[:, None]


class Common(Tiring):
    """Has one number for all environments."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device)
        self.steps = torch.zeros(1, device=device)
        return world

    def reward(self, agent):
        return self.steps.expand(self.world.batch_dim).clone()


def env_of(scenario, engine):
    """Return a small environment with short episodes."""
    return make_env(
        "vmas",
        scenario=scenario,
        n_envs=E,
        max_steps=LIMIT,
        state="world",
        team_reward="mean",
        seed=0,
        engine=engine,
    )


@pytest.mark.parametrize(
    ("scenario", "engine"),
    [
        (Tiring(), "eager"),
        (Tiring(), "kernel"),
        pytest.param(Tiring(), "inductor", marks=pytest.mark.slow),
        (Remembering(reads=False), "eager"),
        (Remembering(reads=False), "kernel"),
    ],
)
def test_a_number_that_resets_leave_alone_goes_on(scenario, engine):
    env = env_of(scenario, engine)
    n_steps = 3 * LIMIT
    rewards = env.rollout(n_steps, break_when_any_done=False)[next_key(REWARD)][..., 0]
    # Environment e begins with 100 e, and each step adds 1, also across ends of episodes.
    first = 100.0 * torch.arange(E)[:, None]
    assert torch.equal(rewards, first + torch.arange(1, n_steps + 1))


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        (Remembering(reads=True), r"what went before: env\.scenario\.before"),
        (Showing(), "what went before: observation"),
        (Common(), r"write a number of all environments: env\.scenario\.steps"),
    ],
)
def test_what_a_reset_makes_of_such_a_number_is_refused(scenario, told):
    with pytest.raises(Untraceable, match=told):
        traced(simulation_of(scenario, TRACE_ENVS))


def test_a_reset_that_writes_such_a_number_after_all_is_noticed():
    env = env_of(Tiring(), "auto")
    assert env.how.name == "kernel"
    fresh = env.engine.fresh
    fresh.simulation.simulator.scenario.steps += 1
    fresh.renew()
    assert "env.scenario.steps" in env.refusal
