"""A batch in TorchRL's layout, read into the tensors of one unroll over T + 1 observations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from qmix_trl import keys as default
from qmix_trl.functional import (
    cut_mask,
    first_steps,
    following,
    joined_observations,
    keep_where,
    last_actions,
)
from qmix_trl.keys import next_key


@dataclass
class RowKeys:
    """The keys of a batch's entries."""

    observation: NestedKey = default.OBSERVATION
    action: NestedKey = default.ACTION
    action_mask: NestedKey = default.ACTION_MASK
    last_action: NestedKey = default.LAST_ACTION
    hidden: NestedKey = default.HIDDEN
    state: NestedKey = default.STATE
    reward: NestedKey = default.REWARD
    agent_reward: NestedKey = default.AGENT_REWARD
    terminated: NestedKey = default.TERMINATED
    done: NestedKey = default.DONE
    is_init: NestedKey = default.IS_INIT
    mask: NestedKey = default.MASK
    cut_steps: NestedKey = default.CUT_STEPS


class Rows(NamedTuple):
    """The rows of a batch as tensors.

    Padding holds zeros, but for two things: the step after a row's last valid one holds its true
    next observation, and action masks are as given.
    """

    observation: Tensor  # [B, T+1, N, O]
    next_observation: Tensor  # [B, T, N, O], the true one where a reset follows; 0 if terminated
    last_action: Tensor | None  # [B, T+1, N, A]; None if the agent does not read it
    hidden: Tensor | None  # [B, N, H], before the first observation; None for zeros
    is_init: Tensor  # [B, T+1, 1]
    action: Tensor  # [B, T, N]
    action_mask: Tensor | None  # [B, T, N, A]
    next_action_mask: Tensor | None  # [B, T, N, A]
    state: Tensor | None  # [B, T, *S]; None if the mixer does not read it
    next_state: Tensor | None  # [B, T, *S], the true one where a reset follows
    others: dict[NestedKey, Tensor]  # [B, T, ..], by the keys asked for
    next_others: dict[NestedKey, Tensor]  # [B, T, ..]
    reward: Tensor  # [B, T, M]
    terminated: Tensor  # [B, T, 1]
    last: Tensor  # [B, T, 1], the last valid step of its episode in the row
    is_cut: Tensor  # [B, T], see functional.cut_mask
    cut_steps: Tensor  # [B, K] int64, steps of each row, all its cuts among them
    mask: Tensor  # [B, T]


class _Reader:
    """Reads the entries of a batch [B, T], with zeros in their padding.

    Entries are read one by one: ``key in batch.keys(True, True)`` misses nested entries of lazy
    stacks.
    """

    def __init__(
        self, batch: TensorDictBase, action: NestedKey, masks: Sequence[NestedKey]
    ) -> None:
        self.batch = batch
        numbers = required(batch, action)  # [B, T, N]
        if numbers.dim() != 3:
            hint = "; of single transitions give batch.unsqueeze(1)" if numbers.dim() == 2 else ""
            raise ValueError(
                f"expected a batch of shape [B, T], got {list(numbers.shape[:-1])}: actions are "
                f"numbers [B, T, N], got {action!r} of shape {list(numbers.shape)}{hint}"
            )
        if numbers.is_floating_point():
            raise ValueError(f"expected {action!r} of integers, got {numbers.dtype}")
        self.action = numbers
        self.shape = numbers.shape[:2]
        self.mask = torch.ones(self.shape, dtype=torch.bool, device=numbers.device)  # [B, T]
        for key in masks:
            mask = batch.get(key, None)
            if mask is not None:
                self.mask = self.mask & as_flags(mask, key, self.shape)[..., 0]
        self.padded = may_be_padded(self.mask)

    def valid(self, entry: Tensor) -> Tensor:
        """Return an entry with zeros in its padding."""
        return keep_where(self.mask, entry) if self.padded else entry

    def now(self, key: NestedKey) -> Tensor:
        return self.valid(required(self.batch, key))

    def after(self, key: NestedKey) -> Tensor:
        return self.now(next_key(key))

    def flags(self, key: NestedKey) -> Tensor:
        """Return flags bool [B, T, 1]."""
        return as_flags(self.now(key), key, self.shape)

    def optional(self, key: NestedKey) -> Tensor | None:
        """Return an entry as it is, or None if it is missing."""
        return self.batch.get(key, None)

    def optional_flags(self, key: NestedKey) -> Tensor | None:
        """Return flags bool [B, T, 1], or None if they are missing."""
        return None if self.optional(key) is None else self.flags(key)

    def first(self, key: NestedKey) -> Tensor | None:
        """Return the entry of each row's first step [B, ..], or None if it is missing."""
        entry = self.optional(key)
        return None if entry is None else keep_where(self.mask[:, 0], entry[:, 0])

    def of_agents(self, key: NestedKey) -> Tensor:
        """Return an entry [B, T, N, ..] as it is.

        Raises:
            ValueError: if it has other agents or steps than the actions.
        """
        entry = required(self.batch, key)
        if entry.shape[:3] != self.action.shape:
            raise ValueError(
                f"expected {key!r} of shape {[*self.action.shape, 'O']}, as the actions have, got "
                f"{list(entry.shape)}"
            )
        return entry

    def action_mask(self, key: NestedKey) -> Tensor | None:
        """Return an action mask bool [B, T, N, A], or None if it is missing.

        Raises:
            ValueError: if it has another shape.
        """
        mask = self.optional(key)
        if mask is None:
            return None
        if mask.dim() != 4 or mask.shape[:3] != self.action.shape:
            raise ValueError(
                f"expected {key!r} of shape {[*self.action.shape, 'A']}, got {list(mask.shape)}"
            )
        return mask.bool()

    def next_action_mask(self, key: NestedKey) -> Tensor | None:
        """Return the next step's action mask, or None if the batch has no action mask.

        Raises:
            KeyError: if the batch has a mask of this step alone.
            ValueError: if it has another shape.
        """
        if self.optional(key) is not None:
            required(self.batch, next_key(key))
        return self.action_mask(next_key(key))


SET_KEYS = "name yours by set_keys of the loss"


def required(batch: TensorDictBase, key: NestedKey, remedy: str = SET_KEYS) -> Tensor:
    """Return an entry of a batch.

    Raises:
        KeyError: if it is missing.
    """
    entry = batch.get(key, None)
    if entry is None:
        present = ", ".join(map(repr, sorted(batch.keys(True, True), key=str)))
        raise KeyError(f"expected {key!r} in the batch, got {present}; {remedy}")
    return entry


def as_flags(entry: Tensor, key: NestedKey, shape: torch.Size) -> Tensor:
    """Return flags of steps as bool [B, T, 1].

    Args:
        entry: [B, T, 1] or [B, T], any dtype.
        key: of the entry, for errors.
        shape: B and T.

    Raises:
        ValueError: if the entry has another shape.
    """
    if entry.shape[:2] != shape or entry.numel() != shape.numel():
        raise ValueError(
            f"expected {key!r} of shape {[*shape, 1]}, one flag for each step of the team, got "
            f"{list(entry.shape)}"
        )
    return entry.reshape(*shape, 1).bool()


def read_rows(
    batch: TensorDictBase,
    keys: RowKeys,
    *,
    masks: Sequence[NestedKey],
    n_actions: int | None,
    reward: NestedKey,
    needs_state: bool,
    others: Iterable[NestedKey] = (),
) -> Rows:
    """Return the rows of a batch, with zeros in place of all that follows a termination.

    A row starts from the memory that is stored for its first step, zeros if none is, also where
    ``is_init`` marks that step: samplers of slices mark it so, and environments store zeros at
    resets.

    Args:
        batch: [B, T]; ``QMixLoss`` lists the entries, and the optional ones among them.
        keys: the keys of the entries.
        masks: the keys of flags of valid steps; a step is padding where one of them is False.
        n_actions: A, to read last actions; None to leave them out.
        reward: the reward's key: the team's [B, T, 1], or the agents' [B, T, N, 1].
        needs_state: whether to read the state.
        others: more keys to read, of this step and of the next.

    Raises:
        KeyError: if an entry is missing.
        ValueError: if the batch is not two-dimensional, actions are no integers, or an entry has
            another shape.
    """
    read = _Reader(batch, keys.action, masks)
    mask, action = read.mask, read.valid(read.action).long()
    terminated = done = read.flags(next_key(keys.terminated))  # [B, T, 1]
    ended = read.optional_flags(next_key(keys.done))
    if ended is not None:
        done = ended | terminated
    begins = read.optional_flags(keys.is_init)  # [B, T, 1]
    if begins is None:
        begins = first_steps(done) & mask.unsqueeze(-1)  # padding may follow an end
    no = torch.zeros_like(begins[:, :1])
    is_init = torch.cat([no, begins[:, 1:], no], 1)
    goes_on = mask & ~terminated[..., 0]  # [B, T]
    ends = may_be_padded(goes_on)

    def continued(key: NestedKey) -> Tensor:
        # No value behind a termination counts, but NaN there would spoil others: 0 times NaN.
        entry = required(batch, next_key(key))
        return keep_where(goes_on, entry) if ends else entry

    observation, next_observation = read.of_agents(keys.observation), continued(keys.observation)
    last_action = None
    if n_actions is not None:
        first_action = read.first(keys.last_action)  # [B, N, A]
        if first_action is None:
            first_action = next_observation.new_zeros(*action[:, 0].shape, n_actions)
        last_action = last_actions(action, first_action, is_init)
    return Rows(
        observation=joined_observations(
            observation, next_observation, mask if read.padded else None
        ),
        next_observation=next_observation,
        last_action=last_action,
        hidden=read.first(keys.hidden),
        is_init=is_init,
        action=action,
        action_mask=read.action_mask(keys.action_mask),
        next_action_mask=read.next_action_mask(keys.action_mask),
        state=read.now(keys.state) if needs_state else None,
        next_state=continued(keys.state) if needs_state else None,
        others={key: read.now(key) for key in others},
        next_others={key: continued(key) for key in others},
        reward=read.after(reward).reshape(*read.shape, -1),
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
