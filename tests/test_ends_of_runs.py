"""Ends of a training: numbers that are not finite, overestimation, full disks."""

import errno
import os
import re

import pytest
import torch
from recipe_tools import AGENTS, MIXERS, game, metrics, run
from support.finite import check_batch
from support.possible_values import PossibleValues
from tensordict import TensorDict

from qmix_trl import SaveError, logs, make_collector
from qmix_trl.checkpoint import run as checkpoint_run
from qmix_trl.errors import DivergedError
from qmix_trl.keys import (
    AGENT_REWARD,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    next_key,
)

SAVED = "checkpoint.every_seconds=0"
MEMORY = game("memory", "delay: 2")


def batch_of():
    """Return a finite batch [3, 4] of which the last step of the last environment is padding."""
    batch = TensorDict({}, [3, 4])
    for key, shape in ((OBSERVATION, (2, 5)), (STATE, (7,))):
        batch[key] = torch.randn(3, 4, *shape)
        batch[next_key(key)] = torch.randn(3, 4, *shape)
    batch[next_key(REWARD)] = torch.randn(3, 4, 1)
    batch[next_key(AGENT_REWARD)] = torch.randn(3, 4, 2, 1)
    batch[next_key(TERMINATED)] = torch.zeros(3, 4, 1, dtype=torch.bool)
    batch[next_key(TERMINATED)][1, 2] = True
    batch[MASK] = torch.ones(3, 4, dtype=torch.bool)
    batch[MASK][2, 3] = False
    return batch


KEYS = [OBSERVATION, STATE, *map(next_key, (OBSERVATION, STATE, REWARD, AGENT_REWARD))]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_number_that_is_none_is_refused(key, value):
    batch = batch_of()
    check_batch(batch)
    batch[key][0, 1].reshape(-1)[-1] = value
    with pytest.raises(DivergedError, match=f"is {value} at step 1 of environment 0") as caught:
        check_batch(batch)
    assert ("rewards" in str(caught.value)) == (key[-1] == "reward")
    assert "lr" not in str(caught.value)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_padding_does_not_count(key):
    batch = batch_of()
    batch[key][2, 3] = float("nan")
    check_batch(batch)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_what_follows_a_termination_does_not_count(key):
    batch = batch_of()
    batch[key][1, 2] = float("nan")
    if key in (next_key(OBSERVATION), next_key(STATE)):
        check_batch(batch)
    else:
        with pytest.raises(DivergedError, match="at step 2 of environment 1"):
            check_batch(batch)


def test_large_numbers_whose_sum_is_infinite_are_numbers():
    batch = batch_of()
    batch[OBSERVATION].fill_(3e38)
    assert batch[OBSERVATION].sum().isinf()
    check_batch(batch)


def spoilt_collector(key, at):
    """Return a function that makes a collector, whose batch number ``at`` has one NaN."""

    def make(*arguments, **keywords):
        collector = make_collector(*arguments, **keywords)
        add_mask, batches = collector.postproc, iter(range(100))

        def postproc(batch):
            batch = add_mask(batch)
            if next(batches) == at:
                batch.get(key)[1, 2] = float("nan")
            return batch

        collector.postproc = postproc
        return collector

    return make


@pytest.mark.parametrize("collector", ["fused", "stock"])
@pytest.mark.parametrize("key", KEYS[2:5], ids=str)
def test_a_run_ends_before_a_nan_enters_the_replay(key, collector, tmp_path, monkeypatch):
    monkeypatch.setattr("support.components.make_collector", spoilt_collector(key, 2))
    overrides = ["collection.total_frames=80", "evaluation.every_frames=1"]
    with pytest.raises(DivergedError, match=r"are not numbers.*step \d of environment \d"):
        run(tmp_path, *overrides, SAVED, f"collection.collector={collector}")
    folder = tmp_path / "runs" / "tiny-1"
    assert metrics(folder)["frames"] == [8, 16]
    assert_finite(folder)


def assert_finite(folder):
    """Check that neither the weights nor the newest checkpoint hold a number that is not finite."""
    weights = torch.load(folder / "weights.pt")
    for part in ("agent", "mixer"):
        assert all(x.isfinite().all() for x in weights[part].values())
    (newest,) = sorted((folder / "checkpoints").glob("checkpoint-*"))[-1:]
    numbers = torch.frombuffer(bytearray((newest / "update.bin").read_bytes()), dtype=torch.float32)
    assert numbers.isfinite().all()


@pytest.mark.parametrize("n_batches", [1, 2])
def test_weights_that_are_no_numbers_are_never_saved(n_batches, tmp_path):
    # In float32 this eps is 0, and Adam divides 0 by 0.
    eps = "update.optimizer={name: adam, lr: 0.001, eps: 1e-320}"
    overrides = [f"collection.total_frames={8 * n_batches}", "evaluation.every_frames=1"]
    with pytest.raises(DivergedError, match="largest weight or number of the optimiser nan"):
        run(tmp_path, eps, *overrides, SAVED)
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "metrics.csv"]


def test_rewards_that_are_no_numbers_are_told_before_the_run_begins(tmp_path):
    massless = "env.scenario_kwargs.package_mass=0"
    with pytest.raises(DivergedError, match=r"^the environment's rewards are not numbers") as told:
        run(tmp_path, massless)
    assert "lr" not in str(told.value)
    assert not (tmp_path / "runs").exists()


def frames_told(said):
    """Return the frames from which values are said to be overestimated."""
    return [
        int(n) for n in re.findall(r"warning: the values are overestimated from frame (\d+)", said)
    ]


def test_overestimation_is_told_once_until_it_has_ended(tmp_path, capsys):
    # Rewards of the memory game are 0 or 1 and come once. A huge step makes values grow.
    overrides = [MEMORY, "collection.total_frames=80", "update.max_grad_norm=1e9"]
    lr = "update.optimizer={name: adam, lr: 0.5, eps: 1e-8}"
    folder = run(tmp_path, *overrides, lr, MIXERS["qmix"], AGENTS["recurrent"], SAVED)
    run(tmp_path, "collection.total_frames=160", resume=folder)
    said = capsys.readouterr().out
    expected, is_outside = [], False
    for i, excess in enumerate(metrics(folder)["beyond_bound"]):
        if excess > 1.1 and not is_outside:
            expected.append(8 * (i + 1))
        is_outside = excess > 0 and (is_outside or excess > 1.1)
    assert frames_told(said) == expected
    assert expected
    assert "try a lower update.optimizer.lr" in said


def test_overestimation_is_told_again_after_all_values_were_inside(tmp_path, monkeypatch, capsys):
    outside, inside = (-9.0, -8.0), (-9.0, 9.0)  # of values that are near 0
    intervals = iter([outside, outside, inside, outside])

    def see(self, batch):
        self.now = next(intervals)

    monkeypatch.setattr(PossibleValues, "see", see)
    monkeypatch.setattr(PossibleValues, "interval", property(lambda self: self.now))
    run(tmp_path, "collection.total_frames=32")
    assert frames_told(capsys.readouterr().out) == [8, 32]


def test_values_within_their_bound_have_no_excess(tmp_path, capsys):
    folder = run(tmp_path, MEMORY, "collection.total_frames=80")
    assert set(metrics(folder)["beyond_bound"]) == {0.0}
    assert "overestimated" not in capsys.readouterr().out


# Full disks


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_whole_lines_of_metrics(tmp_path, monkeypatch):
    calls = []

    def pwrite(file, content, place):
        calls.append(len(content))
        if len(calls) == 5:
            full()
        return real(file, content[:5] if len(calls) == 4 else content, place)  # what fits

    real = os.pwrite
    monkeypatch.setattr(logs.os, "pwrite", pwrite)
    with pytest.raises(SaveError, match=r"metrics.csv: cannot be written: No space .* are needed"):
        run(tmp_path, "collection.total_frames=80", "evaluation.every_frames=1")
    monkeypatch.undo()
    folder = tmp_path / "runs" / "tiny-1"
    content = (folder / "metrics.csv").read_bytes()
    assert content.endswith(b"\r\n")
    assert metrics(folder)["frames"] == [8, 16]


def test_a_run_goes_on_without_the_checkpoints_that_do_not_fit(tmp_path, monkeypatch, capsys):
    folders = []

    def write_file(path, pieces):
        if path.parent not in folders:
            folders.append(path.parent)
        return full() if len(folders) in (2, 3) else real(path, pieces)

    real = checkpoint_run.write_file
    monkeypatch.setattr(checkpoint_run, "write_file", write_file)
    folder = run(tmp_path, "collection.total_frames=40", SAVED)
    said = capsys.readouterr().out
    assert said.count("no checkpoint can be written: No space left on device") == 1
    assert "checkpoint-000001 stays the newest; the run goes on and tries again" in said
    assert metrics(folder)["frames"] == [8, 16, 24, 32, 40]
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    assert sorted(names) == ["checkpoint-000002", "checkpoint-000003"]
