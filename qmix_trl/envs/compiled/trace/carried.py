"""Tensors that an episode hands over to the next: steps write them, resets leave them as they are.

A compiled engine resets an environment to a state that VMAS drew elsewhere. The tensors that are
handed over stay the environment's own. That is VMAS's reset if nothing else that a reset writes
depends on them. Resets from states with other numbers in these tensors show whether it does.
"""

import math
from collections.abc import Callable, Collection, Iterable
from functools import partial

import torch
from torch import Tensor

from qmix_trl.envs.compiled.trace.nodes import same
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.state import StatePaths, random_step
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

NUMBERS = (0.0, 1.0, 1e9, -1e9, math.nan)
SCALES = (1.0, 10.0, 100.0, 1e3, 1e4)  # of random numbers
TRIALS = 2

Outcome = dict[str, Tensor]


def carried_over(
    simulation: VmasSimulation, paths: StatePaths, read: Collection[str]
) -> tuple[str, ...]:
    """Return the paths of tensors that steps read and resets leave as they are.

    Args:
        simulation: left in another state, its random numbers as before.
        paths: of its state.
        read: the paths that steps read.

    Raises:
        Untraceable: if another result of resets depends on the state before, or one of these
            tensors does not have numbers of each environment.
    """
    carried = tuple(path for path in read if path not in paths.of_resets)
    start, step = simulation.random_stream.get_state(), random_step(simulation)

    def reset() -> Outcome:
        simulation.reset()
        seen, state = simulation.observe().tensors(), _state(simulation, paths)
        return {**seen, **{path: state[path] for path in read if path not in carried}}

    for _ in range(TRIALS):
        step()
        places = walk(simulation.simulator).slots
        for path in carried:
            if path not in places or places[path].value.shape[:1] != (simulation.n_envs,):
                raise Untraceable(f"its resets leave as it was: {path}, one for all environments")
        for name in _differing(outcomes(simulation, paths, paths.tensors, reset)):
            if not is_forgotten(simulation, paths, name):
                raise Untraceable(f"its resets depend on what went before: {name}")
    simulation.random_stream.set_state(start)
    return carried


def is_forgotten(
    simulation: VmasSimulation,
    paths: StatePaths,
    path: str,
    *,
    observes: bool = True,
    trials: int = TRIALS,
) -> bool:
    """Return whether nothing after a reset depends on the numbers at a path.

    Args:
        simulation: left in another state, with other random numbers.
        paths: of its state.
        path: of a tensor.
        observes: an observation follows the reset, and then a step; else only a step.
        trials: the number of resets.
    """
    if path not in paths.tensors:
        return False
    action = torch.zeros(simulation.n_envs, len(simulation.team), dtype=torch.int64)  # [E, N]

    def step() -> Outcome:
        first = simulation.observe().tensors() if observes else {}
        seen = {f"first {name}": value for name, value in first.items()}
        stepped = simulation.step(action)
        results = {name: getattr(stepped, name) for name in ("agent_reward", "terminated")}
        return {**seen, **stepped.seen.tensors(), **results, **_state(simulation, paths)}

    for trial in range(trials):
        simulation.reset()
        action.fill_(trial % simulation.n_actions)
        if _differing(outcomes(simulation, paths, (path,), step)):
            return False
    return True


def outcomes(
    simulation: VmasSimulation, paths: StatePaths, filled: Iterable[str], run: Callable[[], Outcome]
) -> list[Outcome]:
    """Return outcomes from the present state: as it is, and with other numbers at some paths.

    Args:
        simulation: left in another state.
        paths: of its state.
        filled: the paths of tensors that hold the numbers.
        run: runs the simulation and returns its tensors.
    """
    simulator, found = simulation.simulator, []
    state = [value.clone() for value in paths.read(simulator)]
    drawn = simulation.random_stream.get_state()
    generator = torch.Generator().manual_seed(0)
    constants = [partial(_full, number=number) for number in NUMBERS]
    scattered = [partial(_random, scale=scale, generator=generator) for scale in SCALES]
    for fill in (torch.clone, *constants, *scattered):  # first as it is
        paths.copy_into(simulator, state)
        simulation.random_stream.set_state(drawn)
        slots = walk(simulator).slots
        for path in filled:
            if path in slots:
                slots[path].set(fill(slots[path].value))
        found.append({name: value.clone() for name, value in run().items()})
    paths.copy_into(simulator, state)  # without the numbers
    return found


def _differing(found: list[Outcome]) -> list[str]:
    """Return the names of the tensors that are not the same in all outcomes."""
    first, *others = found
    return [name for name in first if not all(same(first[name], o.get(name)) for o in others)]


def _state(simulation: VmasSimulation, paths: StatePaths) -> Outcome:
    return dict(zip(paths.all, paths.read(simulation.simulator), strict=True))


def _full(like: Tensor, number: float) -> Tensor:
    """Return a tensor of one number; whole numbers have 0 for NaN."""
    full = torch.full(like.shape, number, device=like.device)
    return (full if like.is_floating_point() else full.nan_to_num(0)).to(like.dtype)


def _random(like: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return random numbers of a scale in the shape and type of a tensor."""
    numbers = torch.randn(like.shape, generator=generator).to(like.device) * scale
    return (numbers > 0) if like.dtype == torch.bool else numbers.to(like.dtype)
