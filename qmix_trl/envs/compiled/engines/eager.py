"""Unmodified VMAS as an engine, with resets of many environments at once."""

from functools import cached_property

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.pool import shares_draws
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.snapshot import restore, snapshot
from qmix_trl.envs.compiled.trace.walk import is_written, overlapping, walk
from qmix_trl.envs.vmas_simulation import VmasSimulation


class EagerEngine:
    """Steps environments by VMAS itself.

    VMAS resets environments one by one, each at the price of all. Here all are reset and those
    not asked for get their state back; unless a reset draws something once for all environments,
    which would make those that are reset together alike.

    Args:
        simulation: of E environments.
        layout: of what is seen.
        max_steps: the time limit.
    """

    name = "eager"

    def __init__(self, simulation: VmasSimulation, layout: SeenLayout, max_steps: int) -> None:
        self.simulation = simulation
        self.max_steps = max_steps
        self._steps = torch.zeros(simulation.n_envs, dtype=torch.int32, device=simulation.device)
        self.layout = layout

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Begin environments anew.

        Args:
            mask: bool [E], which.
            seen: float [E, R]; what these see then is written there.
        """
        if mask.all():
            self.simulation.reset()
        elif self._resets_one_by_one:
            for i in mask.nonzero()[:, 0].tolist():
                self.simulation.reset_at(i)
        else:
            reset_some(self.simulation, mask)
        self._steps.masked_fill_(mask, 0)
        now = self.layout.pack(self.simulation.observe())
        seen.copy_(torch.where(mask[:, None], now, seen))

    @cached_property
    def _resets_one_by_one(self) -> bool:
        """Whether a reset draws something for all environments, or writes what is not theirs."""
        own = self.simulation
        probe = VmasSimulation(own.task, TRACE_ENVS, 0, own.device)
        return shares_draws(probe) or not writes_only_own_environments(probe)

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of rows, by the actions that stand there."""
        for i in range(t, t + n_steps):
            stepped = self.simulation.step(buffers.action[:, i])
            self._steps += 1
            buffers.write(
                i,
                self.layout.pack(stepped.seen),
                stepped.agent_reward[..., 0],
                stepped.reward[:, 0],
                stepped.terminated[:, 0],
                self._steps >= self.max_steps,
            )
            if reset_when_done and buffers.done[:, i].any():
                self.reset(buffers.done[:, i], buffers.seen[:, i + 1])

    def renew(self) -> None:
        """Do nothing: VMAS draws at each reset."""

    def seed(self, seed: int) -> None:
        """Begin another random stream."""
        self.simulation.seed(seed)

    def state(self) -> dict[str, Tensor]:
        """Return all that the next steps depend on."""
        kept = {f"vmas {path}": v for path, v in snapshot(self.simulation.simulator).items()}
        return {**kept, **self.simulation.random_state(), "steps": self._steps.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        prefix = "vmas "
        values = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        restore(self.simulation.simulator, values)
        self.simulation.set_random_state(state)
        self._steps.copy_(state["steps"])


def writes_only_own_environments(simulation: VmasSimulation) -> bool:
    """Say whether all that a reset changes has the environments first, and stands by itself."""
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
    """Reset all environments and give those outside of a mask [E] their state back."""
    simulator, n_envs = simulation.simulator, simulation.n_envs
    before = {
        path: (slot.value, slot.value._version, slot.value.clone())
        for path, slot in walk(simulator).slots.items()
        if slot.value.shape[:1] == (n_envs,)
    }
    simulation.reset()
    merged: dict[int, Tensor] = {}  # by tensor, for several places may hold the same
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
