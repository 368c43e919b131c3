"""From a task to its compiled step: trace, lower, print, build and check, once."""

import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qmix_trl.envs.compiled.backends import Backend
from qmix_trl.envs.compiled.codegen.schedule import live
from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import (
    as_numbers,
    numbers_as_json,
    numbers_from_json,
    packed_numbers,
    read_packed_state,
)
from qmix_trl.envs.compiled.engines.pool import FreshStates, shares_draws
from qmix_trl.envs.compiled.gate import STEPS, Mismatch, Outcome, Reference, check
from qmix_trl.envs.compiled.lower.arrays import Unlowerable
from qmix_trl.envs.compiled.lower.step import lower
from qmix_trl.envs.compiled.task_key import Unrepeatable, task_key
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS, StepGraph, random_step, variants
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.state import StatePaths, find_state
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import Refused
from qmix_trl.native.store import kept

NO_LIMIT = 2**31 - 1
AGAIN_ENVS, AGAIN_STEPS = 5, 8  # of the check at every start


class NoKernel(Refused):
    """A task has no compiled step; says why in one line.

    Attributes:
        n_nodes: of the traced graph, None if the step could not be traced.
    """

    def __init__(self, reason: str, n_nodes: int | None = None) -> None:
        super().__init__(reason)
        self.n_nodes = n_nodes


class Checked(Protocol):
    """An engine that can be put into any state."""

    fresh: FreshStates

    def jump(self, state: Tensor, key: Tensor) -> None:
        """Go on from a state [E, K], with the random numbers of a key [2] (``draws.py``)."""

    def packed_state(self) -> Tensor:
        """Return the state, float32 [E, K]."""

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps."""


def compiled_step(task: Task, backend: Backend) -> CompiledStep:
    """Return the compiled step of a task, from disk if it is there.

    Raises:
        NoKernel: if there is none.
        NoCompiler: if it has to be built and there is no compiler.
    """
    try:
        key = task_key(task, backend.tools())
    except Unrepeatable:
        place = Path(tempfile.mkdtemp(prefix="qmix_trl-"))
        return _from_notes(place, _make(task, place, backend))
    return _from_notes(*kept(key, lambda new: _make(task, new, backend)))


def _from_notes(place: Path, notes: dict[str, Any]) -> CompiledStep:
    if "refused" in notes:
        raise NoKernel(notes["refused"], notes["n_nodes"])
    return CompiledStep(
        library=place / notes["file"],
        numbers=numbers_from_json(notes["numbers"]),
        layout=SeenLayout(**notes["layout"]),
        choice_paths=notes["choice_paths"],
        choices=notes["choices"],
        shared=notes["shared"],
        seconds=notes["seconds"],
    )


def _make(task: Task, place: Path, backend: Backend) -> dict[str, Any]:
    """Write a task's library to a folder; return notes, why there is none among them."""
    simulation, n_nodes = VmasSimulation(task, TRACE_ENVS, 0, torch.device("cpu")), None
    begin = time.perf_counter()
    try:
        graphs = variants(simulation)
        n_nodes = len(graphs[0].graph.graph.nodes)
        traced = {"trace": round(time.perf_counter() - begin, 2)}
        return _built(simulation, graphs, place / backend.file, traced, backend)
    except (Untraceable, Unlowerable, Mismatch) as error:
        return {"refused": " ".join(str(error).split()), "n_nodes": n_nodes}


def _built(
    simulation: VmasSimulation,
    graphs: list[StepGraph],
    path: Path,
    seconds: dict[str, float],
    backend: Backend,
) -> dict[str, Any]:
    task, begin = simulation.task, time.perf_counter()

    def lap(part: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        seconds[part], begin = round(now - begin, 2), now

    step = lower(graphs, state_is_observations=task.state == "observations")
    rows = packed_numbers(graphs[0], step)
    n = len(live(step.outputs))
    if n > backend.most:
        raise Unlowerable(f"its step has {n:,} operations, more than {backend.most:,}")
    lap("lower")
    text = backend.source(step)
    lap("print")
    backend.build(text, path)
    lap("build")
    layout = SeenLayout(
        step.n_agents,
        len(step.observation) // step.n_agents,
        None if task.state == "observations" else len(step.state),
    )
    notes = {
        "file": path.name,
        "numbers": numbers_as_json(rows),
        "layout": vars(layout),
        "choice_paths": list(graphs[0].choice_paths),
        "choices": [list(graph.choices) for graph in graphs if graph.choices],
        "shared": shares_draws(simulation),
        "seconds": seconds,
    }
    compiled = _from_notes(path.parent, notes)
    check_kernel(compiled, simulation, graphs[0].paths, STEPS, backend)
    lap("gate")
    return notes


def check_again(compiled: CompiledStep, task: Task, backend: Backend) -> None:
    """Run a step that may have been built long ago beside VMAS as it is now.

    Of another number of environments: a step that depends on it is found out, too.

    Raises:
        NoKernel: if they differ.
    """
    simulation = VmasSimulation(task, AGAIN_ENVS, 0, torch.device("cpu"))
    with simulation.own_randomness():
        paths = find_state(simulation.simulator, random_step(simulation))
    try:
        check_kernel(compiled, simulation, paths, AGAIN_STEPS, backend)
    except Mismatch as error:
        raise NoKernel(str(error)) from error


def check_kernel(
    compiled: CompiledStep,
    simulation: VmasSimulation,
    paths: StatePaths,
    n_steps: int,
    backend: Backend,
) -> None:
    """Run a compiled step, on its device, beside VMAS on the CPU.

    Raises:
        Mismatch: if they differ.
    """
    fresh = FreshStates(
        simulation.task, simulation.n_envs, 0, compiled, least_states=1, device=backend.device
    )
    engine = backend.engine(compiled.library, fresh, NO_LIMIT, 0)
    check_engine(engine, paths, simulation, n_steps)


def check_engine(
    engine: Checked, paths: StatePaths, simulation: VmasSimulation, n_steps: int
) -> None:
    """Run an engine's step beside VMAS.

    Raises:
        Mismatch: if they differ.
    """
    fresh = engine.fresh
    rows, layout = fresh.step.numbers, fresh.step.layout
    buffers = Buffers.empty(simulation.n_envs, 1, layout, fresh.device)

    def state(of: VmasSimulation) -> Tensor:
        return read_packed_state(of.simulator, rows, fresh.choice(simulation))

    def numbers(of: VmasSimulation) -> Tensor:
        return as_numbers(state(of), rows)

    def step(action: Tensor, key: Tensor) -> Outcome:
        buffers.action[:, 0] = action
        engine.jump(state(simulation), key)
        engine.advance(buffers, 0, 1, reset_when_done=False)
        return Outcome(
            on_cpu(buffers.seen[:, 1]),
            on_cpu(buffers.agent_reward[:, 0]),
            on_cpu(buffers.reward),
            on_cpu(buffers.terminated.float()),
            as_numbers(on_cpu(engine.packed_state()), rows),
        )

    def on_cpu(written: Tensor) -> Tensor:
        return written.to("cpu", copy=True)

    scratch = VmasSimulation(simulation.task, simulation.n_envs, 0, simulation.device)
    check(Reference(simulation, scratch, paths, layout, numbers), step, n_steps)
