"""Rendezvous, a scenario of VMAS as a user writes it: agents meet wherever they like."""

import torch
from torch import Tensor
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario


class Rendezvous(BaseScenario):
    """Agents begin in random places, observe where the others are, and are paid for nearness."""

    def make_world(self, batch_dim: int, device: torch.device, **kwargs) -> World:
        """Return a world of ``n_agents`` agents, three by default."""
        world = World(batch_dim, device, x_semidim=1.0, y_semidim=1.0)
        for i in range(kwargs.pop("n_agents", 3)):
            world.add_agent(Agent(f"agent_{i}", collide=False))
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        """Begin an episode in one environment, or in all of them."""
        n_envs = self.world.batch_dim if env_index is None else 1
        for agent in self.world.agents:
            place = torch.rand(n_envs, 2, device=self.world.device) * 2 - 1
            agent.set_pos(place, batch_index=env_index)

    def observation(self, agent: Agent) -> Tensor:
        """Return velocity and place, and the way to each other agent: [E, 4 + 2 (N - 1)]."""
        return torch.cat([agent.state.vel, agent.state.pos, *self.ways(agent)], -1)

    def reward(self, agent: Agent) -> Tensor:
        """Return minus the mean distance to the other agents: [E]."""
        return -torch.stack(self.ways(agent)).norm(dim=-1).mean(0)

    def ways(self, agent: Agent) -> list[Tensor]:
        """Return the ways from an agent to all others, [E, 2] each."""
        others = [other for other in self.world.agents if other is not agent]
        return [other.state.pos.sub(agent.state.pos) for other in others]
