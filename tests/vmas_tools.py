"""Small VMAS environments, for the tests of environments."""

import torch
from vmas.simulator.core import Agent, Landmark, World
from vmas.simulator.scenario import BaseScenario

from qmix_trl import env_dims
from qmix_trl import make_env as make_env_of
from qmix_trl.policy import RandomPolicy

SEVERAL_GROUPS = (
    "diff_drive",
    "kinematic_bicycle",
    "simple_adversary",
    "simple_crypto",
    "simple_push",
    "simple_speaker_listener",
    "simple_tag",
    "simple_world_comm",
)


def make_env(scenario="balance", **settings):
    """Return a small environment; ``settings`` override its own."""
    settings = {
        "n_envs": 2,
        "max_steps": 100,
        "state": "world",
        "team_reward": "mean",
        "seed": 0,
        "engine": "eager",
        "verify": 0.0,
        **settings,
    }
    return make_env_of("vmas", scenario=scenario, **settings)


def rollout(env, steps, *, seed=0):
    """Return random steps [E, T] that continue after the end of an episode."""
    policy = RandomPolicy(env_dims(env).n_actions, seed=seed)
    return env.rollout(steps, policy, break_when_any_done=False)


class OwnScenario(BaseScenario):
    """Agents that move freely; an episode ends when the first agent is right of 0.02."""

    def make_world(self, batch_dim, device, **kwargs):
        world = World(batch_dim, device)
        for i in range(kwargs.pop("n_walkers", 2)):
            world.add_agent(Agent(name=f"agent_{i}", collide=False))
        world.add_landmark(Landmark(name="mark", collide=False))
        return world

    def reset_world_at(self, env_index=None):
        for agent in self.world.agents:
            agent.set_pos(torch.zeros(1, 2), batch_index=env_index)

    def reward(self, agent):
        return agent.state.pos[:, 0]

    def observation(self, agent):
        return {"position": agent.state.pos, "velocity": agent.state.vel}

    def done(self):
        return self.world.agents[0].state.pos[:, 0] > 0.02
