"""The fused collector: policy, step and reset into buffers of a whole batch."""

from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import (
    Compose,
    EnvBase,
    RewardSum,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)

from qmix_trl.envs.contract import BufferedEnv
from qmix_trl.errors import one_line
from qmix_trl.fused.step_loop import CallLoop, Loop
from qmix_trl.keys import ACTION_VALUE, DONE, EPISODE_REWARD, REWARD, next_key


def split(env: EnvBase) -> tuple[EnvBase, list[Transform]]:
    """Return an environment without its transforms, and these."""
    if not isinstance(env, TransformedEnv):
        return env, []
    chain = env.transform
    return env.base_env, list(chain) if isinstance(chain, Compose) else [chain]


def why_not(env: EnvBase) -> str | None:
    """Return why an environment has no fused collection, None if it has."""
    base, transforms = split(env)
    if not isinstance(base, BufferedEnv):
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
    steps are one call (``policy_kernel.py``), on a GPU one graph (``graph.py``). Else the policy is
    called at each step (``calls.py``). It acts by its own weights: there is nothing to send to it.

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
        calls = CallLoop(policy, self.env, steps)
        first = calls.act(self.env.begin_buffers(1), 0, self._begins, self._memory)
        compiled, self.called_because = self._compiled(policy, first)
        self._loop = calls if compiled is None else compiled

    def _compiled(
        self, policy: TensorDictModuleBase, first: TensorDictBase
    ) -> tuple[Loop | None, str | None]:
        """Return what needs no call of the policy at each step, or why there is none."""
        # Here, not above: they import vmas, which only its own environments may.
        from qmix_trl.fused import cuda_graph_loop, policy_kernel

        if self.env.device.type != "cuda":
            reason = policy_kernel.why_not(policy, self.env)
            if reason is not None:
                return None, reason
            return policy_kernel.PolicyKernel(policy, self.env), None
        reason = cuda_graph_loop.why_not(policy, self.env)
        if reason is not None:
            return None, reason
        try:
            rows, values = self.env.begin_buffers(self.steps), first.get(ACTION_VALUE)
            loop = cuda_graph_loop.GraphLoop(
                policy, self.env, rows, self._begins, self._memory, values
            )
        except RuntimeError as error:
            return None, f"its steps cannot be captured: {one_line(error)}"
        return loop, None

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
        rows = self.env.begin_buffers(self.steps)
        taken = self._loop.collect(rows, self._begins, self._memory)
        entries, self._begins, self._memory = taken
        batch = TensorDict({}, (*self.env.batch_size, self.steps), device=self.env.device)
        for key, sequence in entries.items():
            batch.set(key, sequence)
        self.env.pack_buffers(rows, batch)
        return self._with_returns(batch) if self._sums_rewards else batch

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
