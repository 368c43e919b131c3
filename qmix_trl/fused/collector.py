"""The fused collector: policy, step and reset write into buffers of a whole batch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import (
    Compose,
    EnvBase,
    RewardSum,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)

from qmix_trl.chosen import CPP_LOOP, CUDA_GRAPH, POLICY_KERNEL, Chosen, named
from qmix_trl.envs.contract import env_state, fills_buffers, load_env_state
from qmix_trl.errors import MachineError, one_line
from qmix_trl.functional import episode_returns
from qmix_trl.fused.step_loop import Key, Loop, StepLoop
from qmix_trl.keys import DONE, EPISODE_REWARD, REWARD, next_key


def split(env: EnvBase) -> tuple[EnvBase, list[Transform]]:
    """Return an environment without its transforms, and the transforms."""
    if not isinstance(env, TransformedEnv):
        return env, []
    chain = env.transform
    return env.base_env, list(chain) if isinstance(chain, Compose) else [chain]


def why_not(env: EnvBase) -> str | None:
    """Return the reason why an environment has no fused collection; None if it has."""
    base, transforms = split(env)
    if not fills_buffers(base):
        return f"{type(base).__name__} does not fill buffers of steps"
    unknown = [t for t in transforms if not is_known(t)]
    return f"it does not know the transform {type(unknown[0]).__name__}" if unknown else None


def is_known(transform: Transform) -> bool:
    """Return whether a transform is memory that begins at zero, or sums the team's rewards."""
    if isinstance(transform, RewardSum):
        return (transform.in_keys, transform.out_keys) == ([REWARD], [EPISODE_REWARD])
    return isinstance(transform, TensorDictPrimer) and not transform.random


def carried_keys(policy: TensorDictModuleBase) -> list[Key]:
    """Return the keys of a policy's memory: the entries that it writes for the next step."""
    return [key[1:] for key in policy.out_keys if key[0] == "next"]


def show_first_memory(batch: TensorDictBase, memory: dict[Key, Tensor]) -> TensorDictBase:
    """Return a batch that shows the memory at the first step at every step.

    Args:
        batch: [E, T].
        memory: by key [E, ..], before the first step.
    """
    # TorchRL's collector writes to the tensors of its batch again, so they are left alone.
    batch = batch.exclude(*memory, *map(next_key, memory))
    for key, first in memory.items():
        batch.set(key, first.unsqueeze(1).expand(*batch.shape, *first.shape[1:]))
    return batch


def collector_repr(collector: Any, env: EnvBase, steps: int, n_batches: int) -> str:
    """Return a collector in one line: its sizes, and the implementation that collects.

    Args:
        collector: with an attribute ``how``.
        env: whose steps it collects.
        steps: T.
        n_batches: the number of batches.
    """
    sizes = {"n_envs": env.batch_size.numel(), "steps": steps, "n_batches": n_batches}
    sizes["rows"] = "episodes" if collector.reset_at_each_iter else "slices"
    return f"{type(collector).__name__}({named(sizes)}; {collector.how.name})"


class FusedCollector:
    """Iterates over batches [E, T] with the entries and the layout of TorchRL's collector.

    ``how`` is one of four loops. On the CPU the "C++ loop" computes policies of ``make_policy``
    and compiled steps, many steps in one call (``policy_kernel.py``); on a GPU the "CUDA graph"
    takes all steps of a batch in one launch (``cuda_graph_loop.py``), and the "CUDA graph with
    policy kernel" acts by one kernel a step (``triton_loop.py``) in it. Where neither can, the
    "step loop" calls policy and environment at each step (``step_loop.py``).

    The collector acts by the policy itself: weights need not be sent to it. It has the attributes
    and methods of TorchRL's collectors that its ``Trainer`` and ``Checkpoint`` use; for processes,
    ``replay_buffer`` or ``start``, take ``collector="stock"``.

    Args:
        env: fills buffers of steps (``BufferedEnv``), with the policy's memory and, if wanted,
            TorchRL's ``RewardSum`` of the team's reward.
        policy: reads observations, ``is_init`` and memory; writes actions and the next memory.
        steps: T.
        n_batches: the number of batches.
        reset_at_each_iter: all environments are reset before each batch.
        postproc: a function that is applied to each batch.
        keeps_memory: whether batches hold the policy's memory before and after each step. If not,
            they show the memory at their first step at every step, as replay does.

    Attributes:
        how: the loop that runs, and why a faster one does not.
        init_random_frames: 0: the policy takes all actions.
        requested_frames_per_batch: E T.
        total_frames: those of all batches.

    Raises:
        ValueError: if the environment has no fused collection.
        MachineError: if a GPU has no room for the steps of a batch.
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
        keeps_memory: bool = True,
    ) -> None:
        reason = why_not(env)
        if reason is not None:
            raise ValueError(f"FusedCollector: {reason}")
        self.env, transforms = split(env)
        self.policy = policy
        self.steps = steps
        self.n_batches = n_batches
        self.init_random_frames = 0
        self.requested_frames_per_batch = self.env.batch_size.numel() * steps
        self.total_frames = self.requested_frames_per_batch * n_batches
        self._iter = 0  # batches that were collected, like TorchRL's counters
        self.reset_at_each_iter = reset_at_each_iter
        self.postproc = postproc
        self.keeps_memory = keeps_memory
        observed = env.observation_spec.keys(True, True)
        self._zero_memory = {
            key: env.observation_spec[key].zero() for key in carried_keys(policy) if key in observed
        }
        self._sums_rewards = any(isinstance(t, RewardSum) for t in transforms)
        self._begin()
        self._loop, self.how = self._first_loop()

    def __repr__(self) -> str:
        return collector_repr(self, self.env, self.steps, self.n_batches)

    def _first_loop(self) -> tuple[Loop, Chosen]:
        """Act one step; return the loop that can run, and why a faster one cannot."""
        step_loop = StepLoop(self.policy, self.env, self.steps, keeps_memory=self.keeps_memory)
        # TorchRL's collector calls the policy once when it is made, and so advances the policy's
        # random stream. Without the same call here, exploration would differ from its batches.
        first = step_loop.act(self.env.begin_buffers(1), 0, self._begins, self._memory)
        return self._choose_loop(step_loop, first)

    def _choose_loop(self, step_loop: StepLoop, step: TensorDictBase) -> tuple[Loop, Chosen]:
        """Return the fastest loop that can run, and why a faster one cannot.

        Args:
            step_loop: the loop that always can.
            step: a step [E] that it has acted.
        """
        # Imported here, not above: they import vmas, which other environments do without.
        from qmix_trl.fused import cuda_graph_loop, policy_kernel, triton_loop

        if self.env.device.type != "cuda":
            reason = policy_kernel.why_not(self.policy, self.env)
            if reason is None:
                return policy_kernel.PolicyKernel(self.policy, self.env), Chosen(CPP_LOOP)
            return step_loop, Chosen("step loop", {CPP_LOOP: reason})
        reason = cuda_graph_loop.why_not(self.policy, self.env)
        if reason is not None:
            return step_loop, Chosen("step loop", {CUDA_GRAPH: reason})
        loop, no_kernel = triton_loop.with_kernel(step_loop)
        try:
            graph = cuda_graph_loop.GraphLoop(loop, step, self._begins, self._memory)
        except MachineError:  # the step loop would need as much memory
            raise
        except RuntimeError as error:
            reason = f"its steps cannot be captured: {one_line(error)}"
            return step_loop, Chosen("step loop", {CUDA_GRAPH: reason})
        if no_kernel is None:
            return graph, Chosen(POLICY_KERNEL)
        return graph, Chosen(CUDA_GRAPH, {POLICY_KERNEL: no_kernel})

    def _begin(self) -> None:
        """Reset all environments, the policy's memory and the returns."""
        (n_envs,), to = self.env.batch_size, {"device": self.env.device}
        self.env.reset()
        self._begins = torch.ones(n_envs, 1, dtype=torch.bool, **to)
        self._memory = dict(self._zero_memory)
        self._returns = torch.zeros(n_envs, **to)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[TensorDictBase]:
        while self._iter < self.n_batches:
            if self.reset_at_each_iter:
                self._begin()
            batch = self.postproc(self.collect())
            self._iter += 1
            yield batch

    def collect(self) -> TensorDictBase:
        """Return the next batch [E, T]."""
        if self.env.refusal is not None:
            self.env.change_engine()
            self._begin()
            self._loop, self.how = self._first_loop()
        buffers = self.env.begin_buffers(self.steps)
        first_memory = self._memory
        collected = self._loop.collect(buffers, self._begins, self._memory)
        self._begins, self._memory = collected.begins, collected.memory
        batch = TensorDict({}, (*self.env.batch_size, self.steps), device=self.env.device)
        for key, sequence in collected.entries.items():
            batch.set(key, sequence)
        self.env.pack_buffers(buffers, batch)
        if not self.keeps_memory:
            batch = show_first_memory(batch, first_memory)
        return self._with_returns(batch) if self._sums_rewards else batch

    def _with_returns(self, batch: TensorDict) -> TensorDict:
        """Set the team's return since the reset [E, T, 1], before and after each step."""
        reward, done = batch.get(next_key(REWARD))[..., 0], batch.get(next_key(DONE))[..., 0]
        before, after = episode_returns(reward, done, self._returns)
        self._returns = after[:, -1].masked_fill(done[:, -1], 0)
        batch.set(EPISODE_REWARD, before.unsqueeze(-1))
        return batch.set(next_key(EPISODE_REWARD), after.unsqueeze(-1))

    def update_policy_weights_(
        self,
        policy_or_weights: TensorDictBase | nn.Module | None = None,
        *,
        weights_dict: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy weights into the policy; without any, it is the one that is trained.

        Args:
            policy_or_weights: a policy of the same kind, or its weights as a TensorDict.
            weights_dict: such weights under the name "policy".

        Raises:
            KeyError: if ``weights_dict`` names another model.
        """
        for name, found in (weights_dict or {}).items():
            if name != "policy":
                raise KeyError(f"FusedCollector: expected weights of 'policy', got {name!r}")
            policy_or_weights = found
        if isinstance(policy_or_weights, nn.Module):
            policy_or_weights = TensorDict.from_module(policy_or_weights)
        if policy_or_weights is not None:
            TensorDict.from_module(self.policy).data.update_(policy_or_weights.data)

    def set_seed(self, seed: int, static_seed: bool = False) -> int | None:
        """Seed the environment, and return the seed for a next one, as TorchRL's collectors do."""
        return self.env.set_seed(seed, static_seed=static_seed)

    def reset(self) -> None:
        """Reset all environments: new episodes begin."""
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Return the policy's state and the number of batches; not the environment's state."""
        frames = self._iter * self.requested_frames_per_batch
        return {
            "policy_state_dict": self.policy.state_dict(),
            "iter": self._iter,
            "frames": frames,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after the batches of a ``state_dict``; new episodes begin."""
        self.policy.load_state_dict(state_dict["policy_state_dict"])
        self._iter = state_dict["iter"]
        self._begin()

    def run_state(self) -> dict[str, Any]:
        """Return all that later batches depend on: running episodes, environment and policy.

        Raises:
            TypeError: if the environment has no state that it could continue from.
        """
        return {
            "iter": self._iter,
            "env": env_state(self.env),
            "begins": self._begins,
            "memory": TensorDict(self._memory, self.env.batch_size),
            "returns": self._returns,
            "policy": self.policy.state_dict(),
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue, in the middle of episodes, from a ``run_state`` of a collector made alike.

        Raises:
            TypeError: if the environment cannot continue from a state.
            ValueError: if the environment or the policy's memory does not fit.
        """
        loop_before = self.env.compiled_loop
        load_env_state(self.env, state["env"])
        if self.env.compiled_loop != loop_before:  # it goes on with another engine
            self._loop, self.how = self._first_loop()
        zero = self._zero_memory
        memory = dict(state["memory"].to(self.env.device).items(True, True))
        if {k: x.shape for k, x in memory.items()} != {k: x.shape for k, x in zero.items()}:
            raise ValueError(
                f"FusedCollector: expected a memory of {list(zero)} for {len(state['begins'])} "
                f"environments, got {list(memory)}; load the state of a collector made alike"
            )
        self._memory = {key: memory[key] for key in zero}
        self._begins = state["begins"].to(self.env.device)
        self._returns = state["returns"].to(self.env.device)
        self._iter = state["iter"]
        self.policy.load_state_dict(state["policy"])

    def shutdown(
        self,
        timeout: float | None = None,
        close_env: bool = True,
        raise_on_error: bool = True,
    ) -> None:
        """Do nothing: there is no process to end."""
