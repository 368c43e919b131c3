"""Compiled steps on disk: their keys, and their notes as steps."""

import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from qmix_trl.envs.compiled.checks import check_constants, constants_of_all_seeds
from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import (
    PackedNumber,
    numbers_as_json,
    numbers_from_json,
)
from qmix_trl.envs.compiled.engines.pool import shares_draws
from qmix_trl.envs.compiled.gate import Mismatch
from qmix_trl.envs.compiled.once import once
from qmix_trl.envs.compiled.task_key import Unrepeatable, task_key
from qmix_trl.envs.compiled.trace.guard import Guard
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.compiled.trace.trace import Trace
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import Refused
from qmix_trl.native import store
from qmix_trl.native.built_file import BuiltFile, NotLoadable, built_file


def key_of(task: Task, *tools: str) -> str | None:
    """Return the key of a task's step; None if it has none.

    Args:
        task: the task.
        *tools: versions of the tools that build the step.
    """
    try:
        return task_key(task, *tools)
    except Unrepeatable:
        return None


def step_of_key(
    key: str | None, make: Callable[[Path], Mapping[str, Any]]
) -> tuple[CompiledStep, dict[str, Any]]:
    """Return the step of a key, from disk or newly built, and its notes.

    Args:
        key: of the step; without one it is not kept.
        make: builds the step in a folder; returns its notes, or the reason of a refusal.

    Raises:
        Refused: if the task has no step.
    """
    place, notes = store.unkept(make) if key is None else store.kept(key, make)
    return step_of_notes(place, notes), notes


def checked_step_of_key(
    key: str | None,
    task: Task,
    make: Callable[[Path], Mapping[str, Any]],
    compare: Callable[[CompiledStep, dict[str, Any]], Any],
    details: Hashable,
) -> tuple[CompiledStep, dict[str, Any]]:
    """Return the step of a key and its notes, as ``step_of_key``, after a comparison with VMAS.

    A process compares a step once, but its file and its constants each time: the scenario may have
    read them from a file of its own. A step from disk that differs, or does not load, is built
    again, once.

    Args:
        key: of the step; without one it is not kept.
        task: the task.
        make: as in ``step_of_key``.
        compare: compares a step with VMAS; raises ``Mismatch`` or ``NotLoadable``.
        details: what the comparison depends on beside the task and the step.

    Raises:
        Refused: if the task has no step; ``Mismatch`` if a new step differs, too.
    """

    def checked() -> tuple[CompiledStep, dict[str, Any]]:
        step, notes = step_of_key(key, make)
        step.library.check()
        check_constants(step, task)
        once(key, task, (step.library, details), lambda: compare(step, notes))
        return step, notes

    try:
        return checked()
    except (Mismatch, NotLoadable):
        if key is None:
            raise
        store.drop(key)
        return checked()


def step_of_notes(place: Path, notes: Mapping[str, Any]) -> CompiledStep:
    """Return the step of notes and the folder of its built file.

    Raises:
        Refused: if the notes hold the reason of a refusal.
    """
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


def notes_of(
    path: Path,
    simulation: VmasSimulation,
    trace: Trace,
    numbers: list[PackedNumber],
    layout: SeenLayout,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the notes of a step that has just been built.

    Args:
        path: of the built file.
        simulation: of ``TRACE_ENVS`` environments; left in another state.
        trace: of the step.
        numbers: of the packed state.
        layout: of observation and state.
        seconds: of each part of the build.
    """
    return {
        "file": path.name,
        "sha256": built_file(path).sha256,
        "numbers": numbers_as_json(numbers),
        "paths": trace.paths.as_json(),
        "layout": vars(layout),
        "choices": [[list(values) for values in graph.choices] for graph in trace.graphs],
        "guard": trace.guard.as_json(),
        "constants": constants_of_all_seeds(simulation.task, trace.guard),
        "carried": trace.carried,
        "draws": any(graph.draws for graph in trace.graphs),
        "shared": shares_draws(simulation),
        "reads_in_resets": trace.reads_in_resets,
        "seconds": seconds,
    }


def refusal_of(error: Exception, n_nodes: int | None) -> dict[str, Any]:
    """Return the notes of a refusal.

    Args:
        error: the reason.
        n_nodes: the number of nodes of the traced graph; None if tracing failed.
    """
    return {"refused": " ".join(str(error).split()), "n_nodes": n_nodes}


class Laps:
    """Measures the seconds of each part of a build."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    def end(self, part: str) -> None:
        """Record the seconds since the last part."""
        now = time.perf_counter()
        self.seconds[part], self._begin = round(now - self._begin, 2), now
