"""One step of unmodified VMAS as a graph of aten operations over a state of tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from qmix_trl.envs.compiled.trace.audit import audited, may_be_read
from qmix_trl.envs.compiled.trace.contents import differing
from qmix_trl.envs.compiled.trace.draws import DrawMode
from qmix_trl.envs.compiled.trace.nodes import live_nodes, same
from qmix_trl.envs.compiled.trace.own_code import packages_of
from qmix_trl.envs.compiled.trace.pure import MaskMode, Untraceable, spawning, static_collisions
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import one_line

# Environments of a trace: a prime, so that an axis of a multiple of this size holds environments.
TRACE_ENVS = 37
N_RESULTS = 5  # outputs of a graph before the next state
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
        graph: returns observation [E, N, O], state [E, S] with the action mask [E, N A] behind it
            if there is one, agent reward [E, N, 1], team reward [E, 1], terminated [E, 1], and
            then the next value of each path of the state.
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
    state, action, key = inputs_of(simulation, paths)

    def step(state: list[Tensor], action: Tensor, numbers: list[Tensor], key: Tensor) -> list:
        waiting = iter(numbers)
        return run_step(simulation, paths, state, action, key, lambda *_: next(waiting))

    try:
        draws, names = watched_step(simulation, paths, state, action, key)
        numbers = [torch.zeros(simulation.n_envs, *draw.shape) for draw in draws]
        still = static_collisions(simulation.simulator)
        # With one mode for the shapes of all nodes, each of which would make its own.
        shapes = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
        with torch.no_grad(), still, shapes, MaskMode(simulation.n_envs):
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


def inputs_of(simulation: VmasSimulation, paths: StatePaths) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return copies of the present state, the action 0 of all agents [E, N], and a key [2]."""
    state = [value.clone() for value in paths.read(simulation.simulator)]
    action = torch.zeros(simulation.n_envs, len(simulation.team), dtype=torch.int64)
    return state, action, torch.zeros(2, dtype=torch.int64)


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
        results = [seen.observation, seen.state_and_mask, stepped.agent_reward, stepped.reward]
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


class Sizes(TorchFunctionMode):
    """Records the sizes of all axes of the results of torch's functions.

    Attributes:
        found: the sizes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self.found |= {*made.shape}
        return result


def sizes_in_step(simulation: VmasSimulation, paths: StatePaths) -> set[int]:
    """Return the sizes of all axes of the tensors that a step computes.

    Args:
        simulation: the simulation that steps; its state is not changed.
        paths: the paths of its state.
    """
    state, action, key = inputs_of(simulation, paths)
    with Sizes() as sizes:
        count_draws(simulation, paths, state, action, key)
    return sizes.found | {size for value in state for size in value.shape}


def check_shapes(graph: GraphModule) -> None:
    """Refuse a graph with a result whose shape depends on numbers: Python may have read the shape.

    Raises:
        Untraceable: if there is one.
    """
    for node in graph.graph.nodes:
        if _depends_on_numbers(node):
            raise Untraceable(f"the shape of a result depends on numbers: {node.target}")


def _depends_on_numbers(node: Node) -> bool:
    """Return whether the shape of a node's result depends on numbers."""
    if node.target is torch.ops.aten.index.Tensor:  # only where an index is a mask
        indices = tree_leaves(node.args[1])  # nodes, and None for whole axes
        dtypes = {index.meta["val"].dtype for index in indices if index is not None}
        return not dtypes.isdisjoint((torch.bool, torch.uint8))
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


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
    names = audit.names(before)
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
