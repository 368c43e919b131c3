"""A traced step with all that it holds for: its graphs, choices of resets and Python values."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from qmix_trl.envs.compiled.trace.alike import check_alike
from qmix_trl.envs.compiled.trace.audit import either, may_be_read
from qmix_trl.envs.compiled.trace.carried import carried_over
from qmix_trl.envs.compiled.trace.contents import overlapping
from qmix_trl.envs.compiled.trace.graph import (
    N_RESULTS,
    StepGraph,
    all_equal,
    read_paths,
    trace_step,
)
from qmix_trl.envs.compiled.trace.guard import Guard, guard_of
from qmix_trl.envs.compiled.trace.nodes import without_copies
from qmix_trl.envs.compiled.trace.parts import plain
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.resets import (
    CHOICE_RESETS,
    chances,
    check_memoryless,
    values_chosen,
)
from qmix_trl.envs.compiled.trace.state import StatePaths, find_state, random_step
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

MOST_CHOICES = 24
FEW_ENVS = 5  # of a simulation that shows which values depend on the number of environments
OTHER_STEPS = 3  # before the second trace
DTYPES = (torch.float32, torch.int32, torch.int64, torch.bool)  # of tensors of the state


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


@dataclass(frozen=True)
class Recording:
    """The graphs of a step, before it is known whether its resets let them hold.

    Attributes:
        graphs: a graph for each kind of choices that resets make in Python.
        reads_in_resets: the scenario's code reads numbers of tensors in resets.
    """

    graphs: list[StepGraph]
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
    found = recorded(simulation)
    read = set[str]().union(*map(read_paths, found.graphs))
    return checked(simulation, found, read)


def recorded(simulation: VmasSimulation) -> Recording:
    """Return the graphs of a step, one for each choice of resets that changes the step.

    Args:
        simulation: the simulation to trace; its state is another one afterwards.

    Raises:
        Untraceable: if the step is no pure function of tensors or depends on too many choices.
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
    return Recording(merged_equal(graphs), by_chance.reads)


def checked(simulation: VmasSimulation, found: Recording, needed: Collection[str]) -> Trace:
    """Return the trace of a step for which its resets let the graphs hold.

    Args:
        simulation: that was traced; its state is another one afterwards.
        found: the graphs.
        needed: the paths of the state that results of steps depend on.

    Raises:
        Untraceable: if resets remember, or tell environments apart.
    """
    graphs, paths = found.graphs, found.paths
    read = [path for path in paths.all if path in needed]
    check_apart(simulation, graphs, read)
    check_each(graphs, read)
    carried = carried_over(simulation, paths, read)
    check_alike(simulation, paths, read, carried)
    guard = check_repeatable(simulation, paths, graphs, carried)
    return Trace(graphs, guard, carried, found.reads_in_resets)


def find_settable_state(simulation: VmasSimulation) -> StatePaths:
    """Return the paths of the state; refuse a state that a graph cannot carry.

    Raises:
        Untraceable: if it cannot.
    """
    with simulation.random_stream.in_vmas(), simulation.limited("resets of"):
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


def check_apart(simulation: VmasSimulation, graphs: list[StepGraph], read: list[str]) -> None:
    """Refuse tensors that a step reads and that share memory, if steps write shared memory.

    A graph writes each tensor by itself.

    Args:
        simulation: that was traced.
        graphs: of its steps.
        read: the paths of the state that they read.

    Raises:
        Untraceable: if there are such tensors.
    """
    contents = walk(simulation.simulator)
    shared = overlapping(contents, contents.slots)
    if any(not shared.isdisjoint(written_by(graph)) for graph in graphs):
        held = shared.intersection(read)
        if held:
            raise Untraceable(f"a tensor of its state shares memory: {min(held)}")


def written_by(graph: StepGraph) -> set[str]:
    """Return the paths of a state that a step writes."""
    nodes = list(graph.graph.graph.nodes)
    (results,) = nodes[-1].args
    now_and_then = zip(graph.paths.all, nodes, results[N_RESULTS:], strict=False)
    return {path for path, now, then in now_and_then if without_copies(then) is not now}


def check_each(graphs: list[StepGraph], read: list[str]) -> None:
    """Refuse steps that write a tensor of all environments, such as a common clock.

    A compiled engine keeps the numbers of each environment by themselves.

    Raises:
        Untraceable: if a step does.
    """
    for graph in graphs:
        written = written_by(graph)
        for path, like in zip(graph.paths.all, graph.state, strict=True):
            is_common = path in graph.paths.tensors and like.shape[:1] != (graph.n_envs,)
            if is_common and path in read and path in written:
                raise Untraceable(f"its steps write a number of all environments: {path}")


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
