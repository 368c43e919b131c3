"""One step of unmodified VMAS as a graph of aten operations over a state of tensors."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from qmix_trl.envs.compiled.trace.alike import check_alike
from qmix_trl.envs.compiled.trace.audit import audited, either, may_be_read
from qmix_trl.envs.compiled.trace.carried import carried_over, same
from qmix_trl.envs.compiled.trace.draws import DrawMode
from qmix_trl.envs.compiled.trace.guard import Guard, guard_of
from qmix_trl.envs.compiled.trace.own_code import packages_of
from qmix_trl.envs.compiled.trace.pure import MaskMode, Untraceable, spawning, static_collisions
from qmix_trl.envs.compiled.trace.resets import (
    CHOICE_RESETS,
    chances,
    check_memoryless,
    values_chosen,
)
from qmix_trl.envs.compiled.trace.state import StatePaths, find_state, random_step
from qmix_trl.envs.compiled.trace.walk import differing, overlapping, plain, walk
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import one_line

# Environments of a trace: a prime, so that an axis of a multiple of this size holds environments.
TRACE_ENVS = 37
N_RESULTS = 5  # outputs of a graph before the next state
MOST_CHOICES = 24
FEW_ENVS = 5  # of a simulation that shows which values depend on the number of environments
OTHER_STEPS = 3  # before the second trace
DTYPES = (torch.float32, torch.int32, torch.int64, torch.bool)  # of tensors of the state
COPYING = (torch.ops.aten.clone.default, torch.ops.aten.detach.default)
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
        choices: the values at the paths of choices, for each choice of which the graph holds.
        state: the state at the time of the trace, a tensor for each path.
        draws: the random numbers of a step, in order.
        n_envs: E.
        names: of the attributes and globals that the step may read; None for any.
    """

    graph: GraphModule
    paths: StatePaths
    choices: tuple[tuple, ...]
    state: list[Tensor]
    draws: tuple[Draw, ...]
    n_envs: int
    names: frozenset[str] | None


@dataclass(frozen=True)
class Trace:
    """The graphs of a step, and the Python values for which they hold.

    Attributes:
        graphs: a graph for each kind of choices that resets make in Python.
        guard: of all other values that the step may read.
        carried: the paths of tensors that resets leave as they are.
        reads_in_resets: the scenario's code reads numbers of tensors in resets.
    """

    graphs: list[StepGraph]
    guard: Guard
    carried: tuple[str, ...]
    reads_in_resets: bool

    @property
    def paths(self) -> StatePaths:
        """The paths of the state and of choices."""
        return self.graphs[0].paths


def traced(simulation: VmasSimulation) -> Trace:
    """Return the trace of a step, with a graph for each choice of resets that changes the step.

    Args:
        simulation: the simulation to trace; its state is another one afterwards.

    Raises:
        Untraceable: if the step is no pure function of tensors, its resets remember, or it
            depends on too many choices.
    """
    paths = find_settable_state(simulation)
    first = trace_step(simulation, paths)
    by_chance = chances(simulation)
    names = either(first.names, by_chance.names)
    changed = [path for path in paths.changed_by_steps if may_be_read(path, names)]
    if changed:
        raise Untraceable(f"its steps change Python values: {', '.join(changed[:3])}")
    check_memoryless(simulation, paths, names)
    if by_chance.draws or by_chance.reads:
        more = values_chosen(simulation)
        paths = paths.with_choices(more, walk(simulation.simulator))
    choices = tuple(path for path in paths.choices if may_be_read(path, first.names))
    paths = replace(paths, choices=choices)
    if choices or paths.floats != first.paths.floats:
        graphs = by_choices(simulation, paths)
    else:
        graphs = {(): replace(first, paths=paths)}
    distinct = merged_equal(graphs)
    read = [path for path in paths.all if any(path in read_paths(graph) for graph in distinct)]
    check_apart(simulation, read)
    check_each(distinct, read)
    carried = carried_over(simulation, paths, read)
    check_alike(simulation, paths, carried)
    guard = check_repeatable(simulation, paths, distinct, carried)
    return Trace(distinct, guard, carried, by_chance.reads)


def find_settable_state(simulation: VmasSimulation) -> StatePaths:
    """Return the paths of the state; refuse a state that a graph cannot carry.

    Raises:
        Untraceable: if it cannot.
    """
    with simulation.own_randomness(), simulation.limited("resets of"):
        paths = find_state(simulation.simulator, random_step(simulation))
    contents = walk(simulation.simulator)
    held = {path: slot.value for path in paths.tensors if (slot := contents.slots.get(path))}
    names = Counter(plain(entity.name) for entity in simulation.simulator.world.entities)
    for found, reason in (
        (paths.unwatched, "it holds an object whose state cannot be seen"),
        (paths.unsettable, "its state is where it cannot be set"),
        ([name for name, n in names.items() if n > 1], "two entities have one name"),
        ([p for p, x in held.items() if x.dtype not in DTYPES], "its state is of another type"),
    ):
        if found:
            raise Untraceable(f"{reason}: {', '.join(found[:3])}")
    return paths


def check_apart(simulation: VmasSimulation, read: list[str]) -> None:
    """Refuse tensors that a step reads and that share memory with other tensors.

    A graph writes each tensor by itself.

    Raises:
        Untraceable: if there are such tensors.
    """
    contents = walk(simulation.simulator)
    shared = overlapping(contents, contents.slots).intersection(read)
    if shared:
        raise Untraceable(f"a tensor of its state shares memory: {min(shared)}")


def check_each(graphs: list[StepGraph], read: list[str]) -> None:
    """Refuse steps that write a tensor of all environments, such as a common clock.

    A compiled engine keeps the numbers of each environment by themselves.

    Raises:
        Untraceable: if a step does.
    """
    for graph in graphs:
        nodes = list(graph.graph.graph.nodes)
        (results,) = nodes[-1].args
        then = results[N_RESULTS:]
        for path, like, now, next_value in zip(
            graph.paths.all, graph.state, nodes, then, strict=False
        ):
            is_common = path in graph.paths.tensors and like.shape[:1] != (graph.n_envs,)
            if is_common and path in read and without_copies(next_value) is not now:
                raise Untraceable(f"its steps write a number of all environments: {path}")


def without_copies(node: Node) -> Node:
    """Return the node whose value a node copies; the node itself if it is no copy."""
    while node.target in COPYING:
        node = node.all_input_nodes[0]
    return node


def by_choices(simulation: VmasSimulation, paths: StatePaths) -> dict[tuple, StepGraph]:
    """Return a graph for each choice that many resets make.

    Args:
        simulation: the simulation to trace; its state is another one afterwards.
        paths: the paths of its state.

    Raises:
        Untraceable: if there are more than ``MOST_CHOICES``.
    """
    graphs: dict[tuple, StepGraph] = {}
    for _ in range(CHOICE_RESETS if paths.choices else 1):
        simulation.reset()
        chosen = paths.chosen(simulation.simulator)
        if chosen not in graphs:
            graphs[chosen] = trace_step(simulation, paths)
        if len(graphs) > MOST_CHOICES:
            raise Untraceable(
                f"its resets make more than {MOST_CHOICES} choices in Python: {paths.choices[0]}"
            )
    return graphs


def merged_equal(graphs: dict[tuple, StepGraph]) -> list[StepGraph]:
    """Return the distinct graphs, each with all choices for which it holds."""
    distinct: list[StepGraph] = []
    for chosen, graph in graphs.items():
        equal = [i for i, other in enumerate(distinct) if all_equal([other, graph])]
        if equal:
            i = equal[0]
            distinct[i] = replace(distinct[i], choices=(*distinct[i].choices, chosen))
        else:
            distinct.append(replace(graph, choices=(chosen,)))
    return distinct


def check_repeatable(
    simulation: VmasSimulation,
    paths: StatePaths,
    graphs: list[StepGraph],
    carried: tuple[str, ...],
) -> Guard:
    """Trace another simulation of another seed, in another state; return the guard of the trace.

    Numbers of the state, or of the seed, that the trace holds as constants would differ there.

    Args:
        simulation: that was traced; its state is another one afterwards.
        paths: the paths of its state.
        graphs: the distinct graphs.
        carried: the paths of tensors that resets may not write.

    Raises:
        Untraceable: if the step or a value that it reads is another one there.
    """
    task, device = simulation.task, simulation.device
    other = VmasSimulation(task, simulation.n_envs, 1, device)
    few = FEW_ENVS + (simulation.n_envs == FEW_ENVS)
    smaller = VmasSimulation(task, few, 0, device)
    step = random_step(other)
    for _ in range(OTHER_STEPS):
        step()
    if all(paths.chosen(other.simulator) not in graph.choices for graph in graphs):
        paths.copy_choices(simulation.simulator, other.simulator)
    chosen = paths.chosen(other.simulator)
    known = [graph for graph in graphs if chosen in graph.choices]
    if not known or not all_equal([known[0], trace_step(other, paths)]):
        raise Untraceable("a second trace, of another seed and in another state, is not the same")
    seeds = [walk(simulation.simulator), walk(other.simulator)]
    types = {f"{path}!" for path in paths.floats}  # a trace leaves tensors where floats were
    free = ({*paths.all} - {*carried}) | {*paths.choices} | types
    guard, decided = guard_of(seeds, walk(smaller.simulator), free, graphs[0].names)
    if decided is not None:
        raise Untraceable(f"it draws a value when it is made: {decided}")
    return guard


def all_equal(graphs: list[StepGraph]) -> bool:
    """Say whether graphs have equal code and equal constants."""
    first, *others = graphs
    alive = live_nodes(list(first.graph.graph.nodes))
    names = [node.target for node in alive if node.op == "get_attr"]
    return all(
        other.graph.code == first.graph.code
        and all(same(getattr(first.graph, n), getattr(other.graph, n)) for n in names)
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


def read_paths(step: StepGraph) -> set[str]:
    """Return the paths of the state that a step's results or its next state depend on."""
    nodes = list(step.graph.graph.nodes)
    alive = live_nodes(nodes)
    return {
        path
        for path, node in zip(step.paths.all, nodes, strict=False)  # the state comes first
        if any(user in alive and user.op != "output" for user in node.users)
    }


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
        draws, names = watched_step(simulation, paths, state, action, key)
        numbers = [torch.zeros(simulation.n_envs, *draw.shape) for draw in draws]
        still = static_collisions(simulation.simulator)
        with torch.no_grad(), still, MaskMode(simulation.n_envs):
            graph = make_fx(step, tracing_mode="real")(state, action, numbers, key)
    # A scenario's code can raise any of these on a tensor that is traced.
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise Untraceable(one_line(error)) from error
    check_shapes(graph)
    graph.graph.set_codegen(CodeGen())  # arguments one by one instead of in lists
    graph.recompile()
    return StepGraph(
        graph=graph,
        paths=paths,
        choices=(paths.chosen(simulation.simulator),),
        state=state,
        draws=tuple(draws),
        n_envs=simulation.n_envs,
        names=names,
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


def check_shapes(graph: GraphModule) -> None:
    """Refuse a graph with a result whose shape depends on numbers: Python may have read the shape.

    Raises:
        Untraceable: if there is one.
    """
    for node in graph.graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            raise Untraceable(f"the shape of a result depends on numbers: {node.target}")


def watched_step(
    simulation: VmasSimulation,
    paths: StatePaths,
    state: list[Tensor],
    action: Tensor,
    key: Tensor,
) -> tuple[list[Draw], frozenset[str] | None]:
    """Take a step without a trace, and watch Python.

    Args:
        simulation: the simulation that steps; its state is not changed.
        paths: the paths of its state.
        state: the state to step from, a tensor for each path.
        action: int64 [E, N].
        key: int64 [2], seed and step, for spawning.

    Returns:
        the random numbers that the step draws, in order; and the names of the attributes that its
        code may read, None for any.

    Raises:
        Untraceable: if Python decides by chance, or its values are changed.
    """
    before = walk(simulation.simulator)
    with audited(packages_of(simulation.simulator.scenario)) as audit:
        draws = count_draws(simulation, paths, state, action, key)
    if audit.chances:
        raise Untraceable(f"its steps depend on chance in Python: {audit.chances[0]}")
    names = audit.names()
    floats = {path + end for path in paths.floats for end in ("", "!")}  # tensors in a trace
    changed = differing(before, walk(simulation.simulator)) - floats
    changed = {path for path in changed if may_be_read(path, names)}
    if changed:
        raise Untraceable(f"its steps change Python values: {', '.join(sorted(changed)[:3])}")
    return draws, names


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

    still = static_collisions(simulation.simulator)
    with torch.no_grad(), still, MaskMode(simulation.n_envs) as mode:
        run_step(simulation, paths, state, action, key, count)
    if mode.calls > MOST_CALLS:
        raise Untraceable(
            f"its step calls torch {mode.calls:,} times, more than {MOST_CALLS:,}: tracing would "
            "take minutes"
        )
    return draws
