"""The steps of a batch as one CUDA graph: one launch instead of thousands."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from qmix_trl.chosen import CUDA_GRAPH
from qmix_trl.cuda_graph import captured, warmed_up
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.functional import greedy_action
from qmix_trl.fused.policy_kernel import is_known
from qmix_trl.fused.step_loop import Collected, Key, StepLoop
from qmix_trl.keys import ACTION, ACTION_VALUE
from qmix_trl.policy import AgentPolicy


def why_not(policy: TensorDictModuleBase, env: Any) -> str | None:
    """Return the reason why a policy and an environment have no graph; None if they have one."""
    if env.compiled_loop != CUDA_GRAPH:
        return "no Triton kernel steps the environment"
    return None if is_known(policy) else "the policy has no form that a graph can hold"


class DrawnAhead(TensorDictModuleBase):
    """``EpsilonGreedyAction`` by random numbers drawn before, and an epsilon held in a tensor.

    Args:
        n_steps: T.
        values: action values of one step, [E, N, A], of any content.

    Attributes:
        explore: float [T, E, N].
        choose: float [T, E, N, A].
        epsilon: float [].
    """

    in_keys = [ACTION_VALUE]
    out_keys = [ACTION]

    def __init__(self, n_steps: int, values: Tensor) -> None:
        super().__init__()
        self.explore = values.new_ones(n_steps, *values.shape[:-1])
        self.choose = values.new_zeros(n_steps, *values.shape)
        self.epsilon = values.new_zeros(())
        self.begin()

    def begin(self) -> None:
        """Go back to the first step."""
        self._steps: Iterator = zip(self.explore, self.choose, strict=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [E, N], of the next step."""
        explore, choose = next(self._steps)
        greedy = greedy_action(tensordict.get(ACTION_VALUE), None)
        action = torch.where(explore < self.epsilon, greedy_action(choose, None), greedy)
        return tensordict.set(ACTION, action)


class GraphLoop:
    """Acts by a policy of ``make_policy`` in an environment that a Triton kernel steps.

    The graph reads and writes tensors of its own: the start of a batch is copied to them, and the
    results are copied from them.

    Args:
        policy: to act by, with the weights that it has at the time.
        env: to act in; its simulation is in the same state afterwards.
        buffers: of T steps, begun; the graph keeps them.
        begins: bool [E, 1].
        memory: by key [E, N, ..], the agent's memory.
        values: action values of one step, [E, N, A], of any content.

    Raises:
        RuntimeError: if the steps cannot be captured.
    """

    def __init__(
        self,
        policy: AgentPolicy,
        env: Any,
        buffers: Buffers,
        begins: Tensor,
        memory: dict[Key, Tensor],
        values: Tensor,
    ) -> None:
        agent, self._head, remember = policy.module
        n_steps = buffers.action.shape[1]
        self._drawn = DrawnAhead(n_steps, values)
        loop = StepLoop(TensorDictSequential(agent, self._drawn, remember), env, n_steps)
        self._buffers, self._begins = buffers, begins.clone()
        self._memory = {key: value.clone() for key, value in memory.items()}

        def steps() -> Collected:
            self._drawn.begin()
            return loop.collect(self._buffers, self._begins, self._memory)

        before = env.simulation_state()
        warmed_up(steps)
        self._collected, self._replay = captured(steps)
        env.load_simulation_state(before)

    def collect(self, buffers: Buffers, begins: Tensor, memory: dict[Key, Tensor]) -> Collected:
        """Take all steps of the buffers, as ``Loop.collect``."""
        self._buffers.seen[:, 0] = buffers.seen[:, 0]
        self._begins.copy_(begins)
        for key, value in memory.items():
            self._memory[key].copy_(value)
        n_steps, *shape = self._drawn.choose.shape
        draws = self._head.draws(n_steps, tuple(shape))
        if draws is not None:
            self._drawn.explore.copy_(draws[0])
            self._drawn.choose.copy_(draws[1])
            self._drawn.epsilon.fill_(self._head.epsilon)
        self._replay()
        for field in fields(buffers):
            getattr(buffers, field.name).copy_(getattr(self._buffers, field.name))
        entries, begins, memory = self._collected
        return Collected(_copied(entries), begins.clone(), _copied(memory))


def _copied(tensors: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """Return copies of tensors by key."""
    return {key: tensor.clone() for key, tensor in tensors.items()}
