"""Scenarios of kinds that VMAS takes: types of numbers, keywords, one environment only, memory."""

import threading

import torch
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import Color


class Walk(BaseScenario):
    """Two agents from drawn places; the reward is -x, an episode ends at x > 0.5 of the first."""

    def make_world(self, batch_dim, device, **kwargs):
        return self.world_of(batch_dim, device, kwargs.pop("n_agents", 2))

    def world_of(self, batch_dim, device, n_agents):
        world = World(batch_dim, device)
        for i in range(n_agents):
            world.add_agent(Agent(f"agent_{i}", collide=False))
        return world

    def reset_world_at(self, env_index=None):
        n = self.world.batch_dim if env_index is None else 1
        for agent in self.world.agents:
            agent.set_pos(torch.rand(n, 2), batch_index=env_index)

    def reward(self, agent):
        return -agent.state.pos[:, 0]

    def observation(self, agent):
        return agent.state.pos

    def done(self):
        return self.world.agents[0].state.pos[:, 0] > 0.5


class Mixed(Walk):
    """Each agent's reward is of another type; the observation's parts and the end, too."""

    def make_world(self, batch_dim, device):
        return self.world_of(batch_dim, device, 5)

    def reward(self, agent):
        x = agent.state.pos[:, 0]
        kinds = [(x * 4).long(), x > 0.5, x.double(), x[:, None], torch.tensor(-1.0)]
        return kinds[self.world.agents.index(agent)]

    def observation(self, agent):
        x = agent.state.pos
        return {"double": x.double(), "int": (x[:, 0] * 4).long(), "bool": x[:, 1] > 0.5}

    def done(self):
        return super().done().float()


class Returning(Walk):
    """Returns what it is given for one method, made of its usual result."""

    def __init__(self, method, change):
        super().__init__()
        self.method = method
        self.change = change

    def reward(self, agent):
        return self.changed("reward", super().reward(agent))

    def observation(self, agent):
        return self.changed("observation", super().observation(agent))

    def done(self):
        return self.changed("done", super().done())

    def changed(self, method, value):
        return self.change(value) if method == self.method else value


class Named(Walk):
    def make_world(self, batch_dim, device, n_agents=2, **kwargs):
        return self.world_of(batch_dim, device, n_agents)


class Subscript(Walk):
    def make_world(self, batch_dim, device, **kwargs):
        given = "n_agents" in kwargs
        return self.world_of(batch_dim, device, int(kwargs["n_agents"]) if given else 2)


class OtherName(Walk):
    def make_world(self, batch_dim, device, **options):
        return self.world_of(batch_dim, device, options.pop("n_agents", 2))


class OfBase(Walk):
    def make_world(self, batch_dim, device, **kwargs):
        self.scale = kwargs.pop("scale", 1.0)
        return super().make_world(batch_dim, device, **kwargs)


class Helper(Walk):
    def make_world(self, batch_dim, device, **kwargs):
        self.load(kwargs)
        return self.world_of(batch_dim, device, self.n_agents)

    def load(self, source):
        for key, default in (("n_agents", 2),):
            setattr(self, key, source.pop(key, default))


class Kept(Walk):
    def make_world(self, batch_dim, device, **kwargs):
        self.settings = kwargs
        return self.world_of(batch_dim, device, self.settings.get("n_agents", 2))


class OneEnv(Walk):
    """Its reward runs with one environment only."""

    def reward(self, agent):
        return agent.state.pos[:, 0] + (10 if agent.state.pos[:, 0] > 0.5 else 0)


class Carry(Walk):
    """Observes the number of steps since the scenario was made, which no reset touches."""

    def make_world(self, batch_dim, device):
        self.life = torch.zeros(batch_dim)
        return self.world_of(batch_dim, device, 2)

    def post_step(self):
        self.life += 1

    def observation(self, agent):
        return self.life[:, None].clone()


class Holding(Walk):
    """Holds a lock, a module, functions of itself and of a variable, and an open file."""

    def __init__(self, path):
        super().__init__()
        count = 0

        def counted():
            nonlocal count
            count += 1
            return count

        self.lock = threading.RLock()
        self.torch = torch
        self.counted = counted
        self.scale = 1.0
        self.scaled = lambda x: x * self.scale
        self.bound = self.half
        self.file = open(path)  # noqa: SIM115 - as long open as the scenario lives

    def half(self, x):
        return x * self.scale / 2


class Informing(Walk):
    """Tells x and twice the velocity of each agent."""

    def info(self, agent):
        return {"x": agent.state.pos[:, 0], "more": {"speed": agent.state.vel * 2}}


class Groups(Walk):
    """One agent of each of two groups."""

    def make_world(self, batch_dim, device):
        world = World(batch_dim, device)
        for name in ("red_0", "blue_0"):
            world.add_agent(Agent(name, collide=False))
        return world


class Recolouring(Walk):
    """The agents swap red and green in each step."""

    def make_world(self, batch_dim, device):
        world = self.world_of(batch_dim, device, 2)
        world.agents[0].color, world.agents[1].color = Color.RED, Color.GREEN
        return world

    def post_step(self):
        first, second = self.world.agents
        first.color, second.color = second.color, first.color


class ReadingColours(Recolouring):
    """Observes whether an agent is red: its colour is state."""

    def observation(self, agent):
        red = agent.color == Color.RED.value
        return torch.full((self.world.batch_dim, 1), float(red))
