"""Files of scenarios as a user writes them, for the tests of a scenario of one's own."""

from pathlib import Path

from recipe_tools import run

HEADER = """\
import torch
from vmas.simulator.core import Agent, Landmark, World
from vmas.simulator.scenario import BaseScenario
"""
# Each scenario has two agents in drawn places, and a reward of minus the distance to the origin.
BASE = """\
class Base(BaseScenario):
    names = ("agent_0", "agent_1")

    def make_world(self, batch_dim, device, **kwargs):
        world = World(batch_dim, device, substeps=1)
        for name in self.names:
            world.add_agent(self.agent(name, world))
        return world

    def agent(self, name, world):
        return Agent(name, collide=False)

    def reset_world_at(self, env_index=None):
        n = self.world.batch_dim if env_index is None else 1
        for agent in self.world.agents:
            agent.set_pos(torch.rand(n, 2) - 0.5, batch_index=env_index)

    def reward(self, agent):
        return -agent.state.pos.norm(dim=-1)

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.vel], -1)
"""
# By name: the files of a folder, of which the first is the scenario's.
FILES = {
    "helpers": {
        "helpers.py": HEADER
        + "from scenario_base import Base\n"
        + "import scaling\n"
        + "class Helped(Base):\n"
        + "    def reward(self, agent):\n"
        + "        return scaling.scaled(super().reward(agent))\n",
        "scenario_base.py": HEADER + BASE,
        "scaling.py": "FACTOR = 2.0\n\ndef scaled(x):\n    return FACTOR * x\n",
    },
    "sensors": {
        "sensors.py": HEADER
        + "from vmas.simulator.sensors import Lidar\n"
        + BASE
        + """
class Sensing(Base):
    def agent(self, name, world):
        lidar = Lidar(world, n_rays=4, max_range=1.0, entity_filter=lambda e: e.name[0] == "a")
        return Agent(name, sensors=[lidar])

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.sensors[0].measure()], -1)
"""
    },
    "roles": {
        "roles.py": HEADER
        + BASE
        + '''
class Roles(Base):
    """Agents named by role: the scout observes more than the carrier, and has fewer actions."""

    names = ("scout", "carrier")

    def agent(self, name, world):
        return Agent(name, discrete_action_nvec=[3, 3] if name == "carrier" else [3, 2])

    def observation(self, agent):
        parts = [agent.state.pos, agent.state.vel][: 1 + (agent.name == "scout")]
        return torch.cat(parts, -1)
'''
    },
    "masks": {
        "masks.py": HEADER
        + BASE
        + '''
class Masked(Base):
    """Agents to the right of the middle must not go on to the right (actions 6 to 8)."""

    def observation(self, agent):
        mask = torch.ones(self.world.batch_dim, 9, dtype=torch.bool)
        mask[:, 6:] = (agent.state.pos[:, :1] <= 0)
        return {"seen": agent.state.pos, "action_mask": mask}
'''
    },
    "controllers": {
        "controllers.py": HEADER
        + "from vmas.simulator.controllers.velocity_controller import VelocityController\n"
        + BASE
        + """
class Controlled(Base):
    def agent(self, name, world):
        agent = Agent(name, collide=False, u_range=0.5)
        agent.controller = VelocityController(agent, world, [4, 1.25, 0.001], "standard")
        return agent

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        for agent in self.world.agents:
            agent.controller.reset(env_index)

    def process_action(self, agent):
        agent.controller.process_force()

    def info(self, agent):
        return {"speed": agent.state.vel.norm(dim=-1)}
"""
    },
    "scripted": {
        "scripted.py": HEADER
        + "from vmas.simulator.heuristic_policy import BaseHeuristicPolicy\n"
        + BASE
        + '''
def drift(agent, world):
    """The guard moves upwards at half its force."""
    agent.action.u = torch.tensor([0.0, 0.5]).expand(world.batch_dim, 2)


class Scripted(Base):
    """A red agent, a blue one, and a guard with a script of its own."""

    names = ("red_0", "blue_0", "guard")

    def agent(self, name, world):
        return Agent(name, collide=False, action_script=drift if name == "guard" else None)


class HeuristicPolicy(BaseHeuristicPolicy):
    """Moves to the right."""

    def compute_action(self, observation, u_range):
        return torch.tensor([1.0, 0.0]).expand(observation.shape[0], 2) * u_range
'''
    },
}


def written(folder: Path, name: str) -> Path:
    """Write the files of a scenario to a folder; return its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in FILES[name].items():
        (folder / file).write_text(text)
    return folder / next(iter(FILES[name]))


def trained(folder: Path, scenario: str, *overrides: str) -> Path:
    """Train two iterations on a scenario; return the run's folder."""
    return run(folder, f"env.scenario={scenario}", "env.scenario_kwargs={}", *overrides)
