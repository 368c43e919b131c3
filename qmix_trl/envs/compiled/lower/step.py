"""A traced step over a batch of environments, lowered to expressions of one environment."""

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from qmix_trl.envs.compiled.lower.arrays import (
    Array,
    Unlowerable,
    as_array,
    boxed,
    dtype_letter,
    holds_batch,
    without_batch,
)
from qmix_trl.envs.compiled.lower.call import Call
from qmix_trl.envs.compiled.lower.expressions import (
    BOOL,
    FLOAT,
    INT,
    PAIR,
    Expression,
    Program,
    Scalar,
    dtype_of,
)
from qmix_trl.envs.compiled.lower.rules import RULES
from qmix_trl.envs.compiled.lower.views import RULES as COPIES
from qmix_trl.envs.compiled.trace.graph import N_RESULTS, StepGraph
from qmix_trl.envs.compiled.trace.nodes import live_nodes, writes


@dataclass(frozen=True)
class StateNumber:
    """One number of an environment's state.

    Attributes:
        tensor: the number of the state tensor that holds it.
        place: the number of its element there, without the batch.
        now: its value before the step.
        then: its value after the step.
    """

    tensor: int
    place: int
    now: Expression
    then: Scalar


@dataclass(frozen=True)
class Step:
    """A step of one environment.

    Attributes:
        program: holds all expressions.
        observation: N x O scalars.
        state: S scalars, and N A of an action mask if there is one.
        agent_reward: N scalars.
        reward: the team reward.
        terminated: whether the episode ends.
        numbers: the numbers of the state that results depend on, now or in a later step.
        n_agents: N.
        n_carried: of the numbers, so many at the end are left as they are by resets.
    """

    program: Program
    observation: list[Scalar]
    state: list[Scalar]
    agent_reward: list[Scalar]
    reward: Scalar
    terminated: Scalar
    numbers: list[StateNumber]
    n_agents: int
    n_carried: int = 0

    @property
    def outputs(self) -> list[Scalar]:
        """All results of the step, followed by the next state."""
        seen = [*self.observation, *self.state, *self.agent_reward, self.reward, self.terminated]
        return [*seen, *(number.then for number in self.numbers)]

    def paths_of(self, graph: StepGraph) -> list[str]:
        """Return the paths of the numbers of the state; a choice has none."""
        tensors = sorted({number.tensor for number in self.numbers})
        return [graph.paths.all[i] for i in tensors if i < len(graph.state)]

    def carrying(self, graph: StepGraph, carried: Collection[str]) -> "Step":
        """Return the step with some numbers last, which resets leave as they are.

        Args:
            graph: of the traced step.
            carried: the paths of these numbers.
        """
        kept = {i for i, path in enumerate(graph.paths.all) if path in carried}
        numbers = sorted(self.numbers, key=lambda number: number.tensor in kept)
        return replace(
            self, numbers=numbers, n_carried=sum(number.tensor in kept for number in numbers)
        )


def lower(graphs: Sequence[StepGraph], *, state_is_observations: bool) -> Step:
    """Return a traced step as expressions of one environment.

    Args:
        graphs: one, or one for each choice that resets make in Python; the number of the choice
            is then a number of the state.
        state_is_observations: the state consists of all observations and is left out here.

    Raises:
        Unlowerable: if an operation crosses environments or has no rule.
    """
    program = Program()
    runs = [Run(graph, program) for graph in graphs]
    outputs = [run.outputs() for run in runs]
    leaves = runs[0].state_leaves
    if len(graphs) > 1:
        choice = program.leaf("state", len(leaves), 0, dtype=INT)
        chosen = [merged(program, choice, versions) for versions in zip(*outputs, strict=True)]
        leaves, then = [*leaves, boxed(choice)], [*chosen, boxed(choice)]
    else:
        (then,) = outputs
    results, next_state = then[:N_RESULTS], then[N_RESULTS:]
    if state_is_observations:
        results[1] = results[1][:, results[0].size :]
    observation, state, agent_reward, reward, terminated = (list(x.flat) for x in results)
    return Step(
        program,
        observation,
        state,
        agent_reward,
        reward[0],
        terminated[0],
        live_numbers(results, leaves, next_state),
        n_agents=len(agent_reward),
    )


def merged(program: Program, choice: Expression, versions: Sequence[Array]) -> Array:
    """Return, elementwise, the version whose number is the choice."""
    shape = np.broadcast_shapes(*(version.shape for version in versions))
    result = boxed(None, shape)
    for place in np.ndindex(shape):
        values = [np.broadcast_to(version, shape)[place] for version in versions]
        dtype = dtype_of(*values)
        result[place] = program.cast(values[0], dtype)
        for i, value in enumerate(values[1:], 1):
            is_it = program.apply("eq", choice, i, dtype=BOOL)
            value = program.cast(value, dtype)
            result[place] = program.apply("where", is_it, value, result[place], dtype=dtype)
    return result


def live_numbers(
    results: Sequence[Array], leaves: Sequence[Array], next_state: Sequence[Array]
) -> list[StateNumber]:
    """Return the numbers of the state that a result of this or a later step depends on.

    Args:
        results: of a step.
        leaves: the state before the step, one array for each tensor.
        next_state: the state after the step, in the same order.
    """
    numbers = {}
    for tensor, (now, then) in enumerate(zip(leaves, next_state, strict=True)):
        then = np.broadcast_to(then, now.shape)
        for place, (a, b) in enumerate(zip(now.flat, then.flat, strict=True)):
            numbers[a] = StateNumber(tensor, place, a, b)
    live: list[StateNumber] = []
    waiting = [x for array in results for x in array.flat if isinstance(x, Expression)]
    visited: set[Expression] = set()
    while waiting:
        expression = waiting.pop()
        if expression in visited:
            continue
        visited.add(expression)
        waiting.extend(expression.inputs)
        if expression.op == "state":
            number = numbers[expression]
            live.append(number)
            if isinstance(number.then, Expression):
                waiting.append(number.then)
    return sorted(live, key=lambda number: (number.tensor, number.place))


class Run:
    """One run through the graph of a step, on arrays of expressions.

    Args:
        step: the traced step.
        program: builds the expressions.
    """

    def __init__(self, step: StepGraph, program: Program) -> None:
        self.step = step
        self.program = program
        self.values: dict[Node, Any] = {}
        self.state_leaves: list[Array] = []

    def outputs(self) -> list[Array]:
        """Return the arrays of the graph's outputs."""
        nodes = list(self.step.graph.graph.nodes)
        leaves, alive = self._leaves(nodes), live_nodes(nodes)
        for node in nodes:
            if node.op == "placeholder":
                self.values[node] = next(leaves)
            elif node.op == "get_attr":
                self.values[node] = self._constant(getattr(self.step.graph, node.target))
            elif node.op == "output":
                break
            elif node in alive:
                self.values[node] = self._call(node)
        return [as_array(self._value(arg)) for arg in nodes[-1].args[0]]

    def _leaves(self, nodes: list[Node]) -> Iterator[Array]:
        """Yield the graph's inputs in their order: state, action, draws, key of spawning."""
        for i, tensor in enumerate(self.step.state):
            leaf = self._leaf("state", i, tensor.shape, tensor.dtype)
            self.state_leaves.append(leaf)
            yield leaf
        shapes = [n.meta["val"].shape for n in nodes if n.op == "placeholder"]
        yield self._leaf("action", 0, shapes[len(self.step.state)], torch.int64)
        first = 0
        for draw in self.step.draws:
            numbers = boxed(None, (1, *draw.shape))
            for j, place in enumerate(np.ndindex(numbers.shape)):
                numbers[place] = self.program.leaf(draw.kind, first + j, dtype=FLOAT)
            first += prod(draw.shape)
            yield numbers
        yield boxed(0, (2,))  # a printed step has its own key of spawning

    def _leaf(self, op: str, i: int, shape: Sequence[int], dtype: torch.dtype) -> Array:
        leaves = boxed(None, without_batch(shape, self.step.n_envs))
        for j, place in enumerate(np.ndindex(leaves.shape)):
            leaves[place] = self.program.leaf(op, i, j, dtype=dtype_letter(dtype))
        return leaves

    def _constant(self, tensor: Tensor) -> Array:
        """Return the array of a tensor that the trace holds as a constant."""
        for axis, size in enumerate(tensor.shape):
            if size == self.step.n_envs:
                first = tensor.narrow(axis, 0, 1)
                if not torch.equal(tensor, first.expand_as(tensor)):
                    raise Unlowerable("a constant that differs between environments")
                tensor = first
        array = boxed(None, tensor.shape)
        for place, value in zip(np.ndindex(array.shape), tensor.flatten().tolist(), strict=True):
            array[place] = value
        return array

    def _value(self, arg: Any) -> Any:
        if isinstance(arg, Node):
            return self.values[arg]
        if isinstance(arg, (list, tuple)):
            return [self._value(part) for part in arg]
        return arg

    def _call(self, node: Node) -> Any:
        args = [self._value(arg) for arg in node.args]
        kwargs = {name: self._value(arg) for name, arg in node.kwargs.items()}
        if node.target is operator.getitem:
            return args[0][args[1]]
        namespace, name, _ = str(node.target).split(".")
        if namespace == "qmix_trl":
            return self._spawn(*args)
        in_place = writes(node)
        name = name.removesuffix("_") if in_place else name
        rule = RULES.get(name)
        if rule is None:
            raise Unlowerable(f"there is no rule for {node.target}")
        self._check_result(node, name)
        call = Call(node, self.program, self.step.n_envs)
        try:
            result = rule(call, *args, **kwargs)
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise Unlowerable(f"{node.target}: {error}") from error
        return _written(call, args[0], result) if in_place else result

    def _check_result(self, node: Node, name: str) -> None:
        """Refuse double arithmetic, unknown types, and two axes that hold the environments."""
        made = node.meta["val"]
        made = [*made] if isinstance(made, (list, tuple)) else [made]
        taken = [
            getattr(self.step.graph, given.target) if given.op == "get_attr" else given.meta["val"]
            for given in node.all_input_nodes
        ]
        for tensor in (*made, *taken):
            if isinstance(tensor, Tensor):
                dtype_letter(tensor.dtype)
                if tensor.dtype == torch.float64 and name not in COPIES:
                    raise Unlowerable(f"{node.target} in double precision")
        for tensor in made:
            if sum(holds_batch(size, self.step.n_envs) for size in tensor.shape) > 1:
                raise Unlowerable(f"{node.target} over pairs of environments")

    def _spawn(self, occupied, key, site, min_distance, low, high) -> Array:
        taken = [self.program.cast(x, FLOAT) for x in occupied.flat]
        settings = (site, min_distance, *low, *high)
        spawned = self.program.leaf("spawn", settings, *taken, dtype=PAIR)
        position = boxed(None, (1, 1, 2))
        x, y = (self.program.leaf(op, spawned, dtype=FLOAT) for op in ("first", "second"))
        position[0, 0, :] = [x, y]
        return position


def _written(call: Call, target: Array, value: Any) -> Array:
    """Return the target with a value written to it and all its views."""
    if not target.flags.writeable:
        raise Unlowerable("a write to an expanded tensor")
    value = call.cast(value, call.output_dtype)
    target[...] = np.broadcast_to(value, target.shape).copy()
    return target
