"""From a task to its compiled step: trace, lower, print, build and check, once."""

import secrets
import time
from pathlib import Path
from typing import Any

import torch

from qmix_trl.envs.compiled.backends import Backend
from qmix_trl.envs.compiled.checks import (
    check_again,
    check_at_start,
    check_kernel,
    constants_of_all_seeds,
)
from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import (
    numbers_as_json,
    numbers_from_json,
    packed_numbers,
)
from qmix_trl.envs.compiled.engines.pool import shares_draws
from qmix_trl.envs.compiled.gate import Mismatch
from qmix_trl.envs.compiled.gate_runs import AGAIN, full_extent
from qmix_trl.envs.compiled.lower.arrays import Unlowerable
from qmix_trl.envs.compiled.lower.expressions import live
from qmix_trl.envs.compiled.lower.step import Step, lower
from qmix_trl.envs.compiled.lower.whole_numbers import check_whole_numbers, with_alarms
from qmix_trl.envs.compiled.task_key import Unrepeatable, task_key
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.guard import Guard
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.compiled.trace.trace import FEW_ENVS, Recording, checked, recorded
from qmix_trl.envs.time_limit import NoEnd
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import Refused
from qmix_trl.native import store
from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.built_file import BuiltFile, NotLoadable, built_file


def compiled_step(task: Task, backend: Backend) -> CompiledStep:
    """Return the compiled step of a task, from disk if it was built before.

    Raises:
        Refused: if the task has none, or if it was not built and there is no compiler.
    """
    return _step_of_key(_key(task, backend), task, backend)


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
    key = _key(task, backend)
    step = _step_of_key(key, task, backend)
    try:
        check_at_start(step, task, backend, n_envs)
    except (Mismatch, NotLoadable):
        if key is None:
            raise
        store.drop(key)
        step = _step_of_key(key, task, backend)
        check_at_start(step, task, backend, n_envs)
    return step


def _key(task: Task, backend: Backend) -> str | None:
    """Return the key of a task's step; None if it has none."""
    tools = backend.tools()
    try:
        return task_key(task, tools)
    except Unrepeatable:
        return None


def _step_of_key(key: str | None, task: Task, backend: Backend) -> CompiledStep:
    """Return the step of a key from disk or newly built; without a key it is not kept."""

    def make(place: Path) -> dict[str, Any]:
        return _make(task, place, backend)

    return _from_notes(*(store.unkept(make) if key is None else store.kept(key, make)))


def known_refusal(task: Task, backend: Backend) -> tuple[str, int | None] | None:
    """Return why the task has no compiled step, if that is known from an earlier build.

    Returns:
        The reason, and the number of nodes of the traced graph, None if tracing failed; or None if
        nothing is known or there is a compiled step.

    Raises:
        NoCompiler: if there is no compiler.
    """
    key = _key(task, backend)
    notes = (store.read(key) or {}) if key is not None else {}
    return (notes["refused"], notes["n_nodes"]) if "refused" in notes else None


def _from_notes(place: Path, notes: dict[str, Any]) -> CompiledStep:
    if "refused" in notes:
        raise Refused(notes["refused"])
    return CompiledStep(
        library=BuiltFile(store.inside(place, notes["file"]), notes["sha256"]),
        numbers=numbers_from_json(notes["numbers"]),
        paths=StatePaths.from_json(notes["paths"]),
        layout=SeenLayout(**notes["layout"]),
        choices=notes["choices"],
        guard=Guard.from_json(notes["guard"]),
        constants=notes["constants"],
        carried=tuple(notes["carried"]),
        draws=notes["draws"],
        shared=notes["shared"],
        reads_in_resets=notes["reads_in_resets"],
        seconds=notes["seconds"],
    )


def _make(task: Task, place: Path, backend: Backend) -> dict[str, Any]:
    """Build a task's step in a folder; return its notes, or the reason of a refusal."""
    backend.check()  # tracing takes seconds
    n_nodes = None
    begin = time.perf_counter()
    try:
        simulation = VmasSimulation(task, TRACE_ENVS, 0, torch.device("cpu"))
        found = recorded(simulation)
        n_nodes = len(found.graphs[0].graph.graph.nodes)
        laps = Laps({"trace": round(time.perf_counter() - begin, 2)})
        return _built(simulation, found, place / backend.file, laps, backend)
    except (NoCompiler, BuildFailed):
        raise  # not kept: another build may succeed
    except (Refused, NoEnd) as error:
        return {"refused": " ".join(str(error).split()), "n_nodes": n_nodes}


class Laps:
    """Measures the seconds of each part of a build.

    Args:
        seconds: by part, of parts before this.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._begin = time.perf_counter()

    def end(self, part: str) -> None:
        """Record the seconds since the last part."""
        now = time.perf_counter()
        self.seconds[part], self._begin = round(now - self._begin, 2), now


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
    notes = {
        "file": path.name,
        "sha256": built_file(path).sha256,
        "numbers": numbers_as_json(numbers),
        "paths": paths.as_json(),
        "layout": vars(_layout(step, of_team, simulation)),
        "choices": [[list(values) for values in graph.choices] for graph in graphs],
        "guard": trace.guard.as_json(),
        "constants": constants_of_all_seeds(simulation.task, trace.guard),
        "carried": trace.carried,
        "draws": any(graph.draws for graph in graphs),
        "shared": shares_draws(simulation),
        "reads_in_resets": trace.reads_in_resets,
        "seconds": laps.seconds,
    }
    compiled = _from_notes(path.parent, notes)
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
