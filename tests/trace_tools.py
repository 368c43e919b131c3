"""Scenarios that keep their state in many ways, for the tests of a trace."""

import random

import torch
from compiled_tools import Plain

from qmix_trl.envs.compiled.trace.state import find_state, random_step


class Hoarder(Plain):
    """Keeps state in attributes, a list, a dictionary and a closure."""

    def make_world(self, batch_dim, device, **kwargs):
        self.listed = [torch.zeros(batch_dim), torch.ones(batch_dim)]
        self.mapped = {"count": torch.zeros(batch_dim), "never": torch.ones(batch_dim)}
        held = [torch.zeros(batch_dim)]

        def tally():
            held[0] += 1

        self.tally, self.weight, self.size = tally, 1.0, 2.0
        world = super().make_world(batch_dim, device)
        self.goal = world.landmarks[0]
        return world

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.weight = random.random()
        self.goal = self.world.landmarks[random.randrange(2)]
        self.listed[0].zero_()

    def post_step(self):
        self.listed[0] += self.weight
        self.mapped["count"] = self.mapped["count"] + self.world.agents[0].state.pos[:, 0]
        self.tally()

    def observation(self, agent):
        return torch.cat([agent.state.pos, self.goal.state.pos, self.listed[0][:, None]], -1)


class Alias(Plain):
    """Holds one tensor under two names; writes to the one and reads the other."""

    def make_world(self, batch_dim, device, **kwargs):
        self.written = self.read = torch.zeros(batch_dim)
        return super().make_world(batch_dim, device)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.written.zero_()

    def post_step(self):
        self.written += 1

    def observation(self, agent):
        return self.read[:, None].clone()


class Viewed(Alias):
    """Writes to a tensor and reads a view of it."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device)
        self.read = self.written.view(-1)
        return world


class Tuple(Plain):
    """Keeps state in a tuple, where no other tensor can be put."""

    def make_world(self, batch_dim, device, **kwargs):
        self.pair = (torch.zeros(batch_dim), 1)
        return super().make_world(batch_dim, device)

    def post_step(self):
        self.pair[0].add_(1)


class Counter(Plain):
    """Counts its steps in a Python integer."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.n_steps = 0

    def post_step(self):
        self.n_steps += 1


def state_of(simulation):
    """Return the paths of a simulation's state."""
    with simulation.random_stream.in_vmas():
        return find_state(simulation.simulator, random_step(simulation))


def observations(simulation, steps):
    """Return the observations of steps by action 1: float [T, E, N, O]."""
    action = torch.ones(simulation.n_envs, 1, dtype=torch.int64)
    return torch.stack([simulation.step(action).seen.observation for _ in range(steps)])
