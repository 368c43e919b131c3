"""One step of unmodified VMAS as a graph of aten operations over a state of tensors."""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from qmix_trl.envs.compiled.trace.draws import DrawMode
from qmix_trl.envs.compiled.trace.pure import MaskMode, Untraceable, spawning, static_collisions
from qmix_trl.envs.compiled.trace.state import StatePaths, find_state
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import one_line

# Environments of a trace: a prime, so that an axis of a multiple of this size holds environments.
TRACE_ENVS = 37
N_RESULTS = 5  # outputs of a graph before the next state
CHOICE_RESETS = 200  # resets made to see every choice
SAME_CHOICES = 8  # after so many equal graphs, the graphs of all other choices are assumed equal
MOST_CHOICES = 24
MOST_CALLS = 40_000  # of torch in a step


@dataclass(frozen=True)
class Draw:
    """Random numbers that a step draws by one call: float32 [E, *shape].

    Attributes:
        kind: "uniform" or "normal".
        shape: the shape of one environment's numbers.
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StepGraph:
    """A step as a function of state, actions [E, N], random numbers and the key of spawning [2].

    Attributes:
        graph: returns observation [E, N, O], state [E, S], agent reward [E, N, 1], team reward
            [E, 1], terminated [E, 1], and then the next value of each path of the state.
        paths: the paths of the state.
        choice_paths: the paths of the choices that the graph depends on.
        choices: the values at these paths for which the graph holds.
        state: the state at the time of the trace, a tensor for each path.
        draws: the random numbers of a step, in order.
        n_envs: E.
    """

    graph: GraphModule
    paths: StatePaths
    choice_paths: tuple[str, ...]
    choices: tuple
    state: list[Tensor]
    draws: tuple[Draw, ...]
    n_envs: int


def random_step(simulation: VmasSimulation) -> Callable[[], None]:
    """Return a function that takes one step of a simulation by random actions."""
    generator = torch.Generator(simulation.device).manual_seed(0)
    shape = (simulation.n_envs, len(simulation.team))  # [E, N]

    def step() -> None:
        action = torch.randint(
            simulation.n_actions, shape, generator=generator, device=simulation.device
        )
        simulation.step(action)

    return step


def variants(simulation: VmasSimulation) -> list[StepGraph]:
    """Return the graphs of a step: one for each choice of resets that changes the step.

    Args:
        simulation: the simulation to trace; its state is another one afterwards.

    Raises:
        Untraceable: if the step is no pure function of tensors, or depends on too many choices.
    """
    paths = _find_settable_state(simulation)
    graphs = {paths.chosen(simulation.simulator): trace_step(simulation, paths)}
    for _ in range(CHOICE_RESETS if paths.choices else 0):
        simulation.reset()
        chosen = paths.chosen(simulation.simulator)
        if chosen in graphs:
            continue
        graphs[chosen] = trace_step(simulation, paths)
        if len(graphs) == SAME_CHOICES and all_equal(list(graphs.values())):
            break
        if len(graphs) > MOST_CHOICES:
            raise Untraceable(
                f"its resets make more than {MOST_CHOICES} choices in Python: {paths.choices[0]}"
            )
    return drop_idle_choices(list(graphs.values()))


def _find_settable_state(simulation: VmasSimulation) -> StatePaths:
    """Return the paths of the state; refuse a state that a graph cannot carry."""
    with simulation.own_randomness():
        paths = find_state(simulation.simulator, random_step(simulation))
    if paths.changed_by_steps:
        changed = ", ".join(paths.changed_by_steps[:3])
        raise Untraceable(f"its steps change Python values: {changed}")
    if paths.unsettable:
        raise Untraceable(f"its state is where it cannot be set: {paths.unsettable[0]}")
    return paths


def drop_idle_choices(graphs: list[StepGraph]) -> list[StepGraph]:
    """Return the distinct graphs, told apart by as few choices as possible.

    Args:
        graphs: a graph for each combination of choices, with ``choices`` for all their paths.

    Returns:
        a graph for each combination of the remaining choices; one without choices if all graphs
        are equal.
    """
    kinds = _number_distinct(graphs)
    if len(set(kinds)) == 1:
        return [replace(graphs[0], choice_paths=(), choices=())]
    places = smallest_deciding([graph.choices for graph in graphs], kinds)
    paths = tuple(graphs[0].choice_paths[i] for i in places)
    by_choices = {tuple(graph.choices[i] for i in places): graph for graph in graphs}
    return [
        replace(graph, choice_paths=paths, choices=choices) for choices, graph in by_choices.items()
    ]


def _number_distinct(graphs: list[StepGraph]) -> list[int]:
    """Return a number for each graph; equal graphs have the same number."""
    distinct: list[StepGraph] = []
    numbers = []
    for graph in graphs:
        equal = [i for i, other in enumerate(distinct) if all_equal([other, graph])]
        numbers.append(equal[0] if equal else len(distinct))
        if not equal:
            distinct.append(graph)
    return numbers


def smallest_deciding(choices: list[tuple], kinds: list[int]) -> tuple[int, ...]:
    """Return the smallest set of choices that determines which traced graph applies.

    Args:
        choices: the values of all choices, for each graph.
        kinds: a number for each graph; equal graphs have the same number.

    Returns:
        the places of one or two choices, or of all if no two suffice.
    """
    everything = range(len(choices[0]))
    for size in (1, 2):
        for places in combinations(everything, size):
            values = [tuple(choice[i] for i in places) for choice in choices]
            if len(set(values)) == len(set(zip(values, kinds, strict=True))):
                return places
    return tuple(everything)


def all_equal(graphs: list[StepGraph]) -> bool:
    """Say whether graphs have equal code and equal constants."""
    first, *others = graphs
    alive = live_nodes(list(first.graph.graph.nodes))
    names = [node.target for node in alive if node.op == "get_attr"]
    return all(
        other.graph.code == first.graph.code
        and all(torch.equal(getattr(first.graph, n), getattr(other.graph, n)) for n in names)
        for other in others
    )


def writes(node: Node) -> bool:
    """Say whether a node writes to its first argument in place."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    name = str(node.target).split(".")[1]
    return name.endswith("_") and not name.startswith("_")


def live_nodes(nodes: list[Node]) -> set[Node]:
    """Return the nodes that the output or a write in place depends on."""
    alive: set[Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or writes(node) or any(user in alive for user in node.users):
            alive.add(node)
    return alive


def trace_step(simulation: VmasSimulation, paths: StatePaths) -> StepGraph:
    """Return the graph of a step for the choices of the last reset.

    Args:
        simulation: the simulation to trace; its state is not changed.
        paths: the paths of its state.

    Raises:
        Untraceable: if the step is no pure function of tensors.
    """
    state = [value.clone() for value in paths.read(simulation.simulator)]
    action = torch.zeros(simulation.n_envs, len(simulation.team), dtype=torch.int64)  # [E, N]
    key = torch.zeros(2, dtype=torch.int64)

    def step(state: list[Tensor], action: Tensor, numbers: list[Tensor], key: Tensor) -> list:
        waiting = iter(numbers)
        return run_step(simulation, paths, state, action, key, lambda *_: next(waiting))

    try:
        draws = count_draws(simulation, paths, state, action, key)
        numbers = [torch.zeros(simulation.n_envs, *draw.shape) for draw in draws]
        still = static_collisions(simulation.simulator.world)
        with torch.no_grad(), still, MaskMode(simulation.n_envs):
            graph = make_fx(step, tracing_mode="real")(state, action, numbers, key)
    # A scenario's code can raise any of these on a tensor that is traced.
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise Untraceable(one_line(error)) from error
    graph.graph.set_codegen(CodeGen())  # arguments one by one instead of in lists
    graph.recompile()
    return StepGraph(
        graph=graph,
        paths=paths,
        choice_paths=paths.choices,
        choices=paths.chosen(simulation.simulator),
        state=state,
        draws=tuple(draws),
        n_envs=simulation.n_envs,
    )


def run_step(
    simulation: VmasSimulation,
    paths: StatePaths,
    state: list[Tensor],
    action: Tensor,
    key: Tensor,
    source: Callable[[str, tuple[int, ...]], Tensor],
) -> list[Tensor]:
    """Take one step from a given state by given random numbers; leave the simulator unchanged.

    Args:
        simulation: the simulation that steps.
        paths: the paths of its state.
        state: the state to step from, a tensor for each path.
        action: int64 [E, N].
        key: int64 [2], seed and step, for spawning.
        source: ``source(kind, shape)`` returns all other random numbers.

    Returns:
        the outputs of ``StepGraph.graph``.
    """
    with state_restored(simulation, paths), spawning(key), DrawMode(source):
        paths.write(simulation.simulator, [value.clone() for value in state])
        stepped = simulation.pure_step(action)
        seen = stepped.seen
        results = [seen.observation, seen.state, stepped.agent_reward, stepped.reward]
        return [*results, stepped.terminated, *paths.read(simulation.simulator)]


@contextmanager
def state_restored(simulation: VmasSimulation, paths: StatePaths) -> Iterator[None]:
    """Restore a simulation's state after a ``with`` block."""
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
    """Return the random numbers that a step draws, in order.

    Args:
        simulation: the simulation that steps; its state is not changed.
        paths: the paths of its state.
        state: the state to step from, a tensor for each path.
        action: int64 [E, N].
        key: int64 [2], seed and step, for spawning.

    Raises:
        Untraceable: if a draw is for all environments at once, or the step is too long.
    """
    draws: list[Draw] = []

    def count(kind: str, shape: tuple[int, ...]) -> Tensor:
        if not shape or shape[0] != simulation.n_envs:
            raise Untraceable(f"it draws {shape}, for all environments at once")
        draws.append(Draw(kind, shape[1:]))
        return torch.zeros(shape)

    still = static_collisions(simulation.simulator.world)
    with torch.no_grad(), still, MaskMode(simulation.n_envs) as mode:
        run_step(simulation, paths, state, action, key, count)
    if mode.calls > MOST_CALLS:
        raise Untraceable(
            f"its step calls torch {mode.calls:,} times, more than {MOST_CALLS:,}: tracing would "
            "take minutes"
        )
    return draws
