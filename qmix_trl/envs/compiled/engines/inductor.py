"""The engine by torch's inductor, for steps that the compiler cannot lower to one environment."""

import math
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.env_state import EnvState
from qmix_trl.envs.compiled.engines.packed_state import all_numbers, as_bits, from_bits
from qmix_trl.envs.compiled.engines.pool import FreshStates, shares_draws
from qmix_trl.envs.compiled.trace.draws import draw
from qmix_trl.envs.compiled.trace.graph import N_RESULTS, TRACE_ENVS, StepGraph, sizes_in_step
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.compiled.trace.trace import Trace, traced
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import Refused

MOST = 2**31 - 1
PRIMES = (37, 41)  # numbers of environments by which other sizes of axes are found
MOST_NODES = 8000  # inductor takes minutes for more


class InductorEngine:
    """Steps E environments by the traced graph of a step of E environments.

    Args:
        simulation: of E environments; it is traced and left in another state.
        layout: of observation and state.
        max_steps: the time limit in steps.
        seed: of the pool and of the random numbers of steps.

    Raises:
        Untraceable: if the step is no pure function of tensors.
        Refused: if its graph is too large.
    """

    compiled_loop = None

    def __init__(
        self, simulation: VmasSimulation, layout: SeenLayout, max_steps: int, seed: int
    ) -> None:
        trace = only_graph(simulation)
        self.graph = trace.graphs[0]
        self.layout = layout
        self.max_steps = max_steps
        numbers = all_numbers(self.graph)
        other = VmasSimulation(simulation.task, TRACE_ENVS, 0, simulation.device)
        check_axes(simulation, self.graph.paths)
        shared = shares_draws(other)
        choices = [[list(values) for values in self.graph.choices]]
        step = CompiledStep(
            library=None,
            numbers=numbers,
            layout=layout,
            paths=self.graph.paths,
            choices=choices,
            guard=trace.guard,
            constants={},  # it is traced at every start
            carried=trace.carried,
            draws=bool(self.graph.draws),
            shared=shared,
            reads_in_resets=trace.reads_in_resets,
            seconds={},
        )
        self.fresh = FreshStates(simulation.task, simulation.n_envs, seed, step)
        for k, number in enumerate(numbers):
            if not number.batched and (self.fresh.pool[:, k] != self.fresh.pool[0, k]).any():
                raise Untraceable(f"its resets change {number.path}, one for all environments")
        self.env_state = EnvState(self.fresh, seed, self.fresh.first_states())
        self._step = torch.compile(of_matrix(self.graph, layout), fullgraph=True, dynamic=False)

    def twin(self) -> "InductorEngine":
        """Return an engine of the same graph with its own state, for steps without resets."""
        twin = copy(self)
        twin.env_state = EnvState(self.fresh, 0, self.env_state.packed_state())
        return twin

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments to states of the pool.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R]; their new observations and states are written to it.
        """
        self.env_state.reset(mask, seen)

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """
        state = self.env_state
        for i in range(t, t + n_steps):
            action = buffers.action[:, i].clone()
            out = self._step(state.packed, action, self._draws(), state.key)
            seen, agent_reward, reward, terminated, packed = out
            state.packed.copy_(packed)
            state.key[1] += 1
            state.steps += 1
            truncated = state.steps >= self.max_steps
            buffers.write(i, seen, agent_reward, reward, terminated, truncated)
            if reset_when_done and buffers.done[:, i].any():
                self.reset(buffers.done[:, i], buffers.seen[:, i + 1])

    def _draws(self) -> list[Tensor]:
        """Return the random numbers of the next step, float32 [E, ..] for each draw."""
        first, numbers = 0, []
        for d in self.graph.draws:
            numbers.append(draw(d.kind, self.env_state.key, self.fresh.n_envs, first, d.shape))
            first += numbers[-1][0].numel()
        return numbers


def only_graph(simulation: VmasSimulation) -> Trace:
    """Return the trace of a step of as many environments as the simulation has, with one graph.

    Raises:
        Untraceable: if there is none, or one for each choice that resets make in Python.
        Refused: if it is too large.
    """
    trace = traced(simulation)
    check_size(len(trace.graphs[0].graph.graph.nodes))
    if len(trace.graphs) > 1:
        raise Untraceable("its resets make choices in Python")
    return trace


def beyond_32_bits(state: list[Tensor], n_envs: int) -> Tensor:
    """Return which environments have whole numbers that the packed state cannot hold: bool [E]."""
    beyond = torch.zeros(n_envs, dtype=torch.bool)
    for value in state:
        if value.dtype == torch.int64:
            n = n_envs if value.shape[:1] == (n_envs,) else 1
            beyond = beyond | (value.reshape(n, -1).abs() > MOST).any(1)
    return beyond


def check_axes(simulation: VmasSimulation, paths: StatePaths) -> None:
    """Refuse a number of environments that is also another size in a step.

    Masks and tensors of agents of that size would be taken for environments.

    Args:
        simulation: of E environments.
        paths: of the state.

    Raises:
        Refused: if it is.
    """
    n_envs = simulation.n_envs
    n_others = next(n for n in PRIMES if n_envs % n)
    other = VmasSimulation(simulation.task, n_others, 0, simulation.device)
    sizes = {size for size in sizes_in_step(other, paths) if size % n_others}
    if n_envs > 1 and n_envs in sizes:
        raise Refused(f"its step has another axis of size {n_envs}, the number of environments")


def check_size(n_nodes: int) -> None:
    """Refuse a graph that inductor takes too long to compile.

    Raises:
        Refused: if it has more than ``MOST_NODES`` nodes.
    """
    if n_nodes > MOST_NODES:
        raise Refused(f"its traced step has {n_nodes:,} operations, more than {MOST_NODES:,}")


def of_matrix(graph: StepGraph, layout: SeenLayout) -> Callable[..., list[Tensor]]:
    """Return a step of the packed state: its state argument and last result are float32 [E, K]."""
    n_envs = graph.n_envs
    batched = [like.shape[:1] == (n_envs,) for like in graph.state]
    sizes = [
        like.numel() // (n_envs if b else 1) for like, b in zip(graph.state, batched, strict=True)
    ]

    def step(state: Tensor, action: Tensor, numbers: list[Tensor], key: Tensor) -> list[Tensor]:
        columns = state.split(sizes, 1)
        values = [
            from_bits(part, like, batched=b)
            for part, like, b in zip(columns, graph.state, batched, strict=True)
        ]
        out = graph.graph(*values, action, *numbers, key)
        observation, world, agent_reward, reward, terminated = out[:N_RESULTS]
        then = [
            as_bits(value.reshape(n_envs if b else 1, size), like.dtype).expand(n_envs, size)
            for value, like, b, size in zip(
                out[N_RESULTS:], graph.state, batched, sizes, strict=True
            )
        ]
        seen = layout.joined(observation, world)
        is_beyond = beyond_32_bits(out[N_RESULTS:], n_envs)
        agent_reward = agent_reward[..., 0].masked_fill(is_beyond[:, None], math.nan)
        reward = reward[:, 0].masked_fill(is_beyond, math.nan)
        return [seen, agent_reward, reward, terminated[:, 0], torch.cat(then, 1)]

    return step
