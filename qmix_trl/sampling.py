"""Samples of a replay buffer: several at once, and inside a CUDA graph."""

from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer

from qmix_trl.errors import Refused
from qmix_trl.replay import SequenceReplay, SequenceRows

MOST_BYTES = 2**23  # of samples that are read at once: more would not stay in the cache


def samples(replay: TensorDictReplayBuffer, n: int) -> Iterator[TensorDictBase]:
    """Yield n samples [B, T], the same as by n calls of the buffer's ``sample``.

    Of a buffer as ``make_replay`` returns it several are read at once, as a call takes as long for
    a few rows as for hundreds; they lack ``index``. Nothing is written to the buffer meanwhile.
    """
    is_plain = type(replay) is SequenceReplay and _why_not_plain(replay) is None
    if not is_plain or len(replay) == 0:
        yield from (replay.sample() for _ in range(n))
        return
    n_rows, storage = replay.batch_size, replay.storage
    assert n_rows is not None  # ``make_replay`` has set it
    n_bytes = n_rows * sum(x.nbytes for x in storage.get(0).values(True, True))
    together = max(1, MOST_BYTES // n_bytes)
    for i in range(0, n, together):
        index, _ = replay.sampler.sample(storage, min(together, n - i) * n_rows)
        yield from replay.transform(storage.get(index)).split(n_rows)


def _why_not_plain(replay: TensorDictReplayBuffer) -> str | None:
    """Return how a buffer differs from one of ``make_replay`` with rows in memory; None if not."""
    if type(replay.sampler) is not RandomSampler:
        name = type(replay.sampler).__name__
        return f"the replay buffer samples by {name}, not by RandomSampler"
    if type(replay.storage) is not LazyTensorStorage:
        name = type(replay.storage).__name__
        return f"the replay buffer holds a {name}, not a LazyTensorStorage"
    if [type(transform) for transform in replay.transform] != [SequenceRows]:
        return "the replay buffer has another transform than one SequenceRows"
    return None


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
        if (reason := _why_not_plain(replay)) is not None:
            raise Refused(reason)
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
