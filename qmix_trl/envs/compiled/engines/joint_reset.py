"""Resets of all environments at once in place of VMAS's resets one by one, where they are equal.

VMAS resets environments one by one, and each reset costs as much as a reset of all. All can be
reset at once, and the others' state restored, if a reset writes only tensors [E, ..] and each
environment's numbers depend on that environment alone. Trials show it before an engine is made;
each reset is checked again, and undone if it changed anything else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from vmas.simulator.utils import ScenarioUtils

from qmix_trl.envs.compiled.engines.pool import shares_draws
from qmix_trl.envs.compiled.trace.alike import EqualDraws, batched
from qmix_trl.envs.compiled.trace.audit import audited
from qmix_trl.envs.compiled.trace.contents import Contents, differing, is_written
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.nodes import same
from qmix_trl.envs.compiled.trace.own_code import packages_of
from qmix_trl.envs.compiled.trace.pure import READS, calling_frame
from qmix_trl.envs.compiled.trace.snapshot import (
    outside_kept,
    restore,
    sharing_memory,
    snapshot,
    unsaved,
)
from qmix_trl.envs.compiled.trace.state import random_step
from qmix_trl.envs.compiled.trace.walk import walk, walk_scenario
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation

TRIALS, STEPS_BETWEEN = 2, 2
ONE = 5  # the environment that is reset alone
OTHER_READS = (torch.equal, torch.allclose, Tensor.equal, Tensor.allclose, Tensor.numpy)
FROM_TORCH = "it draws from torch's generator"  # as ``audited`` reports it


class Reads(TorchFunctionMode):
    """Records whether Python reads the numbers of a tensor.

    VMAS's loop that draws positions until all are free is no such reading: each environment keeps
    its own first free position.

    Attributes:
        found: Python read a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function in READS or function in OTHER_READS:
            spawns = ScenarioUtils.find_random_pos_for_entity.__code__
            self.found = self.found or calling_frame().f_code is not spawns
        return function(*args, **(kwargs or {}))


def may_reset_together(task: Task, device: torch.device) -> bool:
    """Return whether trials show that resets of all environments equal resets one by one.

    Modules and classes that the scenario changes are as before afterwards.

    Args:
        task: its scenario is held by no simulator.
        device: of the trials.
    """
    if unsaved(walk_scenario(task.scenario)):
        return False
    with outside_kept(task.scenario):
        try:
            return _trials_show(task, device)
        except Exception:  # a scenario may raise anything with other numbers of environments
            return False


def _trials_show(task: Task, device: torch.device) -> bool:
    simulation = VmasSimulation(task, TRACE_ENVS, 0, device)
    if unsaved(walk(simulation.simulator)) or shares_draws(simulation):
        return False
    step = random_step(simulation)
    for _ in range(TRIALS):
        for _ in range(STEPS_BETWEEN):
            step()
        if _changes_more(simulation):
            return False
    return not _differs_from_one(task, device)


def _changes_more(simulation: VmasSimulation) -> bool:
    """Return whether a reset changes more than tensors [E, ..], or may take another way."""
    before = _Before(simulation)
    packages = packages_of(simulation.simulator.scenario)
    with simulation.random_stream.everywhere(), audited(packages) as audit, Reads() as reads:
        simulation.pure_reset()
    chances = [chance for chance in audit.chances if chance != FROM_TORCH]
    return reads.found or bool(chances) or before.changed_more(walk(simulation.simulator))


def _differs_from_one(task: Task, device: torch.device) -> bool:
    """Return whether a reset of all and a reset of one environment have different results there.

    Two simulations take the same actions in one environment, others elsewhere. Then the one is
    reset as a whole, the other in this environment, by the same random numbers. The reset of one
    has to leave the others alone.
    """
    pair = [VmasSimulation(task, TRACE_ENVS, 0, device) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS_BETWEEN):
        shape = (2, TRACE_ENVS, len(pair[0].team))
        actions = torch.randint(pair[0].n_actions, shape, generator=generator).to(device)
        actions[1, ONE] = actions[0, ONE]
        for simulation, action in zip(pair, actions, strict=True):
            simulation.step(action)
    before = batched(pair[1])
    for simulation, e in zip(pair, (None, ONE), strict=True):
        with torch.random.fork_rng(devices=[]), EqualDraws(TRACE_ENVS, 0):
            simulation.pure_reset(e)
    others = torch.arange(TRACE_ENVS) != ONE
    if any(not same(x[others], before[p][others]) for p, x in batched(pair[1]).items()):
        return True
    ours, theirs = map(batched, pair)
    return ours.keys() != theirs.keys() or any(
        not same(value[ONE], theirs[path][ONE]) for path, value in ours.items()
    )


class _Before:
    """The contents of a simulation before a reset.

    Args:
        simulation: of E environments.
    """

    def __init__(self, simulation: VmasSimulation) -> None:
        self.n_envs = simulation.n_envs
        self.contents = walk(simulation.simulator)
        self.copies = {
            path: (tensor, tensor._version, tensor.clone())
            for path, tensor in self.contents.tensors().items()
        }

    def written(self, after: Contents) -> list[str]:
        """Return the paths of tensors that were written since."""
        return [
            path
            for path, tensor in after.tensors().items()
            if path not in self.copies or is_written(tensor, self.copies[path][:2])
        ]

    def changed_more(self, after: Contents) -> bool:
        """Return whether anything changed but tensors [E, ..] with memory of their own."""
        written = self.written(after)
        if differing(self.contents, after) or after.tensors().keys() != self.copies.keys():
            return True
        if sharing_memory(after).intersection(written):
            return True
        return any(
            path in after.unsettable
            or after.slots[path].value.shape != self.copies[path][2].shape
            or after.slots[path].value.shape[:1] != (self.n_envs,)
            for path in written
        )


def reset_together(simulation: VmasSimulation, mask: Tensor) -> bool:
    """Reset all environments, and restore the state of environments outside a mask [E].

    Returns:
        whether it is done; if the reset changed more than tensors [E, ..], it is undone.
    """
    before, saved = _Before(simulation), snapshot(simulation.simulator)
    random_state = simulation.random_stream.get_state()
    simulation.reset()
    after = walk(simulation.simulator)
    if before.changed_more(after):
        restore(simulation.simulator, saved)
        simulation.random_stream.set_state(random_state)
        return False
    merged: dict[int, Tensor] = {}  # by tensor: several places may hold the same one
    for path in before.written(after):
        slot = after.slots[path]
        if id(slot.value) not in merged:
            chosen = mask.view(-1, *[1] * (slot.value.dim() - 1))
            merged[id(slot.value)] = torch.where(chosen, slot.value, before.copies[path][2])
        slot.set(merged[id(slot.value)])
    return True
