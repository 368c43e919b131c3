"""One step of unmodified VMAS as a graph of aten operations over a state of tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from qmix_trl.envs.compiled.draws import DrawMode
from qmix_trl.envs.compiled.memory import StatePaths, find_state
from qmix_trl.envs.compiled.pure import MaskMode, Untraceable, spawning, static_collisions
from qmix_trl.envs.vmas_simulation import VmasSimulation

# Environments of a trace: a prime, so that a size that is a multiple of it is one of the batch.
TRACE_ENVS = 37


@dataclass(frozen=True)
class Draw:
    """Random numbers that a step draws at one place: float32 [E, *shape]."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StepGraph:
    """A step as a function of state, actions [E, N], draws and the key of spawning.

    The graph returns observation [E, N, O], state [E, S], agent reward [E, N, 1], team reward
    [E, 1], terminated [E, 1], and then the next value of each path.
    """

    graph: GraphModule
    paths: StatePaths
    choices: tuple
    state: list[Tensor]
    draws: tuple[Draw, ...]
    n_envs: int


N_RESULTS = 5  # in front of the next state
CHOICE_RESETS = 200  # in which every choice of resets should appear
SAME_CHOICES = 3  # if steps are the same for so many choices, they are for all
MOST_CHOICES = 12
MOST_CALLS = 40_000  # of torch in a step


def random_step(simulation: VmasSimulation) -> Callable[[], None]:
    """Return a function that takes one random step of a simulation."""
    generator = torch.Generator(simulation.device).manual_seed(0)
    shape = (simulation.n_envs, len(simulation.team))

    def step() -> None:
        action = torch.randint(
            simulation.n_actions, shape, generator=generator, device=simulation.device
        )
        simulation.step(action)

    return step


def variants(simulation: VmasSimulation) -> list[StepGraph]:
    """Trace a step, once for each choice that resets make in Python if the step differs by it.

    Args:
        simulation: left in another state.

    Raises:
        Untraceable: if the step is no pure function of tensors, or of too many kinds.
    """
    with simulation.own_randomness():
        paths = find_state(simulation.simulator, random_step(simulation))
    if paths.fleeting:
        raise Untraceable(f"its steps change Python values: {', '.join(paths.fleeting[:3])}")
    graphs = {paths.chosen(simulation.simulator): trace_step(simulation, paths)}
    for _ in range(CHOICE_RESETS if paths.choices else 0):
        simulation.reset()
        chosen = paths.chosen(simulation.simulator)
        if chosen in graphs:
            continue
        graphs[chosen] = trace_step(simulation, paths)
        if len(graphs) == SAME_CHOICES and all_same(list(graphs.values())):
            break
        if len(graphs) > MOST_CHOICES:
            raise Untraceable(
                f"its resets make more than {MOST_CHOICES} choices in Python: {paths.choices[0]}"
            )
    traced = list(graphs.values())
    return traced[:1] if all_same(traced) else traced


def all_same(graphs: list[StepGraph]) -> bool:
    """Say whether graphs are the same, constants included."""
    first, *others = graphs
    constants = dict(first.graph.named_buffers())
    for other in others:
        theirs = dict(other.graph.named_buffers())
        if other.graph.code != first.graph.code or theirs.keys() != constants.keys():
            return False
        if any(not torch.equal(value, theirs[name]) for name, value in constants.items()):
            return False
    return True


def trace_step(simulation: VmasSimulation, paths: StatePaths) -> StepGraph:
    """Trace a step as it is after the last reset.

    Args:
        simulation: whose ``paths`` were found.
        paths: its state.

    Raises:
        Untraceable: if the step is no pure function of tensors.
    """
    state = [value.clone() for value in paths.read(simulation.simulator)]
    action = torch.zeros(simulation.n_envs, len(simulation.team), dtype=torch.int64)
    key = torch.zeros(2, dtype=torch.int64)
    draws = count_draws(simulation, paths, state, action, key)
    numbers = [torch.zeros(simulation.n_envs, *draw.shape) for draw in draws]

    def step(state: list[Tensor], action: Tensor, numbers: list[Tensor], key: Tensor) -> list:
        waiting = iter(numbers)
        return run_step(simulation, paths, state, action, key, lambda *_: next(waiting))

    try:
        with torch.no_grad(), static_collisions(simulation.simulator.world), MaskMode():
            graph = make_fx(step, tracing_mode="real")(state, action, numbers, key)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise Untraceable(str(error).splitlines()[0]) from error
    graph.graph.set_codegen(CodeGen())  # arguments one by one, without lists
    graph.recompile()
    return StepGraph(
        graph, paths, paths.chosen(simulation.simulator), state, tuple(draws), simulation.n_envs
    )


def run_step(
    simulation: VmasSimulation,
    paths: StatePaths,
    state: list[Tensor],
    action: Tensor,
    key: Tensor,
    source: Callable[[str, tuple[int, ...]], Tensor],
) -> list[Tensor]:
    """Take one step from a given state with given random numbers; leave the simulator as it was.

    Returns:
        What ``StepGraph`` says.
    """
    with kept(simulation, paths), spawning(key), DrawMode(source):
        paths.write(simulation.simulator, [value.clone() for value in state])
        stepped = simulation.pure_step(action)
        seen = stepped.seen
        results = [seen.observation, seen.state, stepped.agent_reward, stepped.reward]
        return [*results, stepped.terminated, *paths.read(simulation.simulator)]


@contextmanager
def kept(simulation: VmasSimulation, paths: StatePaths) -> Iterator[None]:
    """Put the state back afterwards."""
    state = paths.read(simulation.simulator)
    steps = simulation.simulator.steps
    simulation.simulator.steps = steps.clone()
    try:
        yield
    finally:
        paths.write(simulation.simulator, state)
        simulation.simulator.steps = steps


def count_draws(
    simulation: VmasSimulation,
    paths: StatePaths,
    state: list[Tensor],
    action: Tensor,
    key: Tensor,
) -> list[Draw]:
    """Return what a step draws, in order.

    Raises:
        Untraceable: if it draws something that is not of every environment's own, or is too long.
    """
    draws: list[Draw] = []

    def count(kind: str, shape: tuple[int, ...]) -> Tensor:
        if not shape or shape[0] != simulation.n_envs:
            raise Untraceable(f"it draws {shape}, for all environments at once")
        draws.append(Draw(kind, shape[1:]))
        return torch.zeros(shape)

    with torch.no_grad(), static_collisions(simulation.simulator.world), MaskMode() as mode:
        run_step(simulation, paths, state, action, key, count)
    if mode.calls > MOST_CALLS:
        raise Untraceable(
            f"its step calls torch {mode.calls:,} times, more than {MOST_CALLS:,}: tracing would "
            "take minutes"
        )
    return draws
