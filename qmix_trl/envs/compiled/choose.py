"""Which engine steps a task: the compiled kernel, inductor, or VMAS itself, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from qmix_trl.envs.compiled.backends import BACKENDS, of_cpu
from qmix_trl.envs.compiled.compile import (
    NoKernel,
    check_again,
    check_engine,
    compiled_step,
)
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.eager import EagerEngine
from qmix_trl.envs.compiled.engines.inductor import MOST_NODES, InductorEngine
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.gate import STEPS, Mismatch
from qmix_trl.envs.compiled.lower.arrays import Unlowerable
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.errors import ConfigError, one_line
from qmix_trl.native.build import BuildFailed, NoCompiler, compiler


class Engine(Protocol):
    """Steps and resets E environments.

    Attributes:
        name: one of ``MAKERS``.
        layout: of what is seen.
    """

    name: str
    layout: SeenLayout

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Begin environments of a mask [E] anew; write what they see to seen [E, R]."""

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of rows, by the actions that stand there."""

    def renew(self) -> None:
        """Draw fresh states anew if they are through; may wait for the device."""

    def seed(self, seed: int) -> None:
        """Begin another random stream."""

    def state(self) -> dict[str, Tensor]:
        """Return all that the next steps depend on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""


@dataclass(frozen=True)
class Settings:
    """What an engine runs: a task in E environments.

    Attributes:
        task: what is simulated.
        layout: of what is seen.
        n_envs: E.
        max_steps: the time limit.
        seed: of the engine's random streams.
        device: of the simulation.
    """

    task: Task
    layout: SeenLayout
    n_envs: int
    max_steps: int
    seed: int
    device: torch.device


def kernel(s: Settings) -> Engine:
    """Return the compiled kernel.

    Raises:
        NoKernel: if the task has none.
        NoCompiler: if what builds it, or on a GPU Triton, is not there.
    """
    if s.device.type not in BACKENDS:
        raise NoKernel(f"there is no kernel for {s.device.type}")
    backend = BACKENDS[s.device.type](s.device)
    try:
        step = compiled_step(s.task, backend)
        check_again(step, s.task, backend)
        fresh = FreshStates(s.task, s.n_envs, s.seed, step, device=s.device)
        return backend.engine(step.library, fresh, s.max_steps, s.seed)
    except BuildFailed as error:
        raise NoKernel(str(error)) from error


def inductor(s: Settings) -> Engine:
    """Return the traced step as inductor compiles it.

    Raises:
        NoKernel: if it does not, or compiles another step.
        NoCompiler: if there is no compiler, which it needs, too.
    """
    if s.device.type != "cpu":
        raise NoKernel(f"there is no inductor engine for {s.device.type}")
    compiler()
    check_size(s.task)
    simulation = VmasSimulation(s.task, s.n_envs, 0, s.device)
    try:
        engine = InductorEngine(simulation, s.layout, s.max_steps, s.seed)
        check_engine(engine, engine.graph.paths, simulation, STEPS)
    except (Untraceable, Unlowerable, Mismatch, TorchDynamoException) as error:
        raise NoKernel(one_line(error)) from error
    engine.seed(s.seed)
    return engine


def check_size(task: Task) -> None:
    """Refuse a task whose trace is known to fail, or to be too large for inductor.

    Raises:
        NoKernel: if it is.
    """
    try:
        compiled_step(task, of_cpu())
    except NoKernel as error:
        if error.n_nodes is None:
            raise
        if error.n_nodes > MOST_NODES:
            raise NoKernel(
                f"its traced step has {error.n_nodes:,} operations, more than {MOST_NODES:,}"
            ) from error


def eager(s: Settings) -> Engine:
    """Return VMAS itself."""
    simulation = VmasSimulation(s.task, s.n_envs, s.seed, s.device)
    return EagerEngine(simulation, s.layout, s.max_steps)


MAKERS: dict[str, Callable[[Settings], Engine]] = {
    "kernel": kernel,
    "inductor": inductor,
    "eager": eager,
}  # in the order in which they are tried
ENGINES = ("auto", *MAKERS)


def make_engine(settings: Settings, wanted: str) -> tuple[Engine, dict[str, str]]:
    """Return an engine, and why those before it do not run the task, by their names.

    Args:
        settings: what it runs.
        wanted: one of ``ENGINES``; "auto" takes the first that runs the task.

    Raises:
        ConfigError: if the wanted engine does not run the task.
    """
    reasons: dict[str, str] = {}
    for name in MAKERS if wanted == "auto" else (wanted,):
        try:
            return MAKERS[name](settings), reasons
        except (NoKernel, NoCompiler) as error:
            reasons[name] = str(error)
    raise ConfigError(
        f"env.engine: VMAS scenario {settings.task.name!r} does not run on {wanted}: "
        f"{reasons[wanted]}; engine=auto takes one that runs it"
    )
