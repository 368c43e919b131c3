"""Rows of replay: packing, cuts, burn-in, and the buffer."""

import gc
import os

import graph_tools
import pytest
import torch
from collect_tools import (
    CUTS,
    LIMIT,
    STEPS,
    CounterEnv,
    collect,
    make_agent,
    make_loss,
    packed_and_back,
    slices,
    unrolled,
)
from tensordict import TensorDict, assert_close, lazy_stack
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer

from qmix_trl import MachineError, QMixLoss
from qmix_trl import sampling as sampling_module
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
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
    TRUNCATED,
    next_key,
)
from qmix_trl.policy import GreedyAction, make_policy, with_memory
from qmix_trl.replay import SequenceRows, make_replay
from qmix_trl.sampling import GraphSampler, samples

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:Nested")


# Room for ceil(15 / 5) = 3 cuts, one more than there are, and for as many as there are steps.
@pytest.mark.parametrize("max_steps", [LIMIT, 1])
def test_a_batch_comes_back_from_its_rows(max_steps):
    (batch,) = slices(STEPS, 1)
    back = packed_and_back(batch, SequenceRows(max_steps=max_steps))
    assert back.shape == (2, STEPS)
    followed = torch.cat([batch[IS_INIT][:, 1:], torch.zeros(2, 1, 1, dtype=torch.bool)], 1)
    unread = (batch[next_key(TERMINATED)] & followed)[..., 0]  # [E, T], no value beyond
    cut = (batch[next_key(TRUNCATED)] & followed)[..., 0]
    assert cut.sum(1).tolist() == [2, 1]
    for key in (OBSERVATION, STATE, ACTION_MASK):
        now, after = batch[key], batch[next_key(key)]
        assert torch.equal(back[key], now)
        assert torch.equal(back[next_key(key)][~unread], after[~unread])
        assert not torch.equal(after[:, :-1][cut[:, :-1]], now[:, 1:][cut[:, :-1]])
    for key in (ACTION, IS_INIT, MASK, *map(next_key, (REWARD, AGENT_REWARD, TERMINATED, DONE))):
        assert torch.equal(back[key], batch[key])


def test_sampled_rows_carry_the_steps_of_their_cuts():
    (batch,) = slices(STEPS, 1)
    back = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    assert back[CUT_STEPS].shape == (2, STEPS, 3)  # ceil(15 / 5)
    assert torch.equal(back[CUT_STEPS][:, 1:], back[CUT_STEPS][:, :-1] - 1)
    first, second = (set(steps.tolist()) for steps in back[CUT_STEPS][:, 0])
    # Counted from 0: environment 0 is truncated at the 5th and the 13th step, environment 1 at the
    # 8th; at the 16th step no other episode follows in the row.
    assert first >= {4, 12}
    assert second >= {7}


def test_sampled_rows_show_the_memory_of_their_first_step():
    second = slices(7, 2)[1]
    back = packed_and_back(second, SequenceRows(max_steps=LIMIT))
    for key in (HIDDEN, LAST_ACTION):
        first = second[key][:, :1]
        assert (first != 0).any()
        assert torch.equal(back[key], first.expand(2, 7, *first.shape[2:]))


def test_rows_hold_no_other_entries():
    (batch,) = slices(7, 1)
    back = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    kept = (OBSERVATION, STATE, ACTION_MASK)
    taken = (REWARD, AGENT_REWARD, TERMINATED, DONE)
    expected = {*kept, ACTION, IS_INIT, MASK, HIDDEN, LAST_ACTION, CUT_STEPS}
    expected |= {next_key(key) for key in (*kept, *taken)}
    assert set(back.keys(True, True)) == expected


def test_packing_leaves_the_collected_batch_unchanged():
    (batch,) = slices(STEPS, 1)
    before = batch.clone()
    packed_and_back(batch, SequenceRows(max_steps=LIMIT, burn_in=2))
    assert set(before.keys(True, True)) == set(batch.keys(True, True))
    assert (before == batch).all()


@pytest.mark.parametrize(("max_steps", "most"), [(None, 0), (STEPS - 1, 1)])
def test_more_cuts_than_the_time_limit_allows_are_refused(max_steps, most):
    (batch,) = slices(STEPS, 1)
    message = f"at most {most} truncations .* max_steps={max_steps}, got {CUTS}; set max_steps"
    with pytest.raises(ValueError, match=message):
        packed_and_back(batch, SequenceRows(max_steps=max_steps))


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"burn_in": -1}])
def test_sizes_of_rows_out_of_range_are_refused(arguments):
    got = f"got {arguments.get('max_steps')} and {arguments.get('burn_in', 0)}$"
    with pytest.raises(
        ValueError, match=f"max_steps of at least 1, or None, and burn_in of .* 0, {got}"
    ):
        SequenceRows(**arguments)


def test_the_end_of_a_row_and_terminations_are_no_cuts():
    # Environment 0 is truncated at the last of 5 steps, environment 1 terminated at the third.
    (batch,) = slices(LIMIT, 1)
    assert batch[next_key(TRUNCATED)][..., 0].nonzero().tolist() == [[0, 4]]
    assert batch[next_key(TERMINATED)][..., 0].nonzero().tolist() == [[1, 2]]
    back = packed_and_back(batch, SequenceRows())
    unread = batch[next_key(TERMINATED)][..., 0]
    for key in map(next_key, (OBSERVATION, STATE, ACTION_MASK)):
        assert torch.equal(back[key][~unread], batch[key][~unread])


def test_truncations_before_padding_are_no_cuts():
    env = CounterEnv()
    (batch,) = collect(env, make_agent(env), rows="episodes", steps=STEPS, n_batches=1)
    # Only environment 0's first episode of 5 is truncated, and padding follows.
    packed_and_back(batch, SequenceRows())


# ---------------------------------------------------------------------- burn-in


def test_burn_in_puts_the_tail_of_the_batch_before_in_front():
    # T = 5: environment 0 is truncated at the seam, environment 1 is inside an episode.
    batches = slices(LIMIT, 3)
    rows, burn_in = SequenceRows(max_steps=LIMIT, burn_in=3), 3
    first, second, third = (packed_and_back(batch, rows) for batch in batches)
    assert torch.equal(first[MASK], (torch.arange(8) >= burn_in).expand(2, 8))
    for key in (OBSERVATION, STATE, ACTION, next_key(REWARD)):
        assert torch.equal(first[key][:, burn_in:], batches[0][key])
    assert batches[0][next_key(TRUNCATED)][:, -1, 0].tolist() == [True, False]
    for back, before, batch in ((second, *batches[:2]), (third, *batches[1:])):
        whole = torch.cat([before[:, -burn_in:], batch], 1)  # [E, 8]
        assert back[MASK].all()
        for key in (OBSERVATION, STATE, ACTION, IS_INIT, next_key(REWARD), next_key(DONE)):
            assert torch.equal(back[key], whole[key])
        for key in (HIDDEN, LAST_ACTION):
            assert torch.equal(back[key][:, 0], whole[key][:, 0])
        unread = whole[next_key(TERMINATED)][..., 0]
        for key in map(next_key, (OBSERVATION, STATE, ACTION_MASK)):
            assert torch.equal(back[key][~unread], whole[key][~unread])


def test_burn_in_longer_than_the_batches_reaches_back_over_several():
    batches = slices(2, 4)
    rows = SequenceRows(max_steps=LIMIT, burn_in=5)
    backs = [packed_and_back(batch, rows) for batch in batches]
    assert [int(back[MASK].sum(1)[0]) for back in backs] == [2, 4, 6, 7]
    whole = torch.cat(batches, 1)  # [E, 8]
    assert torch.equal(backs[-1][OBSERVATION], whole[OBSERVATION][:, 1:])
    assert torch.equal(backs[-1][HIDDEN][:, 0], whole[HIDDEN][:, 1])


def test_burn_in_refuses_batches_with_the_first_memory_alone():
    (batch,) = slices(STEPS, 1)
    first = batch.exclude(next_key(HIDDEN))
    SequenceRows(max_steps=LIMIT).inv(first)
    message = (
        r"expected \('next', 'agents', 'hidden'\) for burn-in, .* make the collector with memory="
    )
    with pytest.raises(ValueError, match=message):
        SequenceRows(max_steps=LIMIT, burn_in=2).inv(first)


def test_rows_with_burn_in_unroll_to_the_values_of_acting():
    env = CounterEnv()
    agent = make_agent(env)
    rows = SequenceRows(max_steps=LIMIT, burn_in=3)
    batches = collect(env, agent, rows="slices", steps=7, n_batches=3)
    values = torch.cat([batch[ACTION_VALUE] for batch in batches], 1)  # [E, 21, N, A]
    for i, batch in enumerate(batches):
        again = unrolled(packed_and_back(batch, rows), agent)
        start = 3 if i == 0 else 0
        expected = values[:, 7 * i - 3 + start : 7 * i + 7]
        torch.testing.assert_close(again[:, start:], expected)


# ---------------------------------------------------------------------- the buffer


def numbered(first, n_rows, steps=2):
    """Return a batch [E, T] of whole rows whose states are their numbers."""
    number = torch.arange(first, first + n_rows).float().reshape(-1, 1, 1).expand(-1, steps, 1)
    flag = torch.zeros(n_rows, steps, 1, dtype=torch.bool)
    batch = TensorDict({STATE: number, IS_INIT: flag, MASK: ~flag[..., 0]}, [n_rows, steps])
    for key in (STATE, REWARD):
        batch.set(next_key(key), number)
    for key in (OBSERVATION, next_key(OBSERVATION)):
        batch.set(key, number.unsqueeze(2))
    batch.set(ACTION, torch.zeros(n_rows, steps, 1, dtype=torch.int64))
    return batch.set(next_key(DONE), flag).set(next_key(TERMINATED), flag.clone())


def drawn(replay):
    """Return the numbers of the rows of one sample."""
    return replay.sample()[STATE][:, 0, 0].int().tolist()


def numbered_replay(*, seed=0, capacity_rows=4, batch_rows=4, **storage):
    """Return an empty buffer for numbered rows."""
    rows = SequenceRows()
    return make_replay(
        rows, capacity_rows=capacity_rows, batch_rows=batch_rows, seed=seed, **storage
    )


def test_new_rows_replace_the_oldest():
    replay = numbered_replay(capacity_rows=5)
    for first in (0, 2, 4):
        replay.extend(numbered(first, 2))
    assert len(replay) == 5
    assert sorted(replay[:][STATE][:, 0, 0].int().tolist()) == [1, 2, 3, 4, 5]


def test_rows_are_sampled_uniformly():
    replay = numbered_replay(batch_rows=4)
    replay.extend(numbered(0, 4))
    counts = torch.bincount(torch.tensor([drawn(replay) for _ in range(500)]).flatten())
    # 500 of each with a standard deviation of sqrt(2000 * 1/4 * 3/4) = 19.4; four of them.
    assert len(counts) == 4
    assert (counts - 500).abs().max() < 78


def test_sampling_has_its_own_random_stream():
    def samples(seed):
        replay = numbered_replay(seed=seed)
        replay.extend(numbered(0, 4))
        return [drawn(replay) for _ in range(10)]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = samples(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert samples(3) == first
    assert samples(4) != first
    assert first[0] != first[1]


def test_rows_in_files_are_sampled_like_rows_in_memory(tmp_path):
    in_memory = numbered_replay(capacity_rows=5, seed=3)
    in_files = numbered_replay(capacity_rows=5, seed=3, storage="memmap", folder=tmp_path)
    for number in (0, 3, 6):
        for replay in (in_memory, in_files):
            replay.extend(numbered(number, 3))
        one, other = in_memory.sample(), in_files.sample()
        assert_close(one, other, rtol=0, atol=0)
        assert {type(x) for x in other.values(True, True)} == {torch.Tensor}


def test_files_of_rows_are_whole_at_once_and_removed_with_the_buffer(tmp_path):
    replay = numbered_replay(capacity_rows=2000, storage="memmap", folder=tmp_path)
    replay.extend(numbered(0, 4))
    stored = sum(x.nbytes for x in replay.storage._storage.values(True, True))
    files = list(tmp_path.rglob("*.memmap"))
    # Blocks of 512 bytes that the disk has given: a sparse file would have almost none.
    assert sum(path.stat().st_blocks * 512 for path in files) >= stored > 100_000
    del replay
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_two_buffers_have_files_of_their_own(tmp_path):
    one, other = (numbered_replay(storage="memmap", folder=tmp_path) for _ in range(2))
    one.extend(numbered(0, 4))
    before = one.storage.get(slice(0, 4)).clone()
    other.extend(numbered(10, 4))
    assert_close(one.storage.get(slice(0, 4)), before, rtol=0, atol=0)


def test_a_disk_without_room_for_all_rows_is_refused_at_the_first_batch(tmp_path):
    replay = numbered_replay(capacity_rows=10**15, storage="memmap", folder=tmp_path)
    with pytest.raises(MachineError, match=r"replay\.storage: memmap needs .* bytes in .* free"):
        replay.extend(numbered(0, 4))
    assert list(tmp_path.rglob("*.memmap")) == []


def test_a_failing_disk_is_told(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    replay = numbered_replay(storage="memmap", folder=tmp_path)
    with pytest.raises(MachineError, match="No space left on device"):
        replay.extend(numbered(0, 4))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="no replay can be stored"):
        numbered_replay(storage="memmap", folder=tmp_path / "file")


def test_an_unknown_storage_is_refused():
    with pytest.raises(ValueError, match="storage of memory, memmap, got 'disk'"):
        numbered_replay(storage="disk")


def test_a_sample_has_the_shape_of_a_batch():
    replay = numbered_replay(batch_rows=3)
    replay.extend(numbered(0, 4, steps=6))
    assert replay.sample().shape == (3, 6)


def test_a_graph_samples_uniformly_over_the_rows_stored_at_its_replay():
    replay = numbered_replay(capacity_rows=8, batch_rows=4)
    replay.extend(numbered(0, 2))
    sampler = GraphSampler(replay)
    sampler.count_rows()
    batch, draw = graph_tools.captured(sampler.sample, [sampler.generator])
    for n_rows in (2, 5, 8):
        if len(replay) < n_rows:
            replay.extend(numbered(len(replay), n_rows - len(replay)))
        sampler.count_rows()
        counts = torch.zeros(8)
        for _ in range(500):
            draw()
            counts += torch.bincount(batch[STATE][:, 0, 0].long(), minlength=8)
        # 2000 draws of n rows: a standard deviation of sqrt(2000 (n - 1)) / n; four of them.
        deviation = (2000 * (n_rows - 1)) ** 0.5 / n_rows
        assert (counts[:n_rows] - 2000 / n_rows).abs().max() < 4 * deviation
        assert (counts[n_rows:] == 0).all()


def test_a_graph_samples_batches_of_the_buffers_form():
    replay = numbered_replay(batch_rows=3)
    replay.extend(numbered(0, 4, steps=6))
    sampler = GraphSampler(replay)
    sampler.count_rows()
    batch, expected = sampler.sample(), replay.sample().exclude("index")
    assert batch.shape == (3, 6)
    assert set(batch.keys(True, True)) == set(expected.keys(True, True))


@pytest.mark.parametrize("most_samples", [1, 3, 100])
@pytest.mark.parametrize("sampling", ["uniform", "each_once"])
def test_samples_read_together_equal_those_read_one_by_one(sampling, most_samples, monkeypatch):
    replays = [numbered_replay(capacity_rows=8, batch_rows=4, sampling=sampling) for _ in range(2)]
    for replay in replays:
        replay.extend(numbered(0, 8))
    n_bytes = 4 * sum(x.nbytes for x in replays[0].storage.get(0).values(True, True))
    monkeypatch.setattr(sampling_module, "MOST_BYTES", most_samples * n_bytes)
    together = list(samples(replays[0], 7))
    assert len(together) == 7
    for batch in together:
        expected = replays[1].sample()
        assert batch.shape == expected.shape
        assert (batch == expected.select(*batch.keys(True, True))).all()
    assert (replays[0].sample() == replays[1].sample()).all()  # as many numbers are drawn


def test_samples_of_an_empty_buffer_are_refused():
    with pytest.raises(RuntimeError, match="empty"):
        next(samples(numbered_replay(), 1))


def test_a_graph_samples_no_empty_buffer():
    replay = numbered_replay()
    with pytest.raises(RuntimeError, match="expected rows in the replay buffer, got none"):
        GraphSampler(replay).count_rows()
    replay.extend(numbered(0, 2))
    replay.empty()
    with pytest.raises(RuntimeError, match="expected rows in the replay buffer, got none"):
        GraphSampler(replay).count_rows()


@pytest.mark.parametrize(("batch_rows", "capacity_rows"), [(0, 4), (5, 4), (0, 0), (-1, 4)])
def test_sizes_that_do_not_fit_are_refused(batch_rows, capacity_rows):
    with pytest.raises(ValueError, match=f"got {batch_rows} and {capacity_rows}"):
        numbered_replay(batch_rows=batch_rows, capacity_rows=capacity_rows)


def test_a_batch_without_a_mask_is_all_valid_and_one_without_is_init_is_refused():
    batch = slices(LIMIT, 1)[0]
    bare = packed_and_back(batch.exclude(MASK), SequenceRows(max_steps=LIMIT))
    assert bare[MASK].all()
    with pytest.raises(KeyError, match="is_init"):
        packed_and_back(batch.exclude(IS_INIT), SequenceRows(max_steps=LIMIT))


@pytest.mark.parametrize("storage", ["memory", "memmap"])
def test_a_batch_of_another_number_of_steps_or_dtype_is_refused_and_not_stored(storage, tmp_path):
    folder = tmp_path if storage == "memmap" else None
    rows = SequenceRows(max_steps=LIMIT)
    replay = make_replay(
        rows, capacity_rows=9, batch_rows=2, seed=0, storage=storage, folder=folder
    )
    batch = slices(LIMIT, 1)[0]
    replay.extend(batch)
    n_rows = len(replay)
    message = r"rows of .* as in the batches before, \[.*\] torch\..*, got \[.*\] torch\..*; give"
    for other in (batch[:, :-1], batch.clone().apply_(lambda x: x)):
        if other.shape == batch.shape:
            other[OBSERVATION] = other[OBSERVATION].double()
            other[next_key(OBSERVATION)] = other[next_key(OBSERVATION)].double()
        with pytest.raises(ValueError, match=message):
            replay.extend(other)
        assert len(replay) == n_rows
    replay.extend(batch)
    assert len(replay) == 2 * n_rows


# ---------------------------------------------------------------------- the entries of a batch


NEEDED = (OBSERVATION, next_key(OBSERVATION), next_key(STATE), next_key(ACTION_MASK), ACTION)
REWARDS = (next_key(REWARD), next_key(AGENT_REWARD))


@pytest.mark.parametrize("missing", [*NEEDED, IS_INIT, next_key(TERMINATED), REWARDS], ids=str)
def test_a_batch_that_lacks_an_entry_is_refused(missing):
    (batch,) = slices(LIMIT, 1)
    missing = missing if missing is REWARDS else (missing,)
    with pytest.raises(KeyError) as error:
        SequenceRows(max_steps=LIMIT).inv(batch.exclude(*missing))
    message = str(error.value.args[0])
    assert message.startswith(f"expected {missing[0]!r} in the batch, got ")
    assert message.endswith("; name yours: SequenceRows(keys=loss.tensor_keys)")


@pytest.mark.parametrize("reward", REWARDS, ids=str)
def test_one_of_the_rewards_is_enough(reward):
    (batch,) = slices(LIMIT, 1)
    back = packed_and_back(batch.exclude(reward), SequenceRows(max_steps=LIMIT))
    (other,) = {*REWARDS} - {reward}
    assert torch.equal(back[other], batch[other])
    assert reward not in back.keys(True, True)


def test_entries_are_stored_under_the_keys_of_a_loss():
    (batch,) = slices(STEPS, 1)
    loss = QMixLoss(make_agent(CounterEnv()), None, gamma=0.9)
    fields = ("observation", "action", "action_mask", "state", "hidden", "last_action", "is_init")
    new = {getattr(loss.tensor_keys, field): ("adversary", field) for field in fields}
    renamed = batch.clone()
    for old, key in new.items():
        renamed.rename_key_(old, key)
        if next_key(old) in batch.keys(True, True):
            renamed.rename_key_(next_key(old), next_key(key))
    loss.set_keys(**{field: ("adversary", field) for field in fields})
    expected = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    back = packed_and_back(renamed, SequenceRows(max_steps=LIMIT, keys=loss.tensor_keys))
    for old, key in new.items():
        assert torch.equal(back[key], expected[old])
    assert torch.equal(back[next_key("adversary")]["observation"], expected[next_key(OBSERVATION)])
    assert len(back.keys(True, True)) == len(expected.keys(True, True))


def test_more_entries_of_each_step_are_stored_where_they_are_asked_for():
    (batch,) = slices(STEPS, 1)
    batch["time"] = torch.arange(STEPS).expand(2, STEPS)
    batch["next", "time"] = batch["time"] + 1
    without = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    assert "time" not in without.keys(True, True)
    back = packed_and_back(batch, SequenceRows(max_steps=LIMIT, others=["time"]))
    assert torch.equal(back["time"], batch["time"])
    assert torch.equal(back["next", "time"], batch["next", "time"])
    with pytest.raises(KeyError, match="expected \\('next', 'time'\\) in the batch"):
        SequenceRows(max_steps=LIMIT, others=["time"]).inv(batch.exclude(("next", "time")))


@pytest.mark.parametrize("key", [HIDDEN, next_key(DONE)], ids=str)
def test_batches_with_other_entries_than_before_are_refused(key):
    first, second = slices(LIMIT, 2)
    for one, other in ((first, second.exclude(key)), (first.exclude(key), second)):
        rows = SequenceRows(max_steps=LIMIT)
        rows.inv(one)
        with pytest.raises(KeyError, match=r"entries of the batches before, got .* differs in"):
            rows.inv(other)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_lazy_stack_is_stored_like_a_dense_batch(dim):
    (batch,) = slices(STEPS, 1)
    lazy = lazy_stack(list(batch.unbind(dim)), dim)
    expected = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    back = packed_and_back(lazy, SequenceRows(max_steps=LIMIT))
    assert set(back.keys(True, True)) == set(expected.keys(True, True))
    assert (back == expected).all()


def test_a_mask_of_steps_may_have_a_last_dimension():
    (batch,) = slices(STEPS, 1)
    batch[MASK] = torch.arange(STEPS).expand(2, STEPS) < 9
    expected = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    batch["collector"] = TensorDict(mask=batch[MASK].unsqueeze(-1), batch_size=batch.shape)
    assert (packed_and_back(batch, SequenceRows(max_steps=LIMIT)) == expected).all()


def test_environments_may_have_several_dimensions():
    (batch,) = slices(STEPS, 1)
    expected = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    back = packed_and_back(batch.reshape(2, 1, STEPS), SequenceRows(max_steps=LIMIT))
    assert (back == expected).all()


def test_rows_can_be_added_one_by_one():
    (batch,) = slices(STEPS, 1)
    replay = make_replay(SequenceRows(max_steps=LIMIT), capacity_rows=4, batch_rows=2, seed=0)
    for row in batch:
        replay.add(row)
    assert len(replay) == 2
    expected = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    assert (replay[:] == expected).all()
    assert (replay[1] == expected[1]).all()


def test_single_steps_and_joined_workers_are_refused():
    """As of ``extend_buffer=False``, which adds steps [E], and of ``cat_results=-1``."""
    (batch,) = slices(STEPS, 1)
    rows = SequenceRows(max_steps=LIMIT)
    message = r"steps in order, got row 0 whose step {} does not begin with .* \(cat_results=0"
    with pytest.raises(ValueError, match=message.format(1)):
        rows.inv(batch[:, 1])
    joined = torch.cat([batch[:1, :4], batch[1:, 1:3]], 1)
    with pytest.raises(ValueError, match=message.format(4)):
        rows.inv(joined)
    with pytest.raises(ValueError, match=r"expected a batch \[E, T\], got a single step"):
        rows.inv(batch[0, 0])


def test_a_seam_in_padding_is_no_fault():
    (batch,) = slices(STEPS, 1)
    joined = torch.cat([batch[:1, :4], batch[1:, 1:3]], 1)
    joined[MASK] = torch.arange(6).unsqueeze(0) < 4
    SequenceRows(max_steps=LIMIT).inv(joined)


def test_burn_in_keeps_to_the_environments_of_the_batch_before():
    first, second = slices(LIMIT, 2)
    rows = SequenceRows(max_steps=LIMIT, burn_in=2)
    rows.inv(first)
    with pytest.raises(ValueError, match=r"2 environments as in the batch before, .* got 1"):
        rows.inv(second[:1])


@pytest.mark.parametrize(("burn_in", "shares"), [(0, True), (2, False)])
def test_processes_share_a_buffer_without_burn_in_alone(burn_in, shares):
    replay = make_replay(SequenceRows(burn_in=burn_in), capacity_rows=4, batch_rows=2, seed=0)
    if shares:
        replay.share()
    else:
        with pytest.raises(RuntimeError, match="SequenceRows keeps replay-buffer write state"):
            replay.share()


# ---------------------------------------------------------------------- TorchRL's own machinery


def acting(agent, **arguments):
    """Return TorchRL's collector of 2 x 7 steps of ``CounterEnv``, 21 in all."""
    env = CounterEnv()
    return Collector(
        with_memory(env, agent),
        make_policy(agent, GreedyAction()),
        frames_per_batch=14,
        total_frames=42,
        auto_register_policy_transforms=False,
        **arguments,
    )


def test_torchrls_collector_writes_rows_into_the_buffer():
    agent = make_agent(CounterEnv())
    kept = [batch.clone() for batch in acting(agent)]
    replay = make_replay(SequenceRows(max_steps=LIMIT), capacity_rows=6, batch_rows=3, seed=0)
    yielded = list(acting(agent, replay_buffer=replay))
    assert yielded == [None] * 3
    rows = SequenceRows(max_steps=LIMIT)
    expected = torch.cat([packed_and_back(batch, rows) for batch in kept])
    assert (replay[:] == expected).all()
    loss = make_loss(CounterEnv(), agent, td_lambda=0.8)
    together = torch.cat([batch.exclude("collector") for batch in kept])
    torch.testing.assert_close(loss(replay[:]), loss(together))
    assert replay.sample().shape == (3, 7)


def test_torchrls_collector_must_extend_the_buffer():
    replay = make_replay(SequenceRows(max_steps=LIMIT), capacity_rows=6, batch_rows=3, seed=0)
    agent = make_agent(CounterEnv())
    with pytest.raises(ValueError, match="extend_buffer=True"):
        list(acting(agent, replay_buffer=replay, extend_buffer=False))


def test_slices_of_torchrls_sampler_unroll_from_their_stored_memory():
    """``SliceSampler`` marks the first step of each slice by ``is_init``."""
    agent = make_agent(CounterEnv())
    (batch,) = slices(STEPS, 1, agent=agent)
    batch["episode"] = batch[IS_INIT][..., 0].cumsum(1) + 100 * torch.arange(2)[:, None]
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(2 * STEPS),
        sampler=SliceSampler(slice_len=3, traj_key="episode"),
        batch_size=60,
    )
    replay.extend(batch.reshape(-1))
    rows = replay.sample().reshape(-1, 3)
    assert rows[IS_INIT][:, 0].all()
    starts_inside = (rows[HIDDEN][:, 0] != 0).flatten(1).any(1)
    assert starts_inside.any()
    torch.testing.assert_close(unrolled(rows, agent), rows[ACTION_VALUE])


def test_burn_in_wants_a_first_batch_that_begins_with_resets():
    _, later = slices(7, 2)
    with pytest.raises(ValueError, match="first batch to begin with resets"):
        SequenceRows(max_steps=LIMIT, burn_in=3).inv(later)
