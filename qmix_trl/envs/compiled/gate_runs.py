"""The runs of the gate: their lengths, the actions of each environment, and edge states."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from vmas.simulator.core import Entity
from vmas.simulator.environment import Environment

from qmix_trl.envs.compiled.trace.own_code import is_own_module, packages_of
from qmix_trl.envs.compiled.trace.parts import class_data
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

RESET_STEPS, RESET_EVERY = 48, 6
FREE_STEPS, MOST_FREE_STEPS = 300, 2000
AFTER_LIMIT = 20  # steps of a free run after the last limit that the scenario mentions
EDGE_ROUNDS, EDGE_STEPS = 4, 5
FAST = 10.0  # the speed of edge states where an entity has no maximum
DRIFT = 20  # steps for which a drifting agent holds an action
PUSH_STEPS = 2  # after which the effect of an action on the velocity is measured
# Functions that run once: their numbers matter only as attributes.
MAKERS = ("__init__", "make_world")
# The rules of environments 0, 1, .. of a free run, repeated.
PILOTS = (
    *("held", "random", "held", "towards each other", "held", "outwards"),
    *("held", "random", "held", "towards the nearest entity", "random", "drifting"),
)
PLACES = ("on one spot", "in pairs", "at the bounds", "on the first agent")
SPEEDS = ("at rest", "fast")


@dataclass(frozen=True)
class Extent:
    """The lengths of the gate's runs.

    Attributes:
        resets: steps of the run with a reset at every sixth step.
        free: steps of the run without resets.
        edges: the number of times that edge states are written.
    """

    resets: int
    free: int
    edges: int


AGAIN = Extent(4, 0, 0)  # at each start
ONCE = Extent(1, 0, 0)  # of many environments


def full_extent(simulation: VmasSimulation) -> Extent:
    """Return the lengths of the runs before a kernel is first used."""
    limits = [n for n in mentioned_numbers(simulation.simulator) if n <= MOST_FREE_STEPS]
    longest = max([0, *limits])
    return Extent(RESET_STEPS, max(FREE_STEPS, longest + AFTER_LIMIT), EDGE_ROUNDS)


def mentioned_numbers(simulator: Environment) -> set[int]:
    """Return the whole numbers in the code of the user's classes and in their objects."""
    found = set()
    packages = packages_of(simulator.scenario)
    for cls in type(simulator.scenario).__mro__:
        if is_own_module(cls.__module__, packages):
            members = [f for name, f in class_data(cls) if name not in MAKERS]
            functions = [f for f in members if isinstance(f, types.FunctionType)]
            found |= {n for function in functions for n in _constants(function.__code__)}
    values = walk(simulator).values.items()
    found |= {n for path, n in values if _may_hold_limits(path, packages)}
    return {int(n) for n in found if _is_whole(n)}


def _may_hold_limits(path: str, packages: frozenset[str]) -> bool:
    """Say whether a path is of a value of the user's, but for the size of pictures."""
    kind, _, name = path.partition(" ")
    if kind in ("class", "module"):
        return is_own_module(name, packages)
    return path.startswith(("env.scenario.", "<")) and ".viewer_" not in path


def _constants(code: types.CodeType) -> Iterator[object]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants(constant)
        else:
            yield constant


def _is_whole(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 2**31 and value == int(value)


# ------------------------------------------------------------------------------ actions


def random_actions(simulation: VmasSimulation, generator: torch.Generator) -> Tensor:
    """Return random actions of the team, int64 [E, N]."""
    shape = (simulation.n_envs, len(simulation.team))
    return torch.randint(simulation.n_actions, shape, generator=generator)


class Pilots:
    """The actions of a free run; each environment has its own rule.

    Args:
        simulation: the simulation that is steered.
        scratch: another one, in which the effects of actions are measured.
        n_steps: the length of the run.

    Attributes:
        rules: the name of each environment's rule.
    """

    def __init__(self, simulation: VmasSimulation, scratch: VmasSimulation, n_steps: int) -> None:
        self.simulation = simulation
        self._pushes = pushes(scratch)
        self._generator = torch.Generator().manual_seed(2)
        self._drifting = random_actions(simulation, self._generator)
        self._held, self._phase = self._plan_held(n_steps)
        n = simulation.n_envs
        self.rules = [PILOTS[e % len(PILOTS)] for e in range(n)]

    def _plan_held(self, n_steps: int) -> tuple[Tensor, int]:
        """Return the first held action of each environment, and the steps until the next one.

        With more actions than environments that hold one, each holds several, one after another.
        """
        n_envs, n_actions = self.simulation.n_envs, self.simulation.n_actions
        is_held = torch.tensor([PILOTS[e % len(PILOTS)] == "held" for e in range(n_envs)])
        self._n_held = int(is_held.sum())
        return is_held.cumsum(0) - 1, ceil(n_steps / ceil(n_actions / self._n_held))

    def names(self, t: int) -> list[str]:
        """Return the rule of each environment in step t, with the action that is held."""
        held = self._held_at(t).tolist()
        return [
            f"all agents hold action {held[e]}" if rule == "held" else f"agents move {rule}"
            for e, rule in enumerate(self.rules)
        ]

    def _held_at(self, t: int) -> Tensor:
        return (self._held + t // self._phase * self._n_held) % self.simulation.n_actions

    def actions(self, t: int) -> Tensor:
        """Return the actions of step t, int64 [E, N]."""
        if t % DRIFT == 0:
            self._drifting = random_actions(self.simulation, self._generator)
        by_rule = {
            "random": random_actions(self.simulation, self._generator),
            "drifting": self._drifting,
            "held": self._held_at(t)[:, None].expand_as(self._drifting),
            **self._steered(),
        }
        return torch.stack([by_rule[rule][e] for e, rule in enumerate(self.rules)])

    def _steered(self) -> dict[str, Tensor]:
        """Return the actions int64 [E, N] that accelerate agents towards their targets."""
        team = [self.simulation.simulator.agents[i] for i in self.simulation.team]
        entities = self.simulation.simulator.world.entities
        place = torch.stack([agent.state.pos for agent in team], 1)  # [E, N, 2]
        others = torch.stack([entity.state.pos for entity in entities], 1)  # [E, M, 2]
        distance = (others[:, None] - place[:, :, None]).norm(dim=-1)  # [E, N, M]
        is_self = torch.tensor([[entity is agent for entity in entities] for agent in team])
        nearest = distance.masked_fill(is_self, torch.inf).argmin(-1)  # [E, N]
        targets = {
            "towards each other": place.mean(1, keepdim=True) - place,
            "outwards": place,
            "towards the nearest entity": others.gather(1, nearest[..., None].expand(-1, -1, 2))
            - place,
        }
        return {
            rule: torch.einsum("end,nad->ena", to.nan_to_num(), self._pushes).argmax(-1)
            for rule, to in targets.items()
        }


def pushes(scratch: VmasSimulation) -> Tensor:
    """Return the change of velocity by each action, held from a reset: float32 [N, A, 2].

    Args:
        scratch: left in another state.
    """
    n_envs, team = scratch.n_envs, [scratch.simulator.agents[i] for i in scratch.team]
    found = []
    for first in range(0, scratch.n_actions, n_envs):
        scratch.reset()
        held = (torch.arange(n_envs) + first) % scratch.n_actions
        before = torch.stack([agent.state.vel for agent in team]).clone()  # [N, E, 2]
        for _ in range(PUSH_STEPS):
            scratch.step(held[:, None].expand(-1, len(team)).clone())
        found.append(torch.stack([agent.state.vel for agent in team]) - before)
    return torch.cat(found, 1)[:, : scratch.n_actions].nan_to_num()


# -------------------------------------------------------------------------- edge states


def edge_names(n_envs: int) -> list[str]:
    """Return the name of each environment's edge state."""
    return [f"entities {place}, {speed}" for place, speed in _edges(n_envs)]


def _edges(n_envs: int) -> list[tuple[str, str]]:
    kinds = [(place, speed) for place in PLACES for speed in SPEEDS]
    return [kinds[e % len(kinds)] for e in range(n_envs)]


def write_edges(simulation: VmasSimulation, generator: torch.Generator) -> None:
    """Move all entities that can move to edge states, a kind for each environment.

    Args:
        simulation: reset before.
        generator: of the signs of positions and velocities.
    """
    world, edges = simulation.simulator.world, _edges(simulation.n_envs)
    movable = [entity for entity in world.entities if entity.movable]
    first = simulation.simulator.agents[simulation.team[0]].state.pos.clone()  # [E, 2]
    reached = [float(entity.state.pos.abs().max().nan_to_num()) for entity in world.entities]
    bounds = torch.tensor([b or max(1.0, *reached) for b in (world.x_semidim, world.y_semidim)])
    neighbour = first
    for i, entity in enumerate(movable):
        place = entity.state.pos.clone()
        neighbour = place if i % 2 == 0 else neighbour  # of a pair
        signs = torch.randint(2, (2, *place.shape), generator=generator) * 2.0 - 1
        places = {
            "on one spot": torch.zeros_like(place),
            "on the first agent": first,
            "in pairs": neighbour,
            "at the bounds": signs[0] * bounds,
        }
        speeds = {"at rest": torch.zeros_like(place), "fast": signs[1] * _top_speed(entity)}
        _write(entity, "pos", torch.stack([places[p][e] for e, (p, _) in enumerate(edges)]))
        _write(entity, "vel", torch.stack([speeds[v][e] for e, (_, v) in enumerate(edges)]))


def _top_speed(entity: Entity) -> float:
    return FAST if entity.max_speed is None else float(entity.max_speed)


def _write(entity: Entity, name: str, value: Tensor) -> None:
    """Write a tensor of an entity's state in place, so that views and aliases see it."""
    held = getattr(entity.state, name)
    if 0 in held.stride():  # environments share its memory
        setattr(entity.state, name, value)
    else:
        held.copy_(value)
