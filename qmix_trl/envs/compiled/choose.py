"""The choice of the engine that steps a task: the compiled kernel, inductor, or VMAS itself."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qmix_trl.chosen import Chosen
from qmix_trl.envs.compiled.backends import BACKENDS, of_cpu
from qmix_trl.envs.compiled.compile import checked_step, known_refusal
from qmix_trl.envs.compiled.compile_inductor import check_size, inductor_engine
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.eager import EagerEngine, EagerState
from qmix_trl.envs.compiled.engines.env_state import EnvState
from qmix_trl.envs.compiled.engines.joint_reset import may_reset_together
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.once import Result, once
from qmix_trl.envs.compiled.shadow import Shadow, Verifiable
from qmix_trl.envs.compiled.stored_step import key_of
from qmix_trl.envs.compiled.trace.snapshot import Outside
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import ConfigError, MachineError, Refused, one_line
from qmix_trl.native.build import BuildFailed, NoCompiler, check_compiler


class Engine(Protocol):
    """Steps and resets E environments.

    Attributes:
        compiled_loop: as ``contract.BufferedEnv`` has it.
        layout: of observation and state.
        env_state: saves, loads and seeds the environments' state, and renews their initial states.
    """

    compiled_loop: str | None
    layout: SeenLayout
    env_state: EnvState | EagerState

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments of a mask bool [E]; write their observations to seen float [E, R]."""

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """


@dataclass(frozen=True)
class Settings:
    """A task in E environments, for an engine to run.

    Attributes:
        task: the task.
        layout: of observation and state.
        n_envs: E.
        max_steps: the time limit in steps.
        seed: of the engine's random numbers.
        device: of the engine.
    """

    task: Task
    layout: SeenLayout
    n_envs: int
    max_steps: int
    seed: int
    device: torch.device


def kernel(s: Settings) -> Engine:
    """Return the engine of a compiled kernel: C++, or on a GPU Triton.

    Raises:
        Refused: if the task has no kernel, or it cannot be built here.
    """
    if s.device.type not in BACKENDS:
        raise Refused(f"there is no kernel for {s.device.type}")
    backend = BACKENDS[s.device.type](s.device)
    step = checked_step(s.task, backend, s.n_envs)
    fresh = FreshStates(s.task, s.n_envs, s.seed, step, device=s.device)
    _once(s, (s.n_envs, step.library), fresh.check_resets)
    return backend.engine(step.library, fresh, s.max_steps, s.seed)


def inductor(s: Settings) -> Engine:
    """Return the engine of the traced step that torch's inductor compiles.

    Raises:
        Refused: if the step cannot be traced or compiled, or differs from VMAS's.
    """
    if s.device.type != "cpu":
        raise Refused(f"there is no inductor engine for {s.device.type}")
    check_compiler()  # inductor needs it, too
    check_known(s.task)
    engine = inductor_engine(s.task, s.layout, s.n_envs, s.max_steps, s.seed)
    _once(s, (s.n_envs, engine.fresh.step.library), engine.fresh.check_resets)
    return engine


def check_known(task: Task) -> None:
    """Refuse a task whose trace failed, or was too large, in an earlier build.

    Raises:
        Refused: if it did, with the reason.
    """
    known = known_refusal(task, of_cpu())
    if known is None:
        return
    reason, n_nodes = known
    if n_nodes is None:
        raise Refused(reason)
    check_size(n_nodes)


def eager(s: Settings) -> Engine:
    """Return the engine of VMAS itself."""
    together = s.n_envs > 1 and _once(
        s, "resets together", lambda: may_reset_together(s.task, s.device)
    )
    simulation = VmasSimulation(s.task, s.n_envs, s.seed, s.device, idle_step=False)
    return EagerEngine(simulation, s.layout, s.max_steps, together=together)


def _once(s: Settings, question: Hashable, find: Callable[[], Result]) -> Result:
    """Return the answer to a question that a process asks once for a task on a device."""
    try:
        key = key_of(s.task)
    except Exception:  # a scenario's objects may raise anything where they are looked at
        key = None
    return once(key, s.task, (question, str(s.device)), find)


def make_shadow(engine: Engine, name: str, settings: Settings, share: float) -> Shadow | None:
    """Return the comparison of an engine's steps with VMAS; None if nothing is to be compared.

    Args:
        engine: that steps the environments.
        name: of the engine.
        settings: the task and its sizes.
        share: the largest share of the time that checks may take.
    """
    if not share or not isinstance(engine, Verifiable):
        return None
    return Shadow(engine, name, max_steps=settings.max_steps, share=share, seed=settings.seed)


MAKERS: dict[str, Callable[[Settings], Engine]] = {
    "kernel": kernel,
    "inductor": inductor,
    "eager": eager,
}  # fastest first
ENGINES = ("auto", *MAKERS)


def make_engine(settings: Settings, wanted: str) -> tuple[Engine, Chosen]:
    """Return an engine, and its name with the reasons why no faster one runs the task.

    Args:
        settings: the task and its sizes.
        wanted: one of ``ENGINES``; "auto" takes the first that runs the task.

    Raises:
        ConfigError: if the wanted engine does not run the task.
        MachineError: if it could, with a compiler that works.
    """
    reasons: dict[str, str] = {}
    kind = ConfigError
    outside = Outside(settings.task.scenario)
    for name in MAKERS if wanted == "auto" else (wanted,):
        try:
            return MAKERS[name](settings), Chosen(name, reasons)
        except Exception as error:  # a scenario's code may raise anything in a compiled engine
            if name == "eager":
                raise
            kind = MachineError if isinstance(error, (NoCompiler, BuildFailed)) else ConfigError
            is_told = isinstance(error, (Refused, ConfigError))
            reasons[name] = str(error) if is_told else one_line(error)
            outside.restore()
    raise kind(
        f"env.engine: VMAS scenario {settings.task.name!r} does not run on {wanted}: "
        f"{reasons[wanted]}; engine=auto takes one that runs it"
    )
