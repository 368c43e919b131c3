"""From a task to its step of E environments that torch's inductor compiles, once.

The traced graph of E environments becomes a package of torch (AOTInductor), which later starts load
in a moment; compiling it takes half a minute to minutes.
"""

import logging
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.proxy_tensor import make_fx

from qmix_trl.envs.compiled.checks import NO_LIMIT, check_engine
from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.inductor import InductorEngine
from qmix_trl.envs.compiled.engines.packed_state import all_numbers, as_bits, from_bits
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.gate_runs import AGAIN, Extent, full_extent
from qmix_trl.envs.compiled.stored_step import (
    Laps,
    checked_step_of_key,
    key_of,
    notes_of,
    refusal_of,
    step_of_notes,
)
from qmix_trl.envs.compiled.trace.graph import (
    N_RESULTS,
    TRACE_ENVS,
    Draw,
    StepGraph,
    sizes_in_step,
)
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.compiled.trace.trace import Trace, traced
from qmix_trl.envs.time_limit import NoEnd
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import Refused, one_line
from qmix_trl.native.build import toolchain

CPU = torch.device("cpu")
MOST = 2**31 - 1
PRIMES = (37, 41)  # numbers of environments by which other sizes of axes are found
MOST_NODES = 8000  # inductor takes minutes for more
# Inductor's constants that are numbers have no axes, and few operations accept them.
AS_TENSORS = {"always_keep_tensor_constants": True}
DRAWS = "numbers_drawn"  # in the notes: kind and shape of each draw


def inductor_engine(
    task: Task, layout: SeenLayout, n_envs: int, max_steps: int, seed: int
) -> InductorEngine:
    """Return the engine of a task's step of E environments, from disk if it was built before.

    Args:
        task: the task.
        layout: of observation and state.
        n_envs: E.
        max_steps: the time limit in steps.
        seed: of the pool and of the random numbers of steps.

    Raises:
        Refused: if the step cannot be traced or compiled, is too large, or differs from VMAS's.
        NoCompiler: if there is no compiler.
    """

    def engine_of(step: CompiledStep, notes: dict[str, Any]) -> InductorEngine:
        fresh = FreshStates(task, n_envs, seed, step)
        return InductorEngine(step.library, fresh, max_steps, seed, _draws_of(notes))

    step, notes = checked_step_of_key(
        key_of(task, toolchain(), f"inductor, {n_envs} environments"),
        task,
        lambda place: _make(task, layout, n_envs, place),
        lambda step, notes: _compare(step, notes, VmasSimulation(task, n_envs, 0, CPU), AGAIN),
        n_envs,
    )
    return engine_of(step, notes)


def _draws_of(notes: dict[str, Any]) -> list[Draw]:
    return [Draw(kind, tuple(shape)) for kind, shape in notes[DRAWS]]


def _compare(
    step: CompiledStep, notes: dict[str, Any], simulation: VmasSimulation, extent: Extent
) -> dict[str, Any]:
    """Compare a step with VMAS; return the report as a dictionary.

    Raises:
        Mismatch: if they differ.
    """
    fresh = FreshStates(simulation.task, simulation.n_envs, 0, step, least_states=1)
    engine = InductorEngine(step.library, fresh, NO_LIMIT, 0, _draws_of(notes))
    return vars(check_engine(engine, step.paths, simulation, extent))


def _make(task: Task, layout: SeenLayout, n_envs: int, place: Path) -> dict[str, Any]:
    """Build a task's step in a folder; return its notes, or the reason of a refusal."""
    laps = Laps()
    try:
        simulation = VmasSimulation(task, n_envs, 0, CPU)
        trace = only_graph(simulation)
        check_axes(simulation, trace.paths)
        laps.end("trace")
        path = place / f"step-{secrets.token_hex(4)}.pt2"
        package(trace.graphs[0], layout, path)
        laps.end("build")
        other = VmasSimulation(task, TRACE_ENVS, 0, CPU)
        numbers = all_numbers(trace.graphs[0])
        notes = notes_of(path, other, trace, numbers, layout, laps.seconds)
        notes[DRAWS] = [[draw.kind, list(draw.shape)] for draw in trace.graphs[0].draws]
        step = step_of_notes(place, notes)
        notes["gate"] = _compare(step, notes, simulation, full_extent(simulation))
        laps.end("gate")
        return notes
    except (Refused, NoEnd) as error:
        return refusal_of(error, None)
    except TorchDynamoException as error:
        raise Refused(one_line(error)) from error


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


def package(graph: StepGraph, layout: SeenLayout, path: Path) -> None:
    """Compile a step of the packed state, and write it to a package of torch.

    Args:
        graph: of the step.
        layout: of observation and state.
        path: of the package.
    """
    step = of_matrix(graph, layout)

    def flat(state: Tensor, action: Tensor, key: Tensor, *numbers: Tensor) -> list[Tensor]:
        return step(state, action, list(numbers), key)

    n_envs = graph.n_envs
    inputs = (
        torch.zeros(n_envs, len(all_numbers(graph))),
        torch.zeros(n_envs, layout.n_agents, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        *(torch.zeros(n_envs, *draw.shape) for draw in graph.draws),
    )
    exported = torch.export.export(make_fx(flat)(*inputs), inputs)
    with _fewer_messages():
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(path), inductor_configs=AS_TENSORS
        )


@contextmanager
def _fewer_messages() -> Iterator[None]:
    """Leave out inductor's warnings of slow operations within a ``with`` block."""
    logger = logging.getLogger("torch._inductor.ir")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
