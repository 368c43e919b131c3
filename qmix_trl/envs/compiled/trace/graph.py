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
    choice_paths: tuple[str, ...]
    choices: tuple
    state: list[Tensor]
    draws: tuple[Draw, ...]
    n_envs: int


N_RESULTS = 5  # in front of the next state
CHOICE_RESETS = 200  # in which every choice of resets should appear
SAME_CHOICES = 8  # if steps are the same for so many choices, they are for all
MOST_CHOICES = 24
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
    if paths.unsettable:
        raise Untraceable(f"its state is where it cannot be set: {paths.unsettable[0]}")
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
    return by_what_decides(list(graphs.values()))


def by_what_decides(graphs: list[StepGraph]) -> list[StepGraph]:
    """Keep one graph for each of those choices that make a difference, none of them if none does.

    Args:
        graphs: with all ``choices`` of their paths.
    """
    kinds: list[StepGraph] = []
    kind_of = []
    for graph in graphs:
        same = [i for i, kind in enumerate(kinds) if all_same([kind, graph])]
        kind_of.append(same[0] if same else len(kinds))
        kinds += [] if same else [graph]
    if len(kinds) == 1:
        return [replace(graphs[0], choice_paths=(), choices=())]
    names = graphs[0].choice_paths
    places = deciding([graph.choices for graph in graphs], kind_of)
    kept = {tuple(graph.choices[i] for i in places): graph for graph in graphs}
    paths = tuple(names[i] for i in places)
    return [replace(graph, choice_paths=paths, choices=value) for value, graph in kept.items()]


def deciding(choices: list[tuple], kind_of: list[int]) -> tuple[int, ...]:
    """Return one or two places in choices that tell kinds apart, all places if there are none."""
    everything = range(len(choices[0]))
    for size in (1, 2):
        for places in combinations(everything, size):
            values = [tuple(choice[i] for i in places) for choice in choices]
            if len(set(values)) == len(set(zip(values, kind_of, strict=True))):
                return places
    return tuple(everything)


def all_same(graphs: list[StepGraph]) -> bool:
    """Say whether graphs are the same, constants included."""
    first, *others = graphs
    alive = live_nodes(list(first.graph.graph.nodes))
    names = [node.target for node in alive if node.op == "get_attr"]
    return all(
        other.graph.code == first.graph.code
        and all(torch.equal(getattr(first.graph, n), getattr(other.graph, n)) for n in names)
        for other in others
    )


def writes(node: Node) -> bool:
    """Say whether a node writes to its first argument."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    name = str(node.target).split(".")[1]
    return name.endswith("_") and not name.startswith("_")


def live_nodes(nodes: list[Node]) -> set[Node]:
    """Return what the output or a write in place needs."""
    alive: set[Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or writes(node) or any(user in alive for user in node.users):
            alive.add(node)
    return alive


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

    def step(state: list[Tensor], action: Tensor, numbers: list[Tensor], key: Tensor) -> list:
        waiting = iter(numbers)
        return run_step(simulation, paths, state, action, key, lambda *_: next(waiting))

    try:
        draws = count_draws(simulation, paths, state, action, key)
        numbers = [torch.zeros(simulation.n_envs, *draw.shape) for draw in draws]
        still = static_collisions(simulation.simulator.world)
        with torch.no_grad(), still, MaskMode(simulation.n_envs):
            graph = make_fx(step, tracing_mode="real")(state, action, numbers, key)
    # What a scenario's code makes of a tensor that is being traced is anything.
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise Untraceable(one_line(error)) from error
    graph.graph.set_codegen(CodeGen())  # arguments one by one, without lists
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

    still = static_collisions(simulation.simulator.world)
    with torch.no_grad(), still, MaskMode(simulation.n_envs) as mode:
        run_step(simulation, paths, state, action, key, count)
    if mode.calls > MOST_CALLS:
        raise Untraceable(
            f"its step calls torch {mode.calls:,} times, more than {MOST_CALLS:,}: tracing would "
            "take minutes"
        )
    return draws
