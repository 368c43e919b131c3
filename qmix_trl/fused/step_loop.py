"""The steps of a batch, each by one call of the policy and one of the environment."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from qmix_trl.envs.contract import BufferedEnv
from qmix_trl.keys import ACTION, IS_INIT, next_key

Key = str | tuple[str, ...]


class Collected(NamedTuple):
    """The policy's part of a batch, and the start of the next batch.

    Attributes:
        entries: by key [E, T, ..], the policy's outputs but for the actions, ``is_init``, and, if
            asked for, the memory before and after each step.
        begins: bool [E, 1], the environments that are at an episode's first step now.
        memory: by key [E, ..], the entries that the policy carries to the next step.
    """

    entries: dict[Key, Tensor]
    begins: Tensor
    memory: dict[Key, Tensor]


class Loop(Protocol):
    """Takes the steps of a batch."""

    def collect(self, buffers: Any, begins: Tensor, memory: dict[Key, Tensor]) -> Collected:
        """Take all steps of the buffers.

        Args:
            buffers: of T steps, begun (``BufferedEnv.begin_buffers``); they are filled.
            begins: bool [E, 1], the environments that are at an episode's first step.
            memory: by key [E, ..], the entries that the policy carries from the step before.
        """
        ...


class StepLoop:
    """Acts by any policy in any environment that fills buffers.

    Args:
        policy: reads observations, ``is_init`` and memory; writes actions and the next memory.
        env: to act in.
        n_steps: T.
        keeps_memory: whether the entries hold the memory before and after each step.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        env: BufferedEnv,
        n_steps: int,
        *,
        keeps_memory: bool = True,
    ) -> None:
        self.policy = policy
        self.env = env
        self.n_steps = n_steps
        self.keeps_memory = keeps_memory

    def kept_keys(self, memory: Iterable[Key]) -> list[Key]:
        """Return the keys of the entries, without ``is_init``.

        Args:
            memory: the keys that the policy carries from step to step.
        """
        # Buffers hold the actions.
        written: list[Key] = [key for key in self.policy.out_keys if key != ACTION]
        if self.keeps_memory:
            return [*memory, *written]
        return [key for key in written if key[0] != "next"]

    @set_exploration_type(ExplorationType.RANDOM)  # as TorchRL's collector collects
    def collect(self, buffers: Any, begins: Tensor, memory: dict[Key, Tensor]) -> Collected:
        """Take all steps of the buffers, as ``Loop.collect``."""
        kept = self.kept_keys(memory)
        entries: dict[Key, Tensor] = {}
        for t in range(self.n_steps):
            step = self.act(buffers, t, begins, memory)
            for key in (*kept, IS_INIT):
                value = step.get(key)
                if t == 0:
                    n_envs, *shape = value.shape
                    entries[key] = value.new_empty(n_envs, self.n_steps, *shape)
                entries[key][:, t] = value
            done = self.env.step_buffers(buffers, t, step.get(ACTION))  # [E, 1]
            begins = done if self.env.reset_when_done else torch.zeros_like(done)
            memory = {key: zero_where(done, step.get(next_key(key))) for key in memory}
        return Collected(entries, begins, memory)

    @torch.no_grad()
    def act(
        self, buffers: Any, t: int, begins: Tensor, memory: dict[Key, Tensor]
    ) -> TensorDictBase:
        """Return one step's observation [E] with all that the policy reads and writes.

        Args:
            buffers: as in ``collect``, filled up to step ``t``.
            t: the step.
            begins: bool [E, 1], the environments that are at an episode's first step.
            memory: by key [E, ..], the entries that the policy carries from the step before.
        """
        step = self.env.observation_at(buffers, t).set(IS_INIT, begins)
        for key, value in memory.items():
            step.set(key, value)
        return self.policy(step)


def zero_where(done: Tensor, memory: Tensor) -> Tensor:
    """Return memory [E, ..] with zeros where an episode is done [E, 1]."""
    return memory.masked_fill(done.view(-1, *[1] * (memory.dim() - 1)), 0)
