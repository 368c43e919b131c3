"""A compiled step compared with VMAS and with the scenario: when it is built, and at each start."""

import torch
from torch import Tensor

from qmix_trl.envs.compiled.backends import Backend
from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.packed_state import (
    as_numbers,
    pack,
)
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.gate import COPIES, Mismatch, Outcome, Reference, Report, check
from qmix_trl.envs.compiled.gate_runs import AGAIN, ONCE, Extent
from qmix_trl.envs.compiled.shadow import Verifiable
from qmix_trl.envs.compiled.trace.contents import Contents
from qmix_trl.envs.compiled.trace.guard import Guard, constants_of, text_of
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.compiled.trace.trace import FEW_ENVS
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation

NO_LIMIT = 2**31 - 1
MANY_ENVS = 256  # of the check at every start
MOST_ENVS = 1024  # of one more step


def constants_of_all_seeds(task: Task, guard: Guard) -> dict[str, str]:
    """Return a hash of each tensor that a step may read as a constant and that no seed decides.

    Args:
        task: the task.
        guard: of its step.
    """
    seeds = [VmasSimulation(task, FEW_ENVS, seed, torch.device("cpu")) for seed in (0, 1)]
    one, other = (constants_of(walk(each.simulator), guard) for each in seeds)
    return {path: text for path, text in one.items() if other.get(path) == text}


def check_at_start(compiled: CompiledStep, task: Task, backend: Backend, n_envs: int) -> None:
    """Compare a step with VMAS as it is installed now.

    Args:
        compiled: the step.
        task: the task.
        backend: runs the step.
        n_envs: the number of environments that will be stepped.

    Raises:
        Mismatch: if they differ.
    """
    check_again(compiled, task, backend, min(n_envs, MANY_ENVS), AGAIN)
    if n_envs > MANY_ENVS:
        check_again(compiled, task, backend, min(n_envs, MOST_ENVS), ONCE)


def check_constants(compiled: CompiledStep, task: Task) -> None:
    """Compare the constants of a step with the scenario's values as they are now.

    Raises:
        Mismatch: if they differ.
    """
    simulation = VmasSimulation(task, FEW_ENVS, 0, torch.device("cpu"))
    contents, guard = walk(simulation.simulator), compiled.guard
    built = {p: text for p, text in guard.values.items() if guard.matters(p)} | compiled.constants
    now = {p: text_of(value) for p, value in contents.values.items()}
    now |= constants_of(contents, guard)
    differing = [path for path, text in built.items() if now.get(path) != text]
    if differing:  # a file was edited that they come from
        raise Mismatch(f"a constant of the scenario differs from the build's: {min(differing)}")


def check_again(
    compiled: CompiledStep, task: Task, backend: Backend, n_envs: int, extent: Extent
) -> None:
    """Compare a step with VMAS as it is installed now.

    The build used another number of environments, so a step that depends on that number fails here.

    Args:
        compiled: the step.
        task: the task.
        backend: runs the step.
        n_envs: the number of environments.
        extent: the lengths of the gate's runs.

    Raises:
        Mismatch: if they differ.
    """
    simulation = VmasSimulation(task, n_envs, 0, torch.device("cpu"))
    check_kernel(compiled, simulation, compiled.paths, extent, backend)


def check_kernel(
    compiled: CompiledStep,
    simulation: VmasSimulation,
    paths: StatePaths,
    extent: Extent,
    backend: Backend,
) -> Report:
    """Compare a compiled step, on its device, with VMAS on the CPU.

    Args:
        compiled: the step.
        simulation: VMAS; left in another state.
        paths: of VMAS's state.
        extent: the lengths of the gate's runs.
        backend: runs the step.

    Raises:
        Mismatch: if they differ.
    """
    fresh = FreshStates(
        simulation.task, simulation.n_envs, 0, compiled, least_states=1, device=backend.device
    )
    engine = backend.engine(compiled.library, fresh, NO_LIMIT, 0)
    return check_engine(engine, paths, simulation, extent)


def check_engine(
    engine: Verifiable, paths: StatePaths, simulation: VmasSimulation, extent: Extent
) -> Report:
    """Compare an engine's steps with VMAS's.

    Args:
        engine: of as many environments as the simulation; left in another state.
        paths: of VMAS's state.
        simulation: VMAS; left in another state.
        extent: the lengths of the gate's runs.

    Raises:
        Mismatch: if they differ.
    """
    fresh = engine.fresh
    numbers, layout = fresh.step.numbers, fresh.step.layout
    buffers = Buffers.empty(simulation.n_envs, 1, layout, fresh.device)

    def packed(of: VmasSimulation, contents: Contents) -> Tensor:
        return pack(contents, of.simulator, numbers, fresh.choice(contents))

    def values(of: Tensor) -> Tensor:
        return as_numbers(of, numbers)

    def step(state: Tensor, action: Tensor, key: Tensor) -> Outcome:
        buffers.action[:, 0] = action
        engine.env_state.jump(state, key)
        engine.advance(buffers, 0, 1, reset_when_done=False)
        return Outcome(
            on_cpu(buffers.seen[:, 1]),
            on_cpu(buffers.agent_reward[:, 0]),
            on_cpu(buffers.reward),
            on_cpu(buffers.terminated.float()),
            values(on_cpu(engine.env_state.packed_state())),
        )

    def on_cpu(written: Tensor) -> Tensor:
        return written.to("cpu", copy=True)

    scratch = VmasSimulation(simulation.task, COPIES * simulation.n_envs, 0, simulation.device)
    reference = Reference(
        simulation, scratch, paths, layout, packed, values, draws=fresh.step.draws
    )
    return check(reference, step, extent)
