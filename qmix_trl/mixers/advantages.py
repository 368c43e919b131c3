"""A base mixer's value plus weighted advantages, the form of QFIX and QPLEX."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_trl.functional import one_hot
from qmix_trl.mixers.sizes import check_shapes


def with_advantages(base: Tensor, factors: Tensor, chosen: Tensor, greedy: Tensor) -> Tensor:
    """Return ``base + sum over agents of w_a A_a``, with ``A_a = Q_a(u_a) - max Q_a``.

    No gradient passes through the advantages A_a.

    Args:
        base: float [*B, 1], the base mixer's value of the joint action.
        factors: float [*B, N], or [*B, 1] where all agents have the same.
        chosen: float [*B, N, 1], the utilities of the joint action.
        greedy: float [*B, N, 1], the greatest utilities of available actions.

    Returns:
        float [*B, 1].
    """
    advantage = (chosen - greedy).detach()[..., 0]  # [*B, N], at most 0
    return base + (factors * advantage).sum(-1, keepdim=True)


def with_joint_action(state: Tensor, action: Tensor, n_actions: int) -> Tensor:
    """Return states with the one-hot joint action behind them [*B, S + N A].

    Args:
        state: float [*B, S].
        action: int64 [*B, N].
        n_actions: A.
    """
    taken = one_hot(action, state.new_empty(n_actions))  # [*B, N, A]
    return torch.cat([state, taken.flatten(-2)], -1)


def check_entries(
    name: str, n_agents: int, state_shape: Sequence[int], entries: Sequence[Tensor]
) -> None:
    """Refuse entries of shapes that do not fit a mixer.

    Args:
        name: of the mixer.
        n_agents: N.
        state_shape: the shape of one state.
        entries: chosen and greedy action values, joint action and state.

    Raises:
        ValueError: if a shape differs.
    """
    chosen, greedy, action, state = entries
    batch = action.shape[:-1]
    check_shapes(
        name,
        chosen_action_value=(chosen, (*batch, n_agents, 1)),
        greedy_action_value=(greedy, (*batch, n_agents, 1)),
        action=(action, (*batch, n_agents)),
        state=(state, (*batch, *state_shape)),
    )
