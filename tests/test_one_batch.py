"""Updates on the batch just collected: its rows each once, targets of the networks at its start."""

import copy

import pytest
import torch
from loss_tools import random_batch
from recipe_tools import tiny
from support.components import build_target_updater
from update_tools import updates_of

from qmix_trl import SequenceRows, make_hard_updater, make_replay
from qmix_trl.checkpoint.parts import load_replay_state, replay_state
from qmix_trl.config.load import load_config

N_ROWS, N_STEPS, BATCH_ROWS = 6, 4, 2
EPOCH = N_ROWS // BATCH_ROWS
ONE_BATCH = (
    "replay.sampling=each_once",
    "replay.capacity_rows=2",
    "replay.batch_rows=1",
    "update.per_batch=4",
    "update.target={name: batch}",
    "loss.double_q=false",
)


def replay_of(**arguments):
    """Return an empty buffer for one batch."""
    sizes = {"capacity_rows": N_ROWS, "batch_rows": BATCH_ROWS, "seed": 7, **arguments}
    return make_replay(SequenceRows(), **sizes, sampling="each_once")


def collected(i):
    """Return the i-th batch [6, 4]."""
    return random_batch(N_ROWS, N_STEPS, seed=i)


def drawn(replay, n):
    """Return the numbers of the rows in n samples, [n, 2]."""
    return torch.stack([replay.sample()["index"].flatten()[::N_STEPS] for _ in range(n)])


def start_of(loss):
    """Return a copy of a loss whose networks and targets are the present networks."""
    start = copy.deepcopy(loss)
    start.copy_to_targets()
    return start


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
def test_all_targets_of_a_batch_are_of_the_networks_at_its_start(kind, tmp_path):
    config = load_config(tiny(tmp_path), [*ONE_BATCH, f"update.per_batch={2 * EPOCH}"])
    step = updates_of(kind, lambda loss: build_target_updater(config, loss), {}, double_q=False)
    loss, replay = step.loss, replay_of()
    for i in range(3):
        replay.extend(collected(i))
        start = start_of(loss)
        for k in range(config.update.per_batch):
            batch = replay.sample()
            expected = start(batch)["target_value"]
            now = start_of(loss)(batch)["target_value"]
            assert torch.equal(expected, now) == (k == 0)  # the networks have moved
            assert torch.equal(step(batch)["target_value"], expected)


def test_with_double_q_targets_would_change_within_a_batch():
    """The online agent chooses: the reason why a configuration with both is refused."""
    step = updates_of("feedforward", make_hard_updater, {"period_updates": 50}, double_q=True)
    batch = collected(0)
    found = [step(batch)["target_value"].item() for _ in range(50)]
    assert len(set(found)) > 1


def test_each_row_is_used_once_in_every_epoch():
    replay, orders = replay_of(), []
    for i in range(2):
        replay.extend(collected(i))
        for _ in range(2):
            orders.append(drawn(replay, EPOCH).flatten())
            assert sorted(orders[-1].tolist()) == list(range(N_ROWS))
    assert len({tuple(order.tolist()) for order in orders}) > 2  # 2 of 720 orders may be equal


def test_rows_are_those_of_the_newest_batch():
    replay = replay_of()
    for i in range(2):
        replay.extend(collected(i))
    batch = torch.cat([replay.sample() for _ in range(EPOCH)])
    rewards = batch["next", "reward"].sum((1, 2)).sort().values
    expected = collected(1)["next", "reward"].sum((1, 2)).sort().values
    assert torch.equal(rewards, expected)


@pytest.mark.parametrize("before", [1, EPOCH])  # inside an epoch, and behind it
def test_a_loaded_buffer_goes_on_with_its_epoch(before):
    whole, half, other = replay_of(), replay_of(), replay_of(seed=8)
    for replay in (whole, half):
        replay.extend(collected(0))
        drawn(replay, before)
    load_replay_state(other, replay_state(half))
    assert torch.equal(drawn(other, 2 * EPOCH), drawn(whole, 2 * EPOCH))


def test_the_seed_decides_the_order():
    orders = []
    for seed in (7, 7, 8):
        replay = replay_of(seed=seed)
        replay.extend(collected(0))
        torch.rand(seed)  # the global stream does not
        orders.append(drawn(replay, EPOCH))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_sizes_that_make_no_whole_epochs_are_refused():
    with pytest.raises(ValueError, match=r"batch_rows that divides .*, got 4 and 6"):
        replay_of(batch_rows=4)
    with pytest.raises(ValueError, match=r"expected sampling of uniform, each_once, got 'once'"):
        make_replay(SequenceRows(), capacity_rows=2, batch_rows=1, seed=0, sampling="once")
