"""The action values of agents at the steps of replay rows."""

from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from qmix_trl.functional import batch_index, one_hot
from qmix_trl.rows import Rows


def unrolled(agent: TensorDictModuleBase, rows: Rows, burn_in: int) -> tuple[Tensor, Tensor | None]:
    """Return action values [B, T+1, N, A] and hidden states [B, T+1, N, H] of an agent.

    Args:
        agent: with ``unroll``.
        rows: of T steps.
        burn_in: the number of first steps without gradient.

    Raises:
        ValueError: if the agent returns something else.
    """
    sequence = (rows.observation, rows.last_action, rows.is_init)
    if burn_in == 0:
        found = agent.unroll(*sequence, rows.hidden)
        _check_values(agent, rows, found)
        return found
    with torch.no_grad():
        burnt = agent.unroll(*_range_of(sequence, slice(burn_in)), rows.hidden)
    hidden = None if burnt[1] is None else burnt[1][:, -1]
    value, hidden = agent.unroll(*_range_of(sequence, slice(burn_in, None)), hidden)
    hidden = None if hidden is None else torch.cat([burnt[1], hidden], 1)
    return torch.cat([burnt[0], value], 1), hidden


def _check_values(agent: TensorDictModuleBase, rows: Rows, found: Any) -> None:
    """Refuse an unroll that is not the action values [B, T+1, N, A] and hidden states, or None.

    Raises:
        ValueError: if it is something else.
    """
    expected = [*rows.observation.shape[:3], agent.n_actions]
    is_pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)
    if not is_pair or list(found[0].shape) != expected:
        got = list(found[0].shape) if is_pair else type(found).__name__
        raise ValueError(
            f"{type(agent).__name__}.unroll: expected action values {expected}, of the T + 1 "
            f"observations of each row, and hidden states or None, got {got}"
        )


def _range_of(sequence: tuple[Tensor | None, ...], steps: slice) -> list[Tensor | None]:
    """Return a range of steps of tensors [B, T, ..]."""
    return [None if x is None else x[:, steps] for x in sequence]


def at_true_next(
    agent: TensorDictModuleBase,
    rows: Rows,
    value: Tensor,
    hidden: Tensor | None,
    *,
    with_hidden: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return action values [B, T, N, A] and hidden states at each step's true next observation.

    They are the unroll's at the next step, except at a cut: there the agent takes one more step,
    from its hidden state to the last observation of the truncated episode.

    Args:
        agent: with ``step``.
        rows: of T steps.
        value: float [B, T+1, N, A], of the agent's unroll.
        hidden: float [B, T+1, N, H], of the agent's unroll; None for agents without.
        with_hidden: whether hidden states are returned, if there are any.
    """
    value_tp1 = value[:, 1:]
    hidden_tp1 = None if hidden is None or not with_hidden else hidden[:, 1:]
    steps = rows.cut_steps  # [B, K]; K is fixed, so that no shape depends on the data
    if steps.shape[1] == 0:
        return value_tp1, hidden_tp1
    row = batch_index(steps)  # [B, 1]
    is_cut = rows.is_cut[row, steps][..., None, None]  # [B, K, 1, 1]
    observation = rows.next_observation[row, steps]  # [B, K, N, O]
    taken = one_hot(rows.action[row, steps], value)  # [B, K, N, A]
    before = None if hidden is None else hidden[row, steps]  # [B, K, N, H]
    cut_value, cut_hidden = agent.step(observation, taken, before)  # [B, K, N, ..]

    def replaced(x_tp1: Tensor, at_cuts: Tensor) -> Tensor:
        return x_tp1.index_put((row, steps), torch.where(is_cut, at_cuts, x_tp1[row, steps]))

    if hidden_tp1 is not None:
        hidden_tp1 = replaced(hidden_tp1, cut_hidden)
    return replaced(value_tp1, cut_value), hidden_tp1
