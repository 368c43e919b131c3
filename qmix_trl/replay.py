"""Replay of sequences: rows of T + 1 observations in TorchRL's replay buffer."""

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    RandomSampler,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.envs.transforms import DeviceCastTransform, Transform

from qmix_trl.checkpoint.files import locked_folder, sweep
from qmix_trl.chosen import named
from qmix_trl.errors import MachineError
from qmix_trl.functional import batch_index, cut_mask, joined_observations, keep_where
from qmix_trl.keys import next_key
from qmix_trl.rows import RowKeys, as_flags, may_be_padded, required

STORAGES = ("memory", "memmap")
SAMPLERS = {"uniform": RandomSampler, "each_once": SamplerWithoutReplacement}
OWN_KEYS = "name yours: SequenceRows(keys=loss.tensor_keys)"


class SequenceRows(Transform):
    """Turns batches [E, T] into rows [E] on their way into a buffer, and rows [B] into [B, T].

    Observations, states and action masks are stored once for T + 1 steps instead of twice for T.
    At a cut, where an episode is truncated and the next one follows inside the row, the true last
    entries are stored as well, and sampled batches carry the steps of all cuts as ``cut_steps``
    for ``QMixLoss``. Of the agent's memory, the value at the row's first step is stored (R2D2,
    section 3: stored state), zeros where an episode begins; sampled rows show it at every step. So
    learn from whole rows: a range of a row's steps would start from the memory of the row's first.

    A batch may be a lazy stack, as TorchRL's collectors write with ``replay_buffer=``. It may have
    more leading dimensions, and ``add`` takes one row [T]. All batches hold the same entries;
    entries without a key here are left out.

    Args:
        max_steps: the time limit of episodes in steps, for rows that hold parts of several
            episodes: a row of T steps then has at most ceil((T - 1) / max_steps) cuts. None for
            rows that hold one episode each.
        burn_in: the number of steps of the previous batch that precede each row; ``QMixLoss``
            leaves them out, so that no frame is lost. A sampled row has burn_in + T steps. The
            first batch gets padding, and must begin with resets.
        keys: of the entries, such as ``tensor_keys`` of a loss; None takes those of ``keys.py``.
        others: the keys of more entries that a mixer reads, at each step and under "next".

    Raises:
        ValueError: if ``max_steps`` is below 1 or ``burn_in`` below 0.
    """

    def __init__(
        self,
        *,
        max_steps: int | None = None,
        burn_in: int = 0,
        keys: RowKeys | None = None,
        others: Iterable[NestedKey] = (),
    ) -> None:
        super().__init__()
        if (max_steps is not None and max_steps < 1) or burn_in < 0:
            raise ValueError(
                "SequenceRows: expected max_steps of at least 1, or None, and burn_in of at least "
                f"0, got {max_steps} and {burn_in}"
            )
        self.max_steps = max_steps
        self.burn_in = burn_in
        self.row_keys = RowKeys() if keys is None else keys
        self.others = tuple(others)
        self._tail: TensorDictBase | None = None
        self._stored: set[NestedKey] | None = None
        self._layout: dict[NestedKey, tuple[torch.Size, torch.dtype]] | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """Return, for ``state_dict``, the entries of rows, and the steps that precede the next."""
        stored = None if self._stored is None else sorted(self._stored, key=str)
        return {"stored": stored, "tail": self._tail}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue after the batches before a ``state_dict``."""
        stored, tail = state["stored"], state["tail"]
        self._stored = None if stored is None else set(stored)
        self._tail = tail

    @property
    def requires_shared_write_state(self) -> bool:
        """Whether rows depend on the batch before, so that processes cannot share the buffer."""
        return self.burn_in > 0

    @property
    def _observed(self) -> tuple[NestedKey, ...]:
        """The keys of entries that are stored for T + 1 steps."""
        k = self.row_keys
        return (k.observation, k.state, k.action_mask, *self.others)

    @property
    def _flags(self) -> tuple[NestedKey, ...]:
        """The keys of flags that are stored for T steps."""
        k = self.row_keys
        return (k.is_init, k.mask, next_key(k.terminated), next_key(k.done))

    @property
    def _taken(self) -> tuple[NestedKey, ...]:
        """The keys of other entries that are stored for T steps."""
        k = self.row_keys
        return (k.action, next_key(k.reward), next_key(k.agent_reward))

    @property
    def _carried(self) -> tuple[NestedKey, ...]:
        """The keys of entries that are stored for the first step."""
        return (self.row_keys.hidden, self.row_keys.last_action)

    @property
    def _read(self) -> tuple[NestedKey, ...]:
        """The keys of all entries that are read from a batch."""
        both = (*self._observed, *map(next_key, self._observed))
        return (*both, *self._taken, *self._flags, *self._carried)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the rows [E] of a collected batch [E, T], or one row [] of [T]."""
        batch = self._entries(tensordict)
        if self.burn_in:
            self._check_memory(tensordict)
            batch = self._with_tail(batch)
        self._check_order(batch)
        rows = TensorDict({}, batch.shape[:1], device=batch.device)
        steps = self._cut_steps(batch)  # [E, K]
        rows.set(self.row_keys.cut_steps, steps)
        present = batch.keys(True, True)
        mask = batch.get(self.row_keys.mask)
        padding = mask if may_be_padded(mask) else None
        for key in [key for key in self._observed if key in present]:
            now, after = batch.get(key), batch.get(next_key(key))
            rows.set(key, joined_observations(now, after, padding))
            rows.set(("cut", key), after[batch_index(steps), steps])
        for key in [key for key in (*self._taken, *self._flags) if key in present]:
            rows.set(key, batch.get(key))
        goes_on = ~batch.get(self.row_keys.is_init)[:, 0, 0]  # [E]
        for key in [key for key in self._carried if key in present]:
            rows.set(key, keep_where(goes_on, batch.get(key)[:, 0]))
        self._check_stored(rows)
        is_one_row = required(tensordict, self.row_keys.action).dim() == 2
        return rows[0] if is_one_row else rows

    def _entries(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the entries of a batch that rows are made of, [E, T], with a mask.

        Raises:
            KeyError: if an entry is missing that a loss needs.
            ValueError: if the batch has no steps, or a flag has another shape.
        """
        k = self.row_keys
        shape = required(tensordict, k.action, OWN_KEYS).shape[:-1]
        if not shape:
            raise ValueError("SequenceRows: expected a batch [E, T], got a single step")
        given = {
            key: entry for key in self._read if (entry := tensordict.get(key, None)) is not None
        }
        # A state or an action mask of this step alone would be lost at the next, and the reverse.
        observed = [
            key
            for key in self._observed
            if key in (k.observation, *self.others) or {key, next_key(key)} & given.keys()
        ]
        needed = [*observed, *map(next_key, observed), k.is_init, next_key(k.terminated)]
        if next_key(k.agent_reward) not in given:
            needed.append(next_key(k.reward))
        for key in needed:
            required(tensordict, key, OWN_KEYS)
        batch = TensorDict({}, (shape[:-1].numel(), shape[-1]), device=tensordict.device)
        for key, entry in given.items():
            batch.set(key, entry.reshape(*batch.shape, *entry.shape[len(shape) :]))
        for key in [key for key in self._flags if key in given]:
            batch.set(key, as_flags(batch.get(key), key, batch.shape))
        if k.mask not in given:
            batch.set(k.mask, torch.ones_like(batch.get(k.is_init)))
        return batch.set(k.mask, batch.get(k.mask)[..., 0])

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return sampled rows [B] as a batch [B, T] in TorchRL's layout, with ``cut_steps``."""
        if tensordict.dim() == 0:
            return self.forward(tensordict.unsqueeze(0))[0]
        n_rows, n_steps = tensordict.get(self.row_keys.mask).shape
        batch = TensorDict({}, (n_rows, n_steps), device=tensordict.device)

        def at_every_step(first: Tensor) -> Tensor:
            return first.unsqueeze(1).expand(n_rows, n_steps, *first.shape[1:])

        steps = tensordict.get(self.row_keys.cut_steps)  # [B, K]
        t = torch.arange(n_steps, device=steps.device)[:, None]
        batch.set(self.row_keys.cut_steps, steps.unsqueeze(1) - t)  # [B, T, K]
        for key in self._observed:
            sequence = tensordict.get(key, None)  # [B, T+1, ..]
            if sequence is None:
                continue
            after = sequence[:, 1:]
            if steps.shape[1]:
                after = after.index_put((batch_index(steps), steps), tensordict.get(("cut", key)))
            batch.set(key, sequence[:, :-1])
            batch.set(next_key(key), after)
        for key in (*self._taken, *self._flags):
            if (entry := tensordict.get(key, None)) is not None:
                batch.set(key, entry)
        for key in self._carried:
            if (first := tensordict.get(key, None)) is not None:
                batch.set(key, at_every_step(first))
        return batch

    def _cut_steps(self, batch: TensorDictBase) -> Tensor:
        """Return K steps of each row [E, K], all its cuts among them.

        Raises:
            ValueError: if a row has more than K cuts.
        """
        k, n_steps = self.row_keys, batch.shape[1]
        mask = batch.get(k.mask)
        is_init = batch.get(k.is_init) & mask.unsqueeze(-1)  # [E, T, 1]
        is_cut = cut_mask(is_init, batch.get(next_key(k.terminated)), mask)  # [E, T]
        most = 0 if self.max_steps is None else math.ceil((n_steps - 1) / self.max_steps)
        got = int(is_cut.sum(1).max())
        if got > most:
            raise ValueError(
                f"SequenceRows: expected at most {most} truncations followed by a reset in a row "
                f"of {n_steps} steps with max_steps={self.max_steps}, got {got}; set max_steps "
                "(env.max_steps of a configuration) to the shortest time limit of the environment"
            )
        return is_cut.int().topk(most, 1).indices

    def _check_order(self, batch: TensorDictBase) -> None:
        """Refuse rows whose steps do not follow one another: their next entries would be lost.

        Raises:
            ValueError: if a step's next observation is not the row's next one, without a reset.
        """
        k, mask = self.row_keys, batch.get(self.row_keys.mask)
        now, after = batch.get(k.observation)[:, 1:], batch.get(next_key(k.observation))[:, :-1]
        follows = mask[:, :-1] & mask[:, 1:] & ~batch.get(k.is_init)[:, 1:, 0]  # [E, T-1]
        differs = ((now != after) & ~now.isnan()).flatten(2).any(-1)
        broken = follows & differs
        if bool(broken.any()):
            row, step = broken.nonzero()[0].tolist()
            raise ValueError(
                f"SequenceRows: expected rows [E, T] of steps in order, got row {row} whose step "
                f"{step + 1} does not begin with the observation after step {step}, nor with "
                f"{k.is_init!r}; give batches of TorchRL's collectors (cat_results=0, "
                "extend_buffer=True) with an InitTracker"
            )

    def _check_stored(self, rows: TensorDictBase) -> None:
        """Refuse rows [E] unlike earlier ones: the buffer would fill in garbage.

        Raises:
            KeyError: if entries are missing or new.
            ValueError: if an entry has another shape or dtype.
        """
        layout = {key: (x.shape[1:], x.dtype) for key, x in rows.items(True, True)}
        if self._stored is None:
            self._stored = set(layout)
        if layout.keys() != self._stored:
            differing = ", ".join(map(repr, sorted(layout.keys() ^ self._stored, key=str)))
            raise KeyError(
                "SequenceRows: expected the entries of the batches before, got a batch that "
                f"differs in {differing}; give all batches the same entries"
            )
        first = self._layout = self._layout or layout
        for key, found in layout.items():
            if found != first[key]:
                expected, got = (f"{list(shape)} {dtype}" for shape, dtype in (first[key], found))
                raise ValueError(
                    f"SequenceRows: expected rows of {key!r} as in the batches before, {expected}, "
                    f"got {got}; give all batches the same number of steps"
                )

    def _check_memory(self, batch: TensorDictBase) -> None:
        """Refuse a batch that shows its first memory at every step.

        Raises:
            ValueError: if a memory has no entry after each step.
        """
        for key in self._carried:
            has_first, has_next = (batch.get(x, None) is not None for x in (key, next_key(key)))
            if has_first and not has_next:
                raise ValueError(
                    f"SequenceRows: expected {next_key(key)!r} for burn-in, as rows begin inside a "
                    f"batch, got {key!r} of the first step alone; make the collector with "
                    "memory='every_step'"
                )

    def _with_tail(self, batch: TensorDictBase) -> TensorDictBase:
        """Return the batch with the last steps of the batch before it in front.

        Raises:
            ValueError: if there is no batch before it and it does not begin with resets, or the
                batch before it has another number of environments.
        """
        k, tail = self.row_keys, self._tail
        if tail is None:
            if not batch.get(k.is_init)[:, 0].all():
                raise ValueError("SequenceRows: expected the first batch to begin with resets")
            tail = batch[:, :1].expand(len(batch), self.burn_in).clone()
            tail.set(k.mask, torch.zeros_like(tail.get(k.mask)))
        if len(tail) != len(batch):
            raise ValueError(
                f"SequenceRows: expected {len(tail)} environments as in the batch before, whose "
                f"last steps are burn-in, got {len(batch)}"
            )
        tail = tail.to(batch.get(k.mask).device)  # a loaded one is on the CPU
        whole = torch.cat([tail, batch], 1)
        self._tail = whole[:, -self.burn_in :].clone()
        return whole


class FileStorage(LazyMemmapStorage):
    """TorchRL's memory-mapped storage, in files of its own that are removed with it.

    The files get their whole size before the first row: on a disk that is full later, a write to
    mapped memory would kill the process. No file is ever read again: those of a killed process are
    removed when the next storage is made in the same folder.

    Args:
        capacity_rows: the number of rows that it holds.
        folder: in which a folder of the files is made.

    Raises:
        MachineError: if the folder cannot be made.
    """

    def __init__(self, capacity_rows: int, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            own, lock = locked_folder(folder)
        except OSError as error:
            raise MachineError(f"{folder}: no replay can be stored: {error.strerror}") from error
        weakref.finalize(self, _remove, own, lock)
        super().__init__(capacity_rows, scratch_dir=own, auto_cleanup=False)

    def _init(self, data: TensorDictBase) -> None:
        """Make the files for rows like a first one.

        Raises:
            MachineError: if the disk has no room for them.
        """
        assert self.scratch_dir is not None
        needed = self.max_size * sum(x.nbytes for x in data.values(True, True))
        free = shutil.disk_usage(self.scratch_dir).free
        try:
            if needed > free:
                raise OSError(0, "no room on the disk")
            super()._init(data)
            for entry in self._storage.values(True, True):
                if entry.nbytes:
                    with open(entry.filename, "r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, entry.nbytes)
        except OSError as error:
            raise MachineError(
                f"replay.storage: memmap needs {needed:,} bytes in {self.scratch_dir}, {free:,} "
                f"are free ({error.strerror}); lower replay.capacity_rows, or choose another disk"
            ) from error


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


class SequenceReplay(TensorDictReplayBuffer):
    """TorchRL's buffer of a ``SequenceRows``; made by ``make_replay``."""

    def __repr__(self) -> str:
        sizes = {"capacity_rows": self.storage.max_size, "batch_rows": self.batch_size}
        storage = type(self.storage).__name__
        return f"SequenceReplay({len(self)} rows, {named(sizes)}; {storage})"


def make_replay(
    rows: SequenceRows,
    *,
    capacity_rows: int,
    batch_rows: int,
    seed: int,
    device: torch.device | str = "cpu",
    storage: str = "memory",
    folder: str | Path | None = None,
    sampling: str = "uniform",
) -> SequenceReplay:
    """Return a buffer that takes batches [E, T] and samples batches [B, T] of rows.

    Args:
        rows: the transform between batches and rows.
        capacity_rows: the number of rows that the buffer holds; new rows replace the oldest.
        batch_rows: B.
        seed: of the buffer's own random stream, for sampling.
        device: of the samples; and of the storage, if it is in memory.
        storage: "memory", or "memmap": files that are mapped to the CPU's memory, for more rows
            than it has room for. They do not outlive the buffer; ``save_run`` keeps its rows.
            Samples are the same numbers; on a GPU they are moved there, one by one and not in a
            CUDA graph.
        folder: in which a folder for these files is made; None for the system's temporary one.
        sampling: "uniform": rows are drawn independently, with replacement; or "each_once": in
            epochs, each a new random order in which every row is drawn once.

    Raises:
        MachineError: if the folder cannot be made.
        ValueError: if a size is below 1, B is larger than the capacity or, with "each_once", does
            not divide it, or the storage or the sampling is unknown.
    """
    if not 1 <= batch_rows <= capacity_rows:
        raise ValueError(
            f"make_replay: expected 1 <= batch_rows <= capacity_rows, got {batch_rows} and "
            f"{capacity_rows}"
        )
    if storage not in STORAGES:
        raise ValueError(f"make_replay: expected storage of {', '.join(STORAGES)}, got {storage!r}")
    if sampling not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise ValueError(f"make_replay: expected sampling of {known}, got {sampling!r}")
    if sampling == "each_once" and capacity_rows % batch_rows:
        raise ValueError(
            "make_replay: expected batch_rows that divides capacity_rows with sampling='each_once',"
            f" got {batch_rows} and {capacity_rows}"
        )
    stored_on = torch.device(device if storage == "memory" else "cpu")
    replay = SequenceReplay(
        storage=LazyTensorStorage(capacity_rows, device=stored_on)
        if storage == "memory"
        else FileStorage(capacity_rows, Path(folder or tempfile.gettempdir())),
        sampler=SAMPLERS[sampling](),
        transform=rows,
        batch_size=batch_rows,
    )
    if torch.device(device).type != stored_on.type:
        replay.append_transform(DeviceCastTransform(device, stored_on))
    replay.set_rng(torch.Generator(stored_on).manual_seed(seed))
    return replay
