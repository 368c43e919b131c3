"""The steps of a batch by a call of the policy and one of the environment each."""

from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from qmix_trl.envs.contract import BufferedEnv
from qmix_trl.keys import ACTION, IS_INIT, next_key

Key = str | tuple[str, ...]
Taken = tuple[dict[Key, Tensor], Tensor, dict[Key, Tensor]]


class Loop(Protocol):
    """Takes the steps of a batch."""

    def collect(self, rows: Any, begins: Tensor, memory: dict[Key, Tensor]) -> Taken:
        """Take all steps of rows.

        Args:
            rows: of T steps, begun.
            begins: bool [E, 1], which environments are at an episode's first step.
            memory: what the policy carries, by key [E, ..].

        Returns:
            By key [E, T, ..], what the policy read and wrote beside the environment's own entries;
            and the next ``begins`` and ``memory``.
        """
        ...


class CallLoop:
    """Acts by any policy in any environment that steps rows.

    Args:
        policy: reads observations, ``is_init`` and memory; writes actions and the next memory.
        env: where it acts.
        n_steps: T.
    """

    def __init__(self, policy: TensorDictModuleBase, env: BufferedEnv, n_steps: int) -> None:
        self.policy = policy
        self.env = env
        self.n_steps = n_steps

    def collect(self, rows: Any, begins: Tensor, memory: dict[Key, Tensor]) -> Taken:
        """Take all steps of rows, as ``Loop.collect``."""
        entries: dict[Key, list[Tensor]] = {}
        for t in range(self.n_steps):
            step = self.act(rows, t, begins, memory)
            for key in (*memory, *self.policy.out_keys):
                entries.setdefault(key, []).append(step.get(key))
            entries.setdefault(IS_INIT, []).append(begins)
            done = self.env.step_buffers(rows, t, step.get(ACTION))  # [E, 1]
            begins = done if self.env.reset_when_done else torch.zeros_like(done)
            memory = {key: _kept(step.get(next_key(key)), done) for key in memory}
        return {key: torch.stack(steps, 1) for key, steps in entries.items()}, begins, memory

    @torch.no_grad()
    def act(self, rows: Any, t: int, begins: Tensor, memory: dict[Key, Tensor]) -> TensorDictBase:
        """Return one step's observation with what the policy reads and writes."""
        step = self.env.observation_at(rows, t).set(IS_INIT, begins)
        for key, value in memory.items():
            step.set(key, value)
        return self.policy(step)


def _kept(memory: Tensor, done: Tensor) -> Tensor:
    """Return memory [E, ..] with zeros where an episode is done [E, 1]."""
    return memory.masked_fill(done.view(-1, *[1] * (memory.dim() - 1)), 0)
