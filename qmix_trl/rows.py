"""A batch in TorchRL's layout, read into the tensors of one unroll over T + 1 observations."""

from typing import NamedTuple, Protocol

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from qmix_trl.functional import (
    first_steps,
    following,
    joined_observations,
    keep_where,
    last_actions,
)
from qmix_trl.keys import next_key


class RowKeys(Protocol):
    """The keys by which rows are read; their defaults stand in ``qmix_trl.keys``."""

    observation: NestedKey
    action: NestedKey
    action_mask: NestedKey
    last_action: NestedKey
    hidden: NestedKey
    state: NestedKey
    terminated: NestedKey
    done: NestedKey
    is_init: NestedKey
    mask: NestedKey


class Rows(NamedTuple):
    """Rows as tensors, with zeros in their padding."""

    observation: Tensor  # [B, T+1, N, O]
    next_observation: Tensor  # [B, T, N, O], the true one where a reset follows
    last_action: Tensor | None  # [B, T+1, N, A]; None if it is not asked for
    hidden: Tensor | None  # [B, N, H], before the first observation; None for zeros
    is_init: Tensor  # [B, T+1, 1]
    action: Tensor  # [B, T, N]
    next_action_mask: Tensor | None  # [B, T, N, A]
    state: Tensor | None  # [B, T, *S]
    next_state: Tensor | None  # [B, T, *S], the true one where a reset follows
    reward: Tensor  # [B, T, M]
    terminated: Tensor  # [B, T, 1]
    last: Tensor  # [B, T, 1], the last valid step of its episode in the row
    cut_inside: Tensor  # [B, T, 1], not terminated, and another episode follows in the row
    mask: Tensor  # [B, T]


def read_rows(
    batch: TensorDictBase,
    keys: RowKeys,
    *,
    n_actions: int | None,
    reward: NestedKey,
    needs_state: bool,
) -> Rows:
    """Read a batch once; nothing of its padding is left in what is returned.

    Args:
        batch: [B, T]; the entries that may be missing are those that ``QMixLoss`` names.
        keys: where to read.
        n_actions: A, for last actions; None for none.
        reward: the reward's key: the team's [B, T, 1], or the agents' [B, T, N, 1].
        needs_state: whether to read the state, too.

    Raises:
        KeyError: if an entry is missing.
        ValueError: if the batch is not two-dimensional.
    """
    if batch.dim() != 2:
        raise ValueError(f"expected a batch of shape [B, T], got {list(batch.shape)}")
    present = batch.keys(include_nested=True, leaves_only=True)
    action = batch[keys.action]
    mask = torch.ones(batch.shape, dtype=torch.bool, device=action.device)
    if keys.mask in present:
        mask = batch.get(keys.mask)  # [B, T]

    padded = may_be_padded(mask)

    def now(key: NestedKey) -> Tensor:
        return keep_where(mask, batch[key]) if padded else batch[key]

    def after(key: NestedKey) -> Tensor:
        return now(next_key(key))

    action = now(keys.action)
    terminated = done = after(keys.terminated)  # [B, T, 1]
    if next_key(keys.done) in present:
        done = after(keys.done) | terminated
    if keys.is_init in present:
        begins = now(keys.is_init)  # [B, T, 1]
    else:
        begins = first_steps(done) & mask.unsqueeze(-1)  # behind an end padding may follow
    is_init = torch.cat([begins, torch.zeros_like(begins[:, :1])], 1)
    next_observation = after(keys.observation)
    last_action = None
    if n_actions is not None:
        first_action = next_observation.new_zeros(*action[:, 0].shape, n_actions)  # [B, N, A]
        if keys.last_action in present:
            first_action = now(keys.last_action)[:, 0]
        last_action = last_actions(action, first_action, is_init)
    next_mask = next_key(keys.action_mask)
    return Rows(
        observation=joined_observations(
            now(keys.observation), next_observation, mask if padded else None
        ),
        next_observation=next_observation,
        last_action=last_action,
        hidden=now(keys.hidden)[:, 0] if keys.hidden in present else None,
        is_init=is_init,
        action=action,
        next_action_mask=batch.get(next_mask) if next_mask in present else None,
        state=now(keys.state) if needs_state else None,
        next_state=after(keys.state) if needs_state else None,
        reward=after(reward).reshape(*batch.shape, -1),
        terminated=terminated,
        last=done | following(begins) | ~following(mask.unsqueeze(-1)),
        cut_inside=following(begins) & ~terminated & mask.unsqueeze(-1),
        mask=mask,
    )


def may_be_padded(mask: Tensor) -> bool:
    """Say whether a mask may leave a step out: a GPU is not waited for, nor a trace broken."""
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    return not bool(mask.all())
