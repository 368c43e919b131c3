"""Unmodified VMAS as an engine, with resets of many environments at once."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.pool import shares_draws
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.snapshot import restore, snapshot
from qmix_trl.envs.compiled.trace.walk import is_written, overlapping, walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

PREFIX = "vmas "  # of the names of VMAS's own state


class EagerState:
    """The state of E environments that VMAS steps, under the interface of ``EnvState``.

    Args:
        simulation: of E environments.

    Attributes:
        simulation: VMAS and its random state.
        steps: int32 [E], since each environment's last reset.
    """

    refusal = None

    def __init__(self, simulation: VmasSimulation) -> None:
        self.simulation = simulation
        self.steps = torch.zeros(simulation.n_envs, dtype=torch.int32, device=simulation.device)

    def renew(self) -> None:
        """Do nothing: there is no pool, VMAS draws at each reset."""

    def seed(self, seed: int) -> None:
        """Restart all random numbers from a seed."""
        self.simulation.seed(seed)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors that later steps depend on.

        Returns:
            VMAS's snapshot (``vmas ...``), ``steps`` int32 [E], and the random state
            (``random ...``).
        """
        kept = {f"{PREFIX}{path}": v for path, v in snapshot(self.simulation.simulator).items()}
        return {**kept, **self.simulation.random_state(), "steps": self.steps.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``state`` returned."""
        values = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
        restore(self.simulation.simulator, values)
        self.simulation.set_random_state(state)
        self.steps.copy_(state["steps"])


class EagerEngine:
    """Steps environments by VMAS itself.

    VMAS resets environments one by one, and each reset costs as much as a reset of all. This
    engine resets all and restores the others' state, unless a reset draws something once for all
    environments: then environments that are reset together would be alike.

    Args:
        simulation: of E environments.
        layout: of observation and state.
        max_steps: the time limit in steps.
    """

    compiled_loop = None

    def __init__(self, simulation: VmasSimulation, layout: SeenLayout, max_steps: int) -> None:
        self.simulation = simulation
        self.env_state = EagerState(simulation)
        self.max_steps = max_steps
        self.layout = layout

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R]; their new observations and states are written to it.
        """
        if mask.all():
            self.simulation.reset()
        elif self._resets_one_by_one:
            for i in mask.nonzero()[:, 0].tolist():
                self.simulation.reset_at(i)
        else:
            reset_some(self.simulation, mask)
        self.env_state.steps.masked_fill_(mask, 0)
        now = self.layout.pack(self.simulation.observe())
        seen.copy_(torch.where(mask[:, None], now, seen))

    @cached_property
    def _resets_one_by_one(self) -> bool:
        """Whether a reset draws something for all environments, or writes to shared values."""
        own = self.simulation
        probe = VmasSimulation(own.task, TRACE_ENVS, 0, own.device)
        return shares_draws(probe) or not writes_only_own_environments(probe)

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """
        steps = self.env_state.steps
        for i in range(t, t + n_steps):
            stepped = self.simulation.step(buffers.action[:, i])
            steps += 1
            buffers.write(
                i,
                self.layout.pack(stepped.seen),
                stepped.agent_reward[..., 0],
                stepped.reward[:, 0],
                stepped.terminated[:, 0],
                steps >= self.max_steps,
            )
            if reset_when_done and buffers.done[:, i].any():
                self.reset(buffers.done[:, i], buffers.seen[:, i + 1])


def writes_only_own_environments(simulation: VmasSimulation) -> bool:
    """Return whether a reset writes only to tensors [E, ..] that share no memory with others.

    Args:
        simulation: left in another state.
    """
    memory, n_envs = walk(simulation.simulator), simulation.n_envs
    before = {path: (t, t._version, t.clone()) for path, t in memory.tensors().items()}
    simulation.reset()
    memory = walk(simulation.simulator)
    changed = [
        path
        for path, tensor in memory.tensors().items()
        if path not in before
        or (is_written(tensor, before[path][:2]) and not torch.equal(tensor, before[path][2]))
    ]
    if any(path in memory.unsettable for path in changed) or overlapping(memory, changed):
        return False
    return all(memory.slots[path].value.shape[:1] == (n_envs,) for path in changed)


def reset_some(simulation: VmasSimulation, mask: Tensor) -> None:
    """Reset all environments, and restore the state of environments outside a mask [E]."""
    simulator, n_envs = simulation.simulator, simulation.n_envs
    before = {
        path: (slot.value, slot.value._version, slot.value.clone())
        for path, slot in walk(simulator).slots.items()
        if slot.value.shape[:1] == (n_envs,)
    }
    simulation.reset()
    merged: dict[int, Tensor] = {}  # by tensor: several places may hold the same one
    for path, slot in walk(simulator).slots.items():
        new = slot.value
        if path not in before or new.shape != before[path][2].shape:
            continue
        old, version, value = before[path]
        if new is old and new._version == version:
            continue
        if id(new) not in merged:
            chosen = mask.view(-1, *[1] * (new.dim() - 1))
            merged[id(new)] = torch.where(chosen, new, value)
        slot.set(merged[id(new)])
