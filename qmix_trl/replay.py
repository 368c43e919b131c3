"""Replay of sequences: rows of T + 1 observations in TorchRL's replay buffer."""

import math

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer
from torchrl.envs.transforms import Transform

from qmix_trl.errors import Refused
from qmix_trl.functional import batch_index, cut_mask
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    CUT_STEPS,
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

OBSERVED = (OBSERVATION, STATE, ACTION_MASK)  # stored for T + 1 steps
TAKEN = (  # stored for T steps
    ACTION,
    IS_INIT,
    MASK,
    *map(next_key, (REWARD, AGENT_REWARD, TERMINATED, DONE)),
)
CARRIED = (HIDDEN, LAST_ACTION)  # stored for the first step


class SequenceRows(Transform):
    """Turns batches [E, T] into rows [E] on their way into a buffer, and rows [B] into [B, T].

    Observations, states and action masks are stored once for T + 1 steps instead of twice for T.
    At a cut, where an episode is truncated and the next one follows inside the row, the true last
    entries are stored as well, and sampled batches carry the steps of all cuts as ``cut_steps``
    for ``QMixLoss``. Of the agent's memory, the value at the row's first step is stored (R2D2,
    section 3: stored state); sampled rows show it at every step.

    Args:
        max_steps: the time limit of episodes in steps, for rows that hold parts of several
            episodes: a row of T steps then has at most ceil((T - 1) / max_steps) cuts. None for
            rows that hold one episode each.
        burn_in: the number of steps of the previous batch that precede each row; ``QMixLoss``
            leaves them out, so that no frame is lost. A sampled row has burn_in + T steps. The
            first batch gets padding, and must begin with resets.

    Raises:
        ValueError: if ``max_steps`` is below 1 or ``burn_in`` below 0.
    """

    def __init__(self, *, max_steps: int | None = None, burn_in: int = 0) -> None:
        super().__init__()
        if (max_steps is not None and max_steps < 1) or burn_in < 0:
            raise ValueError(
                "SequenceRows: expected max_steps of at least 1, or None, and burn_in of at least "
                f"0, got {max_steps} and {burn_in}"
            )
        self.max_steps = max_steps
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
            check_memory_of_every_step(tensordict)
            batch = self._with_tail(batch)
        rows = TensorDict({}, batch.shape[:1], device=batch.device)
        steps = self._cut_steps(batch)  # [E, K]
        rows.set(CUT_STEPS, steps)
        for key in [key for key in OBSERVED if key in present]:
            now, after = batch.get(key), batch.get(next_key(key))
            rows.set(key, torch.cat([now, after[:, -1:]], 1))
            rows.set(("cut", key), after[batch_index(steps), steps])
        for key in [key for key in TAKEN if key in batch.keys(True, True)]:
            rows.set(key, batch.get(key))
        for key in [key for key in CARRIED if key in present]:
            rows.set(key, batch.get(key)[:, 0])
        return rows

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return sampled rows [B] as a batch [B, T] in TorchRL's layout, with ``cut_steps``."""
        n_rows, n_steps = tensordict.get(MASK).shape
        batch = TensorDict({}, (n_rows, n_steps), device=tensordict.device)
        present = tensordict.keys(True, True)

        def at_every_step(first: Tensor) -> Tensor:
            return first.unsqueeze(1).expand(n_rows, n_steps, *first.shape[1:])

        steps = tensordict.get(CUT_STEPS)  # [B, K]
        # Relative to t, so that a range of a batch's steps can be taken.
        t = torch.arange(n_steps, device=steps.device)[:, None]
        batch.set(CUT_STEPS, steps.unsqueeze(1) - t)  # [B, T, K]
        for key in [key for key in OBSERVED if key in present]:
            sequence = tensordict.get(key)  # [B, T+1, ..]
            after = sequence[:, 1:]
            if steps.shape[1]:
                after = after.index_put((batch_index(steps), steps), tensordict.get(("cut", key)))
            batch.set(key, sequence[:, :-1])
            batch.set(next_key(key), after)
        for key in [key for key in TAKEN if key in present]:
            batch.set(key, tensordict.get(key))
        for key in [key for key in CARRIED if key in present]:
            batch.set(key, at_every_step(tensordict.get(key)))
        return batch

    def _cut_steps(self, batch: TensorDictBase) -> Tensor:
        """Return K steps of each row [E, K], all its cuts among them.

        Raises:
            ValueError: if a row has more than K cuts.
        """
        mask, n_steps = batch.get(MASK), batch.shape[1]
        is_init = batch[IS_INIT] & mask.unsqueeze(-1)  # [E, T, 1]
        is_cut = cut_mask(is_init, batch.get(next_key(TERMINATED)), mask)  # [E, T]
        most = 0 if self.max_steps is None else math.ceil((n_steps - 1) / self.max_steps)
        got = int(is_cut.sum(1).max())
        if got > most:
            raise ValueError(
                f"SequenceRows: expected at most {most} truncations followed by a reset in a row "
                f"of {n_steps} steps with max_steps={self.max_steps}, got {got}; set max_steps to "
                "the shortest time limit of the environment"
            )
        return is_cut.int().topk(most, 1).indices

    def _with_tail(self, batch: TensorDictBase) -> TensorDictBase:
        """Return the batch with the last steps of the batch before it in front.

        Raises:
            ValueError: if there is no batch before it and it does not begin with resets.
        """
        tail = self._tail
        if tail is None:
            if not batch.get(IS_INIT)[:, 0].all():
                raise ValueError("SequenceRows: expected the first batch to begin with resets")
            tail = batch[:, :1].expand(len(batch), self.burn_in).clone()
            tail.set(MASK, torch.zeros_like(tail.get(MASK)))
        whole = torch.cat([tail, batch], 1)
        self._tail = whole[:, -self.burn_in :].clone()
        return whole


def check_memory_of_every_step(batch: TensorDictBase) -> None:
    """Refuse a batch that shows its first memory at every step.

    Raises:
        ValueError: if a memory has no entry after each step.
    """
    present = batch.keys(True, True)
    for key in CARRIED:
        if key in present and next_key(key) not in present:
            raise ValueError(
                f"SequenceRows: expected {next_key(key)!r} for burn-in, as rows begin inside a "
                f"batch, got {key!r} of the first step alone; make the collector with "
                "memory='every_step'"
            )


def make_replay(
    rows: SequenceRows,
    *,
    capacity_rows: int,
    batch_rows: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> TensorDictReplayBuffer:
    """Return a buffer that takes batches [E, T] and samples batches [B, T] of rows uniformly.

    Args:
        rows: the transform between batches and rows.
        capacity_rows: the number of rows that the buffer holds; new rows replace the oldest.
        batch_rows: B.
        seed: of the buffer's own random stream, for sampling.
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


class GraphSampler:
    """Draws samples of a buffer inside a CUDA graph, also while the buffer fills.

    The buffer's own ``sample`` draws below the number of rows at the capture. Here this number is
    a tensor, which ``count_rows`` fills before each replay. Samples lack ``index``.

    Args:
        replay: of ``make_replay``.

    Raises:
        Refused: if the buffer samples in another way than that of ``make_replay``.
    """

    def __init__(self, replay: TensorDictReplayBuffer) -> None:
        if type(replay.sampler) is not RandomSampler:
            name = type(replay.sampler).__name__
            raise Refused(f"the replay buffer samples by {name}, not by RandomSampler")
        if type(replay.storage) is not LazyTensorStorage:
            name = type(replay.storage).__name__
            raise Refused(f"the replay buffer holds a {name}, not a LazyTensorStorage")
        if [type(transform) for transform in replay.transform] != [SequenceRows]:
            raise Refused("the replay buffer has another transform than one SequenceRows")
        self.replay = replay
        self.device = torch.device(replay.storage.device)
        self._n_rows = torch.zeros((), dtype=torch.int64, device=self.device)

    def count_rows(self) -> None:
        """Write the number of stored rows, for the samples that follow.

        Raises:
            RuntimeError: if there is none.
        """
        if len(self.replay) == 0:
            raise RuntimeError("expected rows in the replay buffer, got none; extend it first")
        self._n_rows.fill_(len(self.replay))

    @property
    def generator(self) -> torch.Generator | None:
        """The generator of the draws; None for torch's default one."""
        return self.replay._rng

    @property
    def rows(self) -> TensorDictBase:
        """The storage's tensors [capacity, ..]; a graph reads them at their places."""
        return self.replay.storage._storage  # get() ends at the number of rows at the capture

    def sample(self) -> TensorDictBase:
        """Return a batch [B, T] of rows, drawn uniformly and with replacement."""
        shape = (self.replay.batch_size,)
        number = torch.randint(2**62, shape, generator=self.generator, device=self.device)
        # 2**62 is so large that no row is favoured by more than 1e-9 of its probability.
        return self.replay.transform(self.rows[number % self._n_rows])
