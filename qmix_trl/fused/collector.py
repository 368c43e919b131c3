"""The fused collector: policy, step and reset write into buffers of a whole batch."""

from collections.abc import Callable, Iterator

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

from qmix_trl.chosen import Chosen
from qmix_trl.envs.contract import BufferedEnv
from qmix_trl.errors import one_line
from qmix_trl.fused.step_loop import Loop, StepLoop
from qmix_trl.keys import ACTION_VALUE, DONE, EPISODE_REWARD, REWARD, next_key


def split(env: EnvBase) -> tuple[EnvBase, list[Transform]]:
    """Return an environment without its transforms, and the transforms."""
    if not isinstance(env, TransformedEnv):
        return env, []
    chain = env.transform
    return env.base_env, list(chain) if isinstance(chain, Compose) else [chain]


def why_not(env: EnvBase) -> str | None:
    """Return the reason why an environment has no fused collection; None if it has."""
    base, transforms = split(env)
    if not isinstance(base, BufferedEnv):
        return f"{type(base).__name__} does not fill buffers of steps"
    unknown = [t for t in transforms if not is_known(t)]
    return f"it does not know the transform {type(unknown[0]).__name__}" if unknown else None


def is_known(transform: Transform) -> bool:
    """Return whether a transform is memory that begins at zero, or sums the team's rewards."""
    if isinstance(transform, RewardSum):
        return (transform.in_keys, transform.out_keys) == ([REWARD], [EPISODE_REWARD])
    return isinstance(transform, TensorDictPrimer) and not transform.random


class FusedCollector:
    """Iterates over batches [E, T] with the entries and the layout of TorchRL's collector.

    ``how`` is one of three loops. On the CPU the "C++ loop" computes policies of ``make_policy``
    and compiled steps, many steps in one call (``policy_kernel.py``); on a GPU the "CUDA graph"
    takes all steps of a batch in one launch (``cuda_graph_loop.py``). Where neither can, the
    "step loop" calls policy and environment at each step (``step_loop.py``).

    The collector acts by the policy itself: weights need not be sent to it.

    Args:
        env: fills buffers of steps (``BufferedEnv``), with the policy's memory and, if wanted,
            TorchRL's ``RewardSum`` of the team's reward.
        policy: reads observations, ``is_init`` and memory; writes actions and the next memory.
        steps: T.
        n_batches: the number of batches.
        reset_at_each_iter: all environments are reset before each batch.
        postproc: a function that is applied to each batch.

    Attributes:
        how: the loop that runs, and why a faster one does not.

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
        step_loop = StepLoop(policy, self.env, steps)
        # TorchRL's collector calls the policy once when it is made, and so advances the policy's
        # random stream. Without the same call here, exploration would differ from its batches.
        first = step_loop.act(self.env.begin_buffers(1), 0, self._begins, self._memory)
        self._loop, self.how = self._choose_loop(step_loop, first.get(ACTION_VALUE, None))

    def _choose_loop(self, step_loop: StepLoop, values: Tensor | None) -> tuple[Loop, Chosen]:
        """Return the fastest loop that can run, and why a faster one cannot.

        Args:
            step_loop: the loop that always can.
            values: action values of one step, [E, N, A], if the policy computes any.
        """
        # Imported here, not above: they import vmas, which other environments do without.
        from qmix_trl.fused import cuda_graph_loop, policy_kernel

        if self.env.device.type != "cuda":
            reason = policy_kernel.why_not(self.policy, self.env)
            if reason is None:
                return policy_kernel.PolicyKernel(self.policy, self.env), Chosen("C++ loop")
            return step_loop, Chosen("step loop", {"C++ loop": reason})
        reason = cuda_graph_loop.why_not(self.policy, self.env)
        if reason is None:
            buffers = self.env.begin_buffers(self.steps)
            try:
                graph = cuda_graph_loop.GraphLoop(
                    self.policy, self.env, buffers, self._begins, self._memory, values
                )
                return graph, Chosen("CUDA graph")
            except RuntimeError as error:
                reason = f"its steps cannot be captured: {one_line(error)}"
        return step_loop, Chosen("step loop", {"CUDA graph": reason})

    def _begin(self) -> None:
        """Reset all environments, the policy's memory and the returns."""
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
        buffers = self.env.begin_buffers(self.steps)
        collected = self._loop.collect(buffers, self._begins, self._memory)
        self._begins, self._memory = collected.begins, collected.memory
        batch = TensorDict({}, (*self.env.batch_size, self.steps), device=self.env.device)
        for key, sequence in collected.entries.items():
            batch.set(key, sequence)
        self.env.pack_buffers(buffers, batch)
        return self._with_returns(batch) if self._sums_rewards else batch

    def _with_returns(self, batch: TensorDict) -> TensorDict:
        """Set the team's return since the reset [E, T, 1], before and after each step."""
        rewards, done = batch.get(next_key(REWARD)), batch.get(next_key(DONE))  # [E, T, 1]
        before, after = torch.empty_like(rewards), torch.empty_like(rewards)
        for t in range(self.steps):
            before[:, t, 0] = self._returns
            after[:, t, 0] = self._returns + rewards[:, t, 0]
            self._returns = after[:, t, 0].masked_fill(done[:, t, 0], 0)
        return batch.set(EPISODE_REWARD, before).set(next_key(EPISODE_REWARD), after)

    def update_policy_weights_(self) -> None:
        """Do nothing: the policy that acts is the one that is trained."""

    def shutdown(self) -> None:
        """Do nothing: there is no process to end."""
