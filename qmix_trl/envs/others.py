"""The agents of a VMAS scenario that act outside the team, and their actions at each step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor
from vmas.simulator.core import Agent
from vmas.simulator.environment import Environment
from vmas.simulator.heuristic_policy import BaseHeuristicPolicy
from vmas.simulator.scenario import BaseScenario

from qmix_trl.errors import ConfigError

NO_OP, RANDOM, SCRIPTED = "no_op", "random", "scripted"
OTHERS = (NO_OP, RANDOM, SCRIPTED)
HEURISTIC = "HeuristicPolicy"  # the name of VMAS's own scenarios for their script
SCRIPT = "script_of_others"  # an attribute of a simulator, which is saved with all that it holds


class Simulation(Protocol):
    """The part of ``VmasSimulation`` that the others see.

    Attributes:
        simulator: VMAS.
        others: the indices of the others.
        n_envs: E.
        device: of the simulation.
    """

    simulator: Environment
    others: list[int]
    n_envs: int
    device: torch.device

    def seen_by(self, indices: list[int]) -> tuple[Tensor, Tensor | None]:
        """Return observation [E, M, O] and mask [E, M, A], or None, of some agents now."""
        ...

    def n_actions_of(self, i: int) -> int:
        """Return the number of actions of agent i."""
        ...


class Acting(Protocol):
    """The actions of the others in one simulation."""

    def commands(self) -> dict[int, Tensor]:
        """Return actions int64 [E, 1] or forces float32 [E, D] by the agents' indices.

        An agent that is left out takes action 0.
        """
        ...

    def forget(self, i: int | None) -> None:
        """Begin an episode of environment i, or of all."""
        ...


class Still:
    """The others do nothing.

    Action 0 is no force where VMAS has an odd number of actions for each dimension; elsewhere the
    force itself is 0.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        agents = [(i, simulation.simulator.agents[i]) for i in simulation.others]
        self._even = [
            (i, agent) for i, agent in agents if any(n % 2 == 0 for n in agent.discrete_action_nvec)
        ]

    def commands(self) -> dict[int, Tensor]:
        """Return forces 0 of the agents that have no action without a force."""
        n, device = self._simulation.n_envs, self._simulation.device
        return {i: torch.zeros(n, agent.action_size, device=device) for i, agent in self._even}

    def forget(self, i: int | None) -> None:
        """Do nothing: there is no memory."""


class Random:
    """The others draw from their available actions, each action with the same probability."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._masked = simulation.seen_by(simulation.others)[1] is not None

    def commands(self) -> dict[int, Tensor]:
        """Return the actions, int64 [E, 1] each, from torch's present generator."""
        simulation = self._simulation
        n_envs, to = simulation.n_envs, {"device": simulation.device}
        if self._masked:
            _, mask = simulation.seen_by(simulation.others)
            assert mask is not None
            scores = torch.rand(mask.shape, **to).masked_fill(mask == 0, -1)
            drawn = scores.argmax(2, keepdim=True)  # [E, M, 1]
            return dict(zip(simulation.others, drawn.unbind(1), strict=True))
        found = {}
        for i in simulation.others:
            n = simulation.n_actions_of(i)
            # Rounding may make the product n.
            found[i] = (torch.rand(n_envs, 1, **to) * n).to(torch.int64).clamp(max=n - 1)
        return found

    def forget(self, i: int | None) -> None:
        """Do nothing: there is no memory."""


class Scripted:
    """The others act by the scenario's ``HeuristicPolicy``, which computes forces.

    Raises:
        ConfigError: if the scenario's file has none.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        scenario = simulation.simulator.scenario
        cls = heuristic_of(scenario)
        if cls is None:
            raise ConfigError(
                f"env.others: scripted: expected a class {HEURISTIC} in the file of "
                f"{type(scenario).__name__}, as VMAS's own scenarios have it, got none (an agent "
                "with an action_script of its own acts by that, whatever env.others is)"
            )
        # The simulator holds it, so that what it keeps from step to step counts as state.
        setattr(simulation.simulator, SCRIPT, cls(True))

    def commands(self) -> dict[int, Tensor]:
        """Return the forces, float32 [E, D] each.

        Raises:
            ConfigError: if one has another shape.
        """
        simulator, found = self._simulation.simulator, {}
        script: Any = vars(simulator)[SCRIPT]
        for i in self._simulation.others:
            agent = simulator.agents[i]
            observation = simulator.scenario.observation(agent)
            force = script.compute_action(observation, u_range=agent.u_range)
            shape = (self._simulation.n_envs, agent.action_size)
            if force.shape != shape:
                raise ConfigError(
                    f"env.others: scripted: expected compute_action of {HEURISTIC} to return "
                    f"{list(shape)}, got {list(force.shape)}"
                )
            found[i] = force
        return found

    def forget(self, i: int | None) -> None:
        """Do nothing: the script sees no resets, as in VMAS."""


def acting(others: str | Callable[[Simulation], Acting], simulation: Simulation) -> Acting:
    """Return the actions of the agents outside a team.

    Args:
        others: one of ``OTHERS``, or a function that returns them.
        simulation: of E environments.

    Raises:
        ConfigError: if there are none that could act, or they cannot act so.
    """
    if others != NO_OP and not simulation.others:
        raise ConfigError(
            "env.others: expected agents outside the team, got none; set env.others=no_op, or "
            "choose a team by env.group"
        )
    if not isinstance(others, str):
        return others(simulation)
    return {NO_OP: Still, RANDOM: Random, SCRIPTED: Scripted}[others](simulation)


def heuristic_of(scenario: BaseScenario) -> type[BaseHeuristicPolicy] | None:
    """Return the ``HeuristicPolicy`` in the file of a scenario's class, or of a base; or None."""
    for cls in type(scenario).__mro__:
        functions = [f for f in vars(cls).values() if isinstance(f, FunctionType)]
        for function in functions:
            found = function.__globals__.get(HEURISTIC)
            if isinstance(found, type) and issubclass(found, BaseHeuristicPolicy):
                return found
    return None


@contextmanager
def forced(forces: Mapping[str, Tensor]) -> Iterator[None]:
    """Let agents move by forces, not by numbers of actions, within a ``with`` block.

    Args:
        forces: float32 [E, D] by the agent's name.
    """
    original = Environment._set_action

    def set_action(self: Environment, action: Tensor, agent: Agent) -> None:
        force = forces.get(agent.name)
        if force is None:
            original(self, action, agent)
            return
        silence = force.new_zeros(len(force), 0 if agent.silent else self.world.dim_c)
        self.continuous_actions = True
        try:
            original(self, torch.cat([force, silence], 1), agent)
        finally:
            self.continuous_actions = False

    Environment._set_action = set_action
    try:
        yield
    finally:
        Environment._set_action = original
