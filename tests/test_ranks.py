"""Ranks: their step is that on all batches joined, they save together, and agree."""

import threading
import warnings

import pytest
import torch
from loss_tools import make_loss, random_batch, some_ends
from ranks_tools import in_threads
from recipe_tools import AGENTS, run, tiny
from support.components import STREAMS, stream_seed
from support.ends import Stop
from support.planned_run import planned_run
from support.shares import KEEP, SPLIT, about_shares, of_all_ranks, share_of

from qmix_trl import (
    CheckpointError,
    ConfigError,
    SaveError,
    Update,
    load_config,
    load_run,
    make_hard_updater,
    make_soft_updater,
    ranks,
    save_run,
)
from qmix_trl.checkpoint import run as run_module
from qmix_trl.keys import MASK

N_UPDATES = 50
DRAWING = threading.Lock()  # of torch's global random numbers, which threads share
UPDATERS = {
    "hard": (make_hard_updater, {"period_updates": 7}),
    "soft": (make_soft_updater, {"tau": 0.1}),
}


def batch_of(seed, n_rows, dtype):
    """Return a batch with rows of unequal masks, the first ranks' with fewer valid steps."""
    batch = random_batch(n_rows, 6, seed=seed, ends=some_ends(n_rows, 6, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (n_rows, 1), generator=generator)
    lengths[: n_rows // 2] = (lengths[: n_rows // 2] // 3).clamp(min=1)
    batch.set(MASK, torch.arange(6) < lengths)
    return batch.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)


def update_of(kind, target, dtype, of_ranks=ranks.ALONE, *, seed=0):
    """Return an update whose gradients are clipped, and whose targets are bounded."""
    with DRAWING:
        loss = make_loss(kind, seed=seed, td_lambda=0.8, bounded_targets=True).to(dtype)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3, eps=1e-5, fused=True)
    make_updater, settings = UPDATERS[target]
    return Update(
        loss, optimizer, make_updater(loss, **settings), max_grad_norm=0.5, ranks=of_ranks
    )


@pytest.mark.parametrize("target", UPDATERS)
@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_ranks_step_as_one_process_on_their_batches_joined(kind, target, dtype, tolerance):
    batches = [batch_of(seed, 4, dtype) for seed in range(N_UPDATES)]
    alone = update_of(kind, target, dtype)
    expected = [alone(batch) for batch in batches]
    norms = torch.stack([outputs["grad_norm"] for outputs in expected])
    assert (norms > 0.5).any()  # some are clipped

    def train(of_ranks):
        own = update_of(kind, target, dtype, of_ranks)
        rows = slice(2 * of_ranks.rank, 2 * of_ranks.rank + 2)
        return own, [own(batch[rows]) for batch in batches]

    found = in_threads(train, 2)
    assert len({own.fingerprint() for own, _ in found}) == 1
    for own, outputs in found:
        pairs = zip(own.loss.state_dict().items(), alone.loss.state_dict().values(), strict=True)
        for (name, value), other in pairs:
            assert (value - other).abs().max() <= tolerance, name
        for key in ("loss", "td_error", "total_value", "target_value", "n_values", "grad_norm"):
            ours, theirs = (torch.stack([x[key] for x in of]) for of in (outputs, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e3 * tolerance, atol=1e2 * tolerance)


def test_a_mean_of_means_would_be_another_step():
    batch = batch_of(0, 4, torch.float64)
    alone = update_of("feedforward", "soft", torch.float64)
    halves = [alone.loss(batch[rows])["loss"] for rows in (slice(2), slice(2, 4))]
    whole = alone.loss(batch)["loss"]
    assert (sum(halves) / 2 - whole).abs() > 1e-2 * whole


def test_ranks_begin_with_the_parameters_of_the_first():
    found = in_threads(
        lambda of: update_of("feedforward", "soft", torch.float32, of, seed=of.rank).fingerprint(),
        3,
    )
    assert len(set(found)) == 1
    assert found[0] == update_of("feedforward", "soft", torch.float32).fingerprint()


def test_a_rank_whose_batch_is_padding_alone_steps_with_the_others():
    batch = batch_of(0, 4, torch.float64)
    batch.get(MASK)[:2] = False
    alone = update_of("feedforward", "soft", torch.float64)
    alone(batch)

    def train(of_ranks):
        own = update_of("feedforward", "soft", torch.float64, of_ranks)
        own(batch[2 * of_ranks.rank : 2 * of_ranks.rank + 2])
        return own.loss.state_dict()

    for state in in_threads(train, 2):
        for value, other in zip(state.values(), alone.loss.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------ shares and streams


@pytest.mark.parametrize("reading", [KEEP, SPLIT])
def test_a_share_is_what_one_rank_has(reading, tmp_path):
    one = load_config(tiny(tmp_path), ["env.n_envs=4", "replay.batch_rows=6"])
    whole = of_all_ranks(one, 2, reading)
    share = share_of(whole, 2)
    factor = 2 if reading == KEEP else 1
    assert whole.env.n_envs == 4 * factor
    assert whole.replay.batch_rows == 6 * factor
    assert 2 * share.env.n_envs == whole.env.n_envs
    assert 2 * share.replay.capacity_rows == whole.replay.capacity_rows
    assert whole.collection == one.collection
    assert f"each steps {2 * factor} of {4 * factor} environments" in about_shares(whole, 2)


@pytest.mark.parametrize("key", ["env.n_envs", "replay.batch_rows", "replay.capacity_rows"])
def test_what_ranks_cannot_divide_is_refused(key, tmp_path):
    config = load_config(tiny(tmp_path), ["env.n_envs=2", f"{key}=15", "replay.capacity_rows=15"])
    with pytest.raises(ConfigError, match=f"{key}: expected a multiple of the 2 ranks.*, got 15"):
        share_of(load_config(tiny(tmp_path), [f"{key}=15"]), 2)
    assert share_of(config, 1) is config


def test_streams_of_ranks_differ_and_those_of_the_first_are_of_one_process():
    seeds = [stream_seed(s, name, rank) for s in (0, 1) for name in STREAMS for rank in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert stream_seed(3, "env", 0) == stream_seed(3, "env")


# ------------------------------------------------------------------------ what torchrun tells


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 1),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 1),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 4),
    ],
)
def test_the_number_of_ranks_is_that_of_torchrun(told, size, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert ranks.world_size() == size
    if size == 1:
        with ranks.joined_ranks() as joined:
            assert joined is ranks.ALONE


@pytest.mark.parametrize("size", ["many", "0", "-1"])
def test_another_number_is_refused(size, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE: expected .*, got .?{size}"):
        ranks.world_size()


# ------------------------------------------------------------------------ agreement


def test_ranks_stop_after_the_same_batch():
    def batches_until(of_ranks):
        stop = Stop(of_ranks)
        seen = []
        for batch in stop.watched(range(5)):
            seen.append(batch)
            if of_ranks.rank == 1 and batch == 2:
                stop.number = 15  # SIGTERM
        return seen, stop.exit_code

    assert in_threads(batches_until, 3) == [([0, 1, 2], 75)] * 3


def test_what_one_rank_cannot_do_none_does():
    def try_it(of_ranks):
        try:
            with of_ranks.all_or_none():
                if of_ranks.rank == 1:
                    raise SaveError("full")
        except SaveError as error:
            return str(error), getattr(error, "is_told", False)

    assert in_threads(try_it, 3) == [("full", True), ("full", False), ("full", True)]


def test_the_first_rank_acts_for_all():
    calls = []

    def act(of_ranks):
        return of_ranks.by_first(lambda x: calls.append(x) or x, of_ranks.rank)

    assert in_threads(act, 3) == [0, 0, 0]
    assert calls == [0]


# ------------------------------------------------------------------------ checkpoints


class Part:
    """A part with one tensor."""

    def __init__(self, value):
        self.value = torch.full((3,), float(value))

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def save(folder, n_ranks, step):
    in_threads(
        lambda of: save_run(folder, part=Part(10 * step + of.rank), step=step, ranks=of), n_ranks
    )


def load(folder, n_ranks):
    """Return what each rank loads."""

    def one(of_ranks):
        part = Part(-1)
        loaded = load_run(folder, part=part, ranks=of_ranks)
        return loaded.values["step"], part.value[0].item()

    return in_threads(one, n_ranks)


def test_each_rank_has_its_own_back(tmp_path):
    for step in range(3):
        save(tmp_path, 3, step)
    assert load(tmp_path, 3) == [(2, 20), (2, 21), (2, 22)]
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "checkpoint-000003" / "rank-2.part.bin").exists()


@pytest.mark.parametrize("name", ["rank-1.part.bin", "rank-1.state.json", "part.bin"])
def test_a_checkpoint_with_one_damaged_shard_is_damaged_for_all(name, tmp_path):
    for step in range(2):
        save(tmp_path, 2, step)
    (tmp_path / "checkpoint-000002" / name).write_bytes(b"")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert load(tmp_path, 2) == [(0, 0), (0, 1)]
    assert any("damaged" in str(warning.message) for warning in told)
    assert (tmp_path / "damaged-000002").is_dir()


def test_a_shard_that_cannot_be_written_leaves_no_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 2, 0)
    write = run_module.write_file

    def full(path, pieces):
        if path.name.startswith("rank-1"):
            raise OSError(28, "No space left on device")
        return write(path, pieces)

    monkeypatch.setattr(run_module, "write_file", full)

    def try_it(of_ranks):
        with pytest.raises(SaveError, match="No space left on device"):
            save_run(tmp_path, part=Part(5), step=5, ranks=of_ranks)

    in_threads(try_it, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001"]


@pytest.mark.parametrize(("saved", "now"), [(2, 1), (2, 3), (1, 2)])
def test_a_checkpoint_of_another_number_of_ranks_is_refused(saved, now, tmp_path):
    save(tmp_path, saved, 0)
    with pytest.raises(CheckpointError, match=f"expected the {saved} ranks.*, got {now}"):
        load(tmp_path, now)


def test_a_run_of_another_number_of_ranks_is_refused_before_torch_is_imported(tmp_path):
    folder = run(tmp_path, "checkpoint.every_seconds=0", AGENTS["feedforward"])
    assert planned_run(None, [], "", str(folder)).n_ranks == 1
    with pytest.raises(ConfigError, match=r"expected the 1 ranks.*, got 2; go on by python"):
        planned_run(None, [], "", str(folder), n_ranks=2)
    (manifest,) = folder.glob("checkpoints/*2/manifest.json")
    manifest.write_text(manifest.read_text().replace('"ranks": 1', '"ranks": 2'))
    with pytest.raises(ConfigError, match=r"expected the 2 ranks.*, got 1; go on by torchrun"):
        planned_run(None, [], "", str(folder))
