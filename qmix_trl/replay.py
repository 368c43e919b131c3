"""Replay of sequences: rows of T + 1 observations in TorchRL's replay buffer."""

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer
from torchrl.envs.transforms import Transform

from qmix_trl.functional import following, row_numbers
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    next_key,
)

OBSERVED = (OBSERVATION, STATE, ACTION_MASK)  # of T + 1 steps
TAKEN = (ACTION, IS_INIT, MASK, *map(next_key, (REWARD, AGENT_REWARD, TERMINATED, DONE)))  # of T
CARRIED = (HIDDEN, LAST_ACTION)  # of the first step
CUT_PLACE = ("cut", "place")  # [B, K] int64, steps whose next observation is kept beside


class SequenceRows(Transform):
    """Packs batches [E, T] into rows [E] on their way into a buffer, unpacks rows [B] into [B, T].

    Observations, states and action masks are kept once for T + 1 steps instead of twice for T;
    where an episode is truncated and another follows inside the row, the true last ones are kept
    beside. Of what the agent carries, the value at the row's first step is kept (R2D2, section
    3: stored state); sampled rows show it at every step.

    Args:
        interior_truncations: K, how many such places a row has; a row with more is refused.
        burn_in: so many last steps of the batch before are put in front of each row, so that
            leaving them out of the loss (``QMixLoss``) loses no frame. Before the first batch,
            which has to begin with resets, they are padding.
    """

    def __init__(self, *, interior_truncations: int, burn_in: int = 0) -> None:
        super().__init__()
        self.interior_truncations = interior_truncations
        self.burn_in = burn_in
        self._tail: TensorDictBase | None = None

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the rows [E] of a collected batch [E, T]."""
        present = tensordict.keys(True, True)
        batch = tensordict.select(
            *OBSERVED, *map(next_key, OBSERVED), *TAKEN, *CARRIED, strict=False
        )
        if MASK not in present:
            batch.set(MASK, torch.ones(batch.shape, dtype=torch.bool, device=batch.device))
        if self.burn_in:
            batch = self._with_tail(batch)
        rows = TensorDict({}, batch.shape[:1], device=batch.device)
        place = self._cuts(batch)  # [E, K]
        rows.set(CUT_PLACE, place)
        for key in [key for key in OBSERVED if key in present]:
            now, after = batch.get(key), batch.get(next_key(key))
            rows.set(key, torch.cat([now, after[:, -1:]], 1))
            rows.set(("cut", key), after[row_numbers(place), place])
        for key in [key for key in TAKEN if key in batch.keys(True, True)]:
            rows.set(key, batch.get(key))
        for key in [key for key in CARRIED if key in present]:
            rows.set(key, batch.get(key)[:, 0])
        return rows

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return sampled rows [B] as a batch [B, T] in TorchRL's layout."""
        n_rows, n_steps = tensordict.get(MASK).shape
        batch = TensorDict({}, (n_rows, n_steps), device=tensordict.device)
        present = tensordict.keys(True, True)
        place = tensordict.get(CUT_PLACE)  # [B, K]
        for key in [key for key in OBSERVED if key in present]:
            sequence = tensordict.get(key)  # [B, T+1, ..]
            after = sequence[:, 1:]
            if self.interior_truncations:
                after = after.index_put((row_numbers(place), place), tensordict.get(("cut", key)))
            batch.set(key, sequence[:, :-1])
            batch.set(next_key(key), after)
        for key in [key for key in TAKEN if key in present]:
            batch.set(key, tensordict.get(key))
        for key in [key for key in CARRIED if key in present]:
            first = tensordict.get(key).unsqueeze(1)
            batch.set(key, first.expand(n_rows, n_steps, *first.shape[2:]))
        return batch

    def _cuts(self, batch: TensorDictBase) -> Tensor:
        """Return K steps of each row [E, K], among them all that another episode cuts off."""
        mask = batch.get(MASK).unsqueeze(-1)  # [E, T, 1]
        begins_next = following(batch[IS_INIT] & mask)
        cut = (begins_next & ~batch.get(next_key(TERMINATED)) & mask)[..., 0]  # [E, T]
        most = int(cut.sum(1).max())
        if most > self.interior_truncations:
            raise ValueError(
                f"SequenceRows: expected at most {self.interior_truncations} truncations with a "
                f"reset behind them in a row, got {most}; raise interior_truncations"
            )
        return cut.int().topk(min(self.interior_truncations, cut.shape[1]), 1).indices

    def _with_tail(self, batch: TensorDictBase) -> TensorDictBase:
        tail = self._tail
        if tail is None:
            if not batch.get(IS_INIT)[:, 0].all():
                raise ValueError("SequenceRows: expected the first batch to begin with resets")
            tail = batch[:, :1].expand(len(batch), self.burn_in).clone()
            tail.set(MASK, torch.zeros_like(tail.get(MASK)))
        whole = torch.cat([tail, batch], 1)
        self._tail = whole[:, -self.burn_in :].clone()
        return whole


def make_replay(
    rows: SequenceRows,
    *,
    capacity_rows: int,
    batch_rows: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> TensorDictReplayBuffer:
    """Return a buffer to extend by batches [E, T] and to sample batches [B, T] from, uniformly.

    Args:
        rows: how batches become rows.
        capacity_rows: how many rows it holds; the oldest give way.
        batch_rows: B.
        seed: of the random stream of sampling, which is the buffer's own.
        device: of the storage and the samples.

    Raises:
        ValueError: if a size is below 1, or B is larger than the capacity.
    """
    if not 1 <= batch_rows <= capacity_rows:
        raise ValueError(
            f"make_replay: expected 1 <= batch_rows <= capacity_rows, got {batch_rows} and "
            f"{capacity_rows}"
        )
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity_rows, device=device),
        sampler=RandomSampler(),
        transform=rows,
        batch_size=batch_rows,
    )
    replay.set_rng(torch.Generator(device).manual_seed(seed))
    return replay
