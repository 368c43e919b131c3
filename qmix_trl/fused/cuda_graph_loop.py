"""The steps of a batch as one CUDA graph: one launch instead of thousands."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from qmix_trl.chosen import CUDA_GRAPH
from qmix_trl.cuda_graph import captured, warmed_up
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.errors import MachineError, one_line
from qmix_trl.fused.policy_kernel import is_known
from qmix_trl.fused.step_loop import Collected, Key, StepLoop

GIB = 2**30


def why_not(policy: TensorDictModuleBase, env: Any) -> str | None:
    """Return the reason why a policy and an environment have no graph; None if they have one."""
    if env.compiled_loop != CUDA_GRAPH:
        return "no Triton kernel steps the environment"
    return None if is_known(policy) else "the policy has no form that a graph can hold"


class GraphLoop:
    """Acts by a policy of ``make_policy`` in an environment that a Triton kernel steps.

    The graph reads and writes tensors of its own: the start of a batch is copied to them, and the
    results are copied from them. It draws the random numbers of eager steps.

    Args:
        loop: takes the same steps, one by one. Policy and environment are in the same state
            afterwards.
        step: a step that ``loop`` has acted.
        begins: bool [E, 1], as for ``Loop.collect``.
        memory: by key [E, ..], as for ``Loop.collect``.

    Raises:
        MachineError: if the device has no room for the graph and a batch.
        RuntimeError: if the steps cannot be captured.
    """

    def __init__(
        self,
        loop: StepLoop,
        step: TensorDictBase,
        begins: Tensor,
        memory: dict[Key, Tensor],
    ) -> None:
        policy, env = loop.policy, loop.env
        needed, free = bytes_needed(loop, step, memory), free_bytes(begins.device)
        if free < needed:
            raise no_room(loop, needed, f"{free / GIB:.1f} GiB")
        self._buffers = env.begin_buffers(loop.n_steps)
        self._begins = begins.clone()
        self._memory = {key: value.clone() for key, value in memory.items()}

        def steps() -> Collected:
            return loop.collect(self._buffers, self._begins, self._memory)

        simulation, randomness = env.simulation_state(), policy.head.random_state()
        try:
            warmed_up(steps)
            self._collected, self._replay = captured(steps, policy.head.generators)
        except torch.OutOfMemoryError as error:
            raise no_room(loop, needed, one_line(error)) from error
        finally:
            env.load_simulation_state(simulation)
            policy.head.set_random_state(randomness)

    def collect(self, buffers: Buffers, begins: Tensor, memory: dict[Key, Tensor]) -> Collected:
        """Take all steps of the buffers, as ``Loop.collect``."""
        self._buffers.seen[:, 0] = buffers.seen[:, 0]
        self._begins.copy_(begins)
        for key, value in memory.items():
            self._memory[key].copy_(value)
        self._replay()
        for field in fields(buffers):
            getattr(buffers, field.name).copy_(getattr(self._buffers, field.name))
        entries, begins, memory = self._collected
        return Collected(_copied(entries), begins.clone(), _copied(memory))


def _copied(tensors: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """Return copies of tensors by key."""
    return {key: tensor.clone() for key, tensor in tensors.items()}


def bytes_needed(loop: StepLoop, step: TensorDictBase, memory: Iterable[Key]) -> int:
    """Return the bytes of a graph's tensors and of one batch that is copied from them.

    Args:
        loop: whose steps the graph takes.
        step: a step [E] that it has acted.
        memory: the keys that the policy carries.
    """
    one, two = loop.env.begin_buffers(1), loop.env.begin_buffers(2)
    of_step = _bytes(vars(two)) - _bytes(vars(one))
    of_step += sum(step.get(key).nbytes for key in loop.kept_keys(memory))
    # A batch also holds the observations after each step, before any reset.
    return loop.n_steps * (2 * of_step + one.last_seen.nbytes)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that torch can still allocate."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def no_room(loop: StepLoop, needed: int, got: str) -> MachineError:
    """Return the error of a graph that has no room.

    Args:
        loop: whose steps the graph takes.
        needed: bytes.
        got: the memory that is free, or the device's own message.
    """
    (n_envs,), device = loop.env.batch_size, loop.env.device
    return MachineError(
        f"collection: expected at least {needed / GIB:.1f} GiB of free memory on {device} for "
        f"batches of {n_envs} environments and {loop.n_steps} steps, got {got}; lower env.n_envs "
        "or collection.steps"
    )
