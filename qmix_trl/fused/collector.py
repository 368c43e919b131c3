"""The fused collector: policy, step and reset into buffers of a whole batch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import (
    Compose,
    EnvBase,
    RewardSum,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)

from qmix_trl.envs.contract import RowsEnv
from qmix_trl.fused import policy_kernel
from qmix_trl.keys import ACTION, DONE, EPISODE_REWARD, IS_INIT, REWARD, next_key


def split(env: EnvBase) -> tuple[EnvBase, list[Transform]]:
    """Return an environment without its transforms, and these."""
    if not isinstance(env, TransformedEnv):
        return env, []
    chain = env.transform
    return env.base_env, list(chain) if isinstance(chain, Compose) else [chain]


def why_not(env: EnvBase) -> str | None:
    """Return why an environment has no fused collection, None if it has."""
    base, transforms = split(env)
    if not isinstance(base, RowsEnv):
        return f"{type(base).__name__} does not step rows of a batch by itself"
    unknown = [t for t in transforms if not is_known(t)]
    return f"it knows nothing of the transform {type(unknown[0]).__name__}" if unknown else None


def is_known(transform: Transform) -> bool:
    """Say whether a transform is memory that begins at zero, or sums the team's rewards."""
    if isinstance(transform, RewardSum):
        return (transform.in_keys, transform.out_keys) == ([REWARD], [EPISODE_REWARD])
    return isinstance(transform, TensorDictPrimer) and not transform.random


class FusedCollector:
    """Iterates over batches [E, T], laid out as TorchRL's collector does.

    Where the environment's step is compiled, policies of ``make_policy`` are so, too, and many
    steps are one call (``policy_kernel.py``). Else the policy is called once a step for all
    environments, and everything else of a step is one call of the environment's. The policy acts
    by its own weights: there is nothing to send to it.

    Args:
        env: steps rows of a batch by itself, with the policy's memory and, if wanted, TorchRL's
            ``RewardSum`` of the team's reward.
        policy: reads observations, ``is_init`` and memory; writes actions and the next memory.
        steps: T.
        n_batches: how many batches there will be.
        reset_at_each_iter: all environments begin each batch anew.
        postproc: what is done to each batch.

    Attributes:
        called_because: why the policy is called at each step; None where it is not.

    Raises:
        ValueError: if the environment has no fused collection.
    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        *,
        steps: int,
        n_batches: int,
        reset_at_each_iter: bool,
        postproc: Callable[[TensorDictBase], TensorDictBase],
    ) -> None:
        reason = why_not(env)
        if reason is not None:
            raise ValueError(f"FusedCollector: {reason}")
        self.env, transforms = split(env)
        self.policy = policy
        self.steps = steps
        self.n_batches = n_batches
        self.reset_at_each_iter = reset_at_each_iter
        self.postproc = postproc
        observed = env.observation_spec.keys(True, True)
        carried = [key[1:] for key in policy.out_keys if key[0] == "next"]
        self._zero_memory = {k: env.observation_spec[k].zero() for k in carried if k in observed}
        self._sums_rewards = any(isinstance(t, RewardSum) for t in transforms)
        self._begin()
        # Once to see what the policy writes, as TorchRL's collector does: the random numbers that
        # this takes are the same.
        self._written = self._act(self.env.begin_rows(1), 0, self._begins, self._memory)
        self.called_because = policy_kernel.why_not(policy, self.env)
        self._kernel = None
        if self.called_because is None:
            self._kernel = policy_kernel.PolicyKernel(policy, self.env)

    def _begin(self) -> None:
        """Reset all environments, and what is carried from step to step."""
        (n_envs,), to = self.env.batch_size, {"device": self.env.device}
        self.env.reset()
        self._begins = torch.ones(n_envs, 1, dtype=torch.bool, **to)
        self._memory = dict(self._zero_memory)
        self._returns = torch.zeros(n_envs, **to)

    def __iter__(self) -> Iterator[TensorDictBase]:
        for _ in range(self.n_batches):
            if self.reset_at_each_iter:
                self._begin()
            yield self.postproc(self.collect())

    def collect(self) -> TensorDictBase:
        """Return the next batch [E, T]."""
        rows = self.env.begin_rows(self.steps)
        by = self._by_calls if self._kernel is None else self._kernel.collect
        entries, self._begins, self._memory = by(rows, self._begins, self._memory)
        batch = TensorDict({}, (*self.env.batch_size, self.steps), device=self.env.device)
        for key, sequence in entries.items():
            batch.set(key, sequence)
        self.env.pack_rows(rows, batch)
        return self._with_returns(batch) if self._sums_rewards else batch

    def _by_calls(self, rows: Any, begins: Tensor, memory: dict) -> tuple[dict, Tensor, dict]:
        """Take all steps of rows, one call of the policy each; as ``PolicyKernel.collect``."""
        begun = begins.new_empty(self.steps, *begins.shape)  # [T, E, 1]
        carried = {key: self._empty(key, self.steps + 1) for key in memory}
        written = {key: self._empty(key, self.steps) for key in self.policy.out_keys}
        for key, sequence in carried.items():
            sequence[0] = memory[key]
        for t in range(self.steps):
            begun[t] = begins
            step = self._act(rows, t, begins, {key: seq[t] for key, seq in carried.items()})
            for key, sequence in written.items():
                sequence[t] = step.get(key)
            done = self.env.step_rows(rows, t, step.get(ACTION))  # [E, 1]
            begins = done if self.env.reset_when_done else torch.zeros_like(done)
            for key, sequence in carried.items():
                sequence[t + 1] = step.get(next_key(key))
                sequence[t + 1].masked_fill_(done.view(-1, *[1] * (sequence.dim() - 2)), 0)
        before = {key: sequence[:-1] for key, sequence in carried.items()}
        entries = before | written | {IS_INIT: begun}
        last = {key: sequence[-1] for key, sequence in carried.items()}
        return {key: seq.transpose(0, 1) for key, seq in entries.items()}, begins, last

    @torch.no_grad()
    def _act(self, rows: Any, t: int, begins: Tensor, memory: dict) -> TensorDictBase:
        """Return one step's observation with what the policy reads and writes."""
        step = self.env.seen_at(rows, t).set(IS_INIT, begins)
        for key, value in memory.items():
            step.set(key, value)
        return self.policy(step)

    def _empty(self, key: tuple | str, n_steps: int) -> Tensor:
        """Return room for an entry of the policy's in so many steps: [n_steps, E, ..].

        Time comes first, so that a step is written in one piece.
        """
        one = self._written.get(key)
        return one.new_empty(n_steps, *one.shape)

    def _with_returns(self, batch: TensorDict) -> TensorDict:
        """Add what the team has earned since the reset, before and behind each step."""
        rewards, done = batch.get(next_key(REWARD)), batch.get(next_key(DONE))  # [E, T, 1]
        before, after = torch.empty_like(rewards), torch.empty_like(rewards)
        for t in range(self.steps):
            before[:, t, 0] = self._returns
            after[:, t, 0] = self._returns + rewards[:, t, 0]
            self._returns = after[:, t, 0].masked_fill(done[:, t, 0], 0)
        return batch.set(EPISODE_REWARD, before).set(next_key(EPISODE_REWARD), after)

    def update_policy_weights_(self) -> None:
        """Do nothing: the policy that acts is the one that learns."""

    def shutdown(self) -> None:
        """Do nothing: no process was started."""
