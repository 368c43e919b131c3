"""Rows of replay: packing, cuts, burn-in, and the buffer."""

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
    packed_and_back,
    slices,
    unrolled,
)
from tensordict import TensorDict

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
from qmix_trl.replay import GraphSampler, SequenceRows, make_replay

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
    with pytest.raises(ValueError, match="max_steps of at least 1, or None, and burn_in of"):
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
    batch.set(next_key(STATE), number)
    return batch.set(next_key(DONE), flag).set(next_key(TERMINATED), flag.clone())


def drawn(replay):
    """Return the numbers of the rows of one sample."""
    return replay.sample()[STATE][:, 0, 0].int().tolist()


def numbered_replay(*, seed=0, capacity_rows=4, batch_rows=4):
    """Return an empty buffer for numbered rows."""
    rows = SequenceRows()
    return make_replay(rows, capacity_rows=capacity_rows, batch_rows=batch_rows, seed=seed)


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


def test_burn_in_wants_a_first_batch_that_begins_with_resets():
    _, later = slices(7, 2)
    with pytest.raises(ValueError, match="first batch to begin with resets"):
        SequenceRows(max_steps=LIMIT, burn_in=3).inv(later)
