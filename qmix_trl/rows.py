"""A batch in TorchRL's layout, read into the tensors of one unroll over T + 1 observations."""

from typing import NamedTuple, Protocol

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from qmix_trl.functional import (
    cut_mask,
    first_steps,
    following,
    joined_observations,
    keep_where,
    last_actions,
)
from qmix_trl.keys import next_key


class RowKeys(Protocol):
    """The keys of a batch's entries; their defaults stand in ``qmix_trl.keys``."""

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
    cut_steps: NestedKey


class Rows(NamedTuple):
    """The rows of a batch as tensors, with zeros in their padding."""

    observation: Tensor  # [B, T+1, N, O]
    next_observation: Tensor  # [B, T, N, O], the true one where a reset follows
    last_action: Tensor | None  # [B, T+1, N, A]; None if the agent does not read it
    hidden: Tensor | None  # [B, N, H], before the first observation; None for zeros
    is_init: Tensor  # [B, T+1, 1]
    action: Tensor  # [B, T, N]
    action_mask: Tensor | None  # [B, T, N, A]
    next_action_mask: Tensor | None  # [B, T, N, A]
    state: Tensor | None  # [B, T, *S]; None if the mixer does not read it
    next_state: Tensor | None  # [B, T, *S], the true one where a reset follows
    reward: Tensor  # [B, T, M]
    terminated: Tensor  # [B, T, 1]
    last: Tensor  # [B, T, 1], the last valid step of its episode in the row
    is_cut: Tensor  # [B, T], see functional.cut_mask
    cut_steps: Tensor  # [B, K] int64, steps of each row, all its cuts among them
    mask: Tensor  # [B, T]


class _Reader:
    """Reads the entries of a batch [B, T], with zeros in their padding."""

    def __init__(self, batch: TensorDictBase, keys: RowKeys) -> None:
        self.batch = batch
        self.present = batch.keys(include_nested=True, leaves_only=True)
        device = batch[keys.action].device
        self.mask = torch.ones(batch.shape, dtype=torch.bool, device=device)  # [B, T]
        if keys.mask in self.present:
            self.mask = batch.get(keys.mask)
        self.padded = may_be_padded(self.mask)

    def __contains__(self, key: NestedKey) -> bool:
        return key in self.present

    def now(self, key: NestedKey) -> Tensor:
        return keep_where(self.mask, self.batch[key]) if self.padded else self.batch[key]

    def after(self, key: NestedKey) -> Tensor:
        return self.now(next_key(key))

    def optional(self, key: NestedKey) -> Tensor | None:
        """Return an entry as it is, or None if it is missing."""
        return self.batch.get(key) if key in self else None


def read_rows(
    batch: TensorDictBase,
    keys: RowKeys,
    *,
    n_actions: int | None,
    reward: NestedKey,
    needs_state: bool,
) -> Rows:
    """Return the rows of a batch; nothing of its padding is left in them.

    Args:
        batch: [B, T]; ``QMixLoss`` lists the entries, and the optional ones among them.
        keys: the keys of the entries.
        n_actions: A, to read last actions; None to leave them out.
        reward: the reward's key: the team's [B, T, 1], or the agents' [B, T, N, 1].
        needs_state: whether to read the state.

    Raises:
        KeyError: if an entry is missing.
        ValueError: if the batch is not two-dimensional.
    """
    if batch.dim() != 2:
        raise ValueError(f"expected a batch of shape [B, T], got {list(batch.shape)}")
    read = _Reader(batch, keys)
    mask, action = read.mask, read.now(keys.action)
    terminated = done = read.after(keys.terminated)  # [B, T, 1]
    if next_key(keys.done) in read:
        done = read.after(keys.done) | terminated
    if keys.is_init in read:
        begins = read.now(keys.is_init)  # [B, T, 1]
    else:
        begins = first_steps(done) & mask.unsqueeze(-1)  # padding may follow an end
    is_init = torch.cat([begins, torch.zeros_like(begins[:, :1])], 1)
    observation, next_observation = read.now(keys.observation), read.after(keys.observation)
    last_action = None
    if n_actions is not None:
        first_action = next_observation.new_zeros(*action[:, 0].shape, n_actions)  # [B, N, A]
        if keys.last_action in read:
            first_action = read.now(keys.last_action)[:, 0]
        last_action = last_actions(action, first_action, is_init)
    return Rows(
        observation=joined_observations(
            observation, next_observation, mask if read.padded else None
        ),
        next_observation=next_observation,
        last_action=last_action,
        hidden=read.now(keys.hidden)[:, 0] if keys.hidden in read else None,
        is_init=is_init,
        action=action,
        action_mask=read.optional(keys.action_mask),
        next_action_mask=read.optional(next_key(keys.action_mask)),
        state=read.now(keys.state) if needs_state else None,
        next_state=read.after(keys.state) if needs_state else None,
        reward=read.after(reward).reshape(*batch.shape, -1),
        terminated=terminated,
        last=done | following(begins) | ~following(mask.unsqueeze(-1)),
        is_cut=cut_mask(begins, terminated, mask),
        cut_steps=_cut_steps(read.optional(keys.cut_steps), mask),
        mask=mask,
    )


def _cut_steps(entry: Tensor | None, mask: Tensor) -> Tensor:
    """Return steps [B, K] that hold all cuts: the entry's [B, T, K], or every step of a row."""
    n_steps = mask.shape[1]
    if entry is not None:
        return entry[:, 0].clamp(0, n_steps - 1)  # of a range of steps, cuts may lie outside
    return torch.arange(n_steps, device=mask.device).expand(mask.shape)


def may_be_padded(mask: Tensor) -> bool:
    """Return whether a mask bool [B, T] may leave a step out.

    Only masks on the CPU are read: to read a GPU's, the CPU would wait for it, and a trace would
    break.
    """
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    return not bool(mask.all())
