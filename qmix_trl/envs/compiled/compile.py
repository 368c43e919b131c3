"""From a task to its compiled step: trace, lower, print, build and check, once."""

import secrets
from pathlib import Path
from typing import Any

import torch

from qmix_trl.envs.compiled.backends import Backend
from qmix_trl.envs.compiled.checks import check_again, check_at_start, check_kernel
from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import packed_numbers
from qmix_trl.envs.compiled.gate_runs import AGAIN, full_extent
from qmix_trl.envs.compiled.lower.arrays import Unlowerable
from qmix_trl.envs.compiled.lower.expressions import live
from qmix_trl.envs.compiled.lower.step import Step, lower
from qmix_trl.envs.compiled.lower.whole_numbers import check_whole_numbers, with_alarms
from qmix_trl.envs.compiled.stored_step import (
    Laps,
    checked_step_of_key,
    key_of,
    notes_of,
    refusal_of,
    step_of_key,
    step_of_notes,
)
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.trace import FEW_ENVS, Recording, checked, recorded
from qmix_trl.envs.time_limit import NoEnd
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import Refused
from qmix_trl.native import store
from qmix_trl.native.build import BuildFailed, NoCompiler


def compiled_step(task: Task, backend: Backend) -> CompiledStep:
    """Return the compiled step of a task, from disk if it was built before.

    Raises:
        Refused: if the task has none, or if it was not built and there is no compiler.
    """
    return step_of_key(key_of(task, backend.tools()), lambda place: _make(task, place, backend))[0]


def checked_step(task: Task, backend: Backend, n_envs: int) -> CompiledStep:
    """Return the compiled step of a task after another comparison with VMAS.

    A step from disk that differs, or does not load, is built again, once.

    Args:
        task: the task.
        backend: builds and runs the step.
        n_envs: the number of environments that will be stepped.

    Raises:
        Refused: as ``compiled_step``; ``Mismatch`` if a new step differs, too.
    """
    return checked_step_of_key(
        key_of(task, backend.tools()),
        task,
        lambda place: _make(task, place, backend),
        lambda step, notes: check_at_start(step, task, backend, n_envs),
        (n_envs, str(backend.device)),
    )[0]


def known_refusal(task: Task, backend: Backend) -> tuple[str, int | None] | None:
    """Return why the task has no compiled step, if that is known from an earlier build.

    Returns:
        The reason, and the number of nodes of the traced graph, None if tracing failed; or None if
        nothing is known or there is a compiled step.

    Raises:
        NoCompiler: if there is no compiler.
    """
    key = key_of(task, backend.tools())
    notes = (store.read(key) or {}) if key is not None else {}
    return (notes["refused"], notes["n_nodes"]) if "refused" in notes else None


def _make(task: Task, place: Path, backend: Backend) -> dict[str, Any]:
    """Build a task's step in a folder; return its notes, or the reason of a refusal."""
    backend.check()  # tracing takes seconds
    n_nodes = None
    laps = Laps()
    try:
        simulation = VmasSimulation(task, TRACE_ENVS, 0, torch.device("cpu"))
        found = recorded(simulation)
        n_nodes = len(found.graphs[0].graph.graph.nodes)
        laps.end("trace")
        return _built(simulation, found, place / backend.file, laps, backend)
    except (NoCompiler, BuildFailed):
        raise  # not kept: another build may succeed
    except (Refused, NoEnd) as error:
        return refusal_of(error, n_nodes)


def _built(
    simulation: VmasSimulation, found: Recording, path: Path, laps: Laps, backend: Backend
) -> dict[str, Any]:
    """Lower, print, build and check a traced step; return its notes."""
    graphs, paths = found.graphs, found.paths
    of_team = simulation.task.state == "observations"
    step = lower(graphs, state_is_observations=of_team)
    check_whole_numbers(step)
    n = len(live(step.outputs))
    if n > backend.most_operations:
        raise Unlowerable(f"its step has {n:,} operations, more than {backend.most_operations:,}")
    laps.end("lower")
    trace = checked(simulation, found, step.paths_of(graphs[0]))
    step = with_alarms(step).carrying(graphs[0], trace.carried)
    numbers = packed_numbers(graphs[0], step)
    laps.end("resets")
    text = backend.source(step)
    # A process that has loaded a library gets it again by its path, even if the file is another.
    path = path.with_stem(f"{path.stem}-{secrets.token_hex(4)}")
    laps.end("print")
    backend.build(text, path)
    laps.end("build")
    layout = _layout(step, of_team, simulation)
    notes = notes_of(path, simulation, trace, numbers, layout, laps.seconds)
    compiled = step_of_notes(path.parent, notes)
    extent = full_extent(simulation)
    report = check_kernel(compiled, simulation, paths, extent, backend)
    check_again(compiled, simulation.task, backend, FEW_ENVS, AGAIN)
    laps.end("gate")
    notes["gate"] = vars(report)
    return notes


def _layout(step: Step, of_team: bool, simulation: VmasSimulation) -> SeenLayout:
    observation_dim, mask_dim = len(step.observation) // step.n_agents, simulation.mask_dim
    state_dim = None if of_team else len(step.state) - step.n_agents * mask_dim
    return SeenLayout(step.n_agents, observation_dim, state_dim, mask_dim)
