"""MPE Spread as in Papoudakis et al. (2021): VMAS's simple_spread with MPE's five actions.

Rewards are those of VMAS: the sum over agents of MPE's rewards, without -1 for each agent at each
step, as MPE lets an agent collide with itself. The paper's returns are those of 25 steps less 75.
"""

import torch
from vmas.scenarios.mpe.simple_spread import Scenario as SimpleSpread
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.dynamics.common import Dynamics
from vmas.simulator.utils import Color

FORCE = 5.0  # of an action; MPE's "sensitivity"


class FiveActions(Dynamics):
    """MPE's actions 0 to 4: stay, left, right, down, up; VMAS makes them u = 0, -1, -.5, .5, 1."""

    @property
    def needed_action_size(self) -> int:
        """The number of actions that an agent chooses at a step."""
        return 1

    def process_action(self) -> None:
        """Set the agent's force."""
        u = self.agent.action.u[:, 0]
        right = (u == -0.5).float() - (u == -1.0).float()
        up = (u == 1.0).float() - (u == 0.5).float()
        self.agent.state.force = FORCE * torch.stack([right, up], -1)


class MpeSpread(SimpleSpread):
    """Three agents cover three landmarks and avoid each other."""

    def make_world(self, batch_dim: int, device: torch.device, **kwargs) -> World:
        """Return the world of simple_spread, with ``FiveActions``."""
        n_agents = kwargs.pop("n_agents", 3)
        self.obs_agents = True
        world = World(batch_dim, device)
        for i in range(n_agents):
            name, shape = f"agent_{i}", Sphere(radius=0.15)
            dynamics, nvec = FiveActions(), [5]
            world.add_agent(Agent(name, shape=shape, dynamics=dynamics, discrete_action_nvec=nvec))
        for i in range(n_agents):
            world.add_landmark(Landmark(f"landmark {i}", collide=False, color=Color.BLACK))
        return world
