"""Trainings by torchrun: in processes of their own, killed, stopped, and gone on with."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
import torch
from ranks_tools import (
    kill,
    rank_processes,
    scheduling_of_threads,
    seconds_to_end,
    shards,
    torchrun,
    trained,
    wait_for_lines,
)
from recipe_tools import AGENTS, RECIPES, metrics, summary, tiny
from support.run_folder import newest_checkpoint

from qmix_trl.checkpoint import run as run_module
from qmix_trl.keys import OBSERVATION
from qmix_trl.ranks import Ranks

KILLS = int(os.environ.get("QMIX_TRL_KILLS", "1"))
SAVED = "checkpoint.every_seconds=0"
SLICES = ("collection.rows=slices", "collection.steps=3", "env.max_steps=5", AGENTS["recurrent"])
OFTEN = ("update.per_batch=20", "loss.bounded_targets=true", "evaluation.every_frames=48")
SETTINGS = (*SLICES, *OFTEN, SAVED)
FRAMES = 120  # 10 batches of two ranks, each with 2 environments of 3 steps
LONG = "collection.total_frames=10000000"
MOST_SECONDS = 30  # until all ranks have ended, after one was killed
pytestmark = pytest.mark.slow


def total(n_frames):
    return f"collection.total_frames={n_frames}"


def check_same(folder, other):
    """Check that two runs have the same shards, metrics and weights, bit for bit."""
    assert shards(folder) == shards(other)
    assert metrics(folder) == metrics(other)
    weights = [torch.load(of / "weights.pt") for of in (folder, other)]
    for part in ("agent", "mixer"):
        assert all(torch.equal(x, weights[1][part][key]) for key, x in weights[0][part].items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return the folder of a run by two ranks, and what it said."""
    folder = tmp_path_factory.mktemp("unbroken")
    said = trained(folder, 2, tiny(folder), "name=whole", *SETTINGS, total(FRAMES))
    return folder / "runs" / "whole", said


def test_ranks_hold_equal_weights_and_other_episodes(unbroken):
    folder, said = unbroken
    assert "ranks: 2; each steps 2 of 4 environments (6 of 12 frames of a batch)" in said
    assert "frames count all ranks: 120 are 60 of each" in said
    assert summary(folder)["ranks"] == 2
    assert metrics(folder)["frames"] == list(range(12, 121, 12))
    _, hashes = shards(folder)
    assert hashes["update.bin"] == hashes["rank-1.update.bin"]
    rows = []
    for rank in range(2):
        reader = Ranks()
        reader.rank, reader.size = rank, 2
        _, states = run_module._read(newest_checkpoint(folder), reader)
        rows.append(states["replay"]["rows"].get(OBSERVATION)[:, 0].flatten(1))
    assert not (rows[0][:, None] == rows[1][None]).all(-1).any()


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_a_run_is_not_gone_on_with_by_another_number_of_ranks(n_ranks, unbroken):
    of_torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(n_ranks)}
    done = subprocess.run(
        [sys.executable, RECIPES / "train.py", "--resume", unbroken[0], total(FRAMES + 12)],
        env={**os.environ, **of_torchrun},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"expected the 2 ranks with which the run began, got {n_ranks}; go on by " in line


def test_one_rank_equals_a_run_without_torchrun(tmp_path):
    trained(tmp_path, 1, tiny(tmp_path), "name=ours", *SETTINGS, total(48))
    subprocess.run(
        [sys.executable, RECIPES / "train.py", tiny(tmp_path), "name=plain", *SETTINGS, total(48)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    check_same(tmp_path / "runs" / "ours", tmp_path / "runs" / "plain")


def test_a_run_one_rank_of_which_is_killed_ends_and_goes_on(tmp_path):
    draw = random.Random(0)
    folder = tmp_path / "runs" / "broken"
    arguments = [tiny(tmp_path), "--resume", "auto", "name=broken", *SETTINGS, LONG]
    for i in range(KILLS):
        with torchrun(tmp_path, 2, *arguments) as process:
            wait_for_lines(process, draw.randrange(2, 20))
            pids = rank_processes(process)
            for pid in pids:
                assert set(scheduling_of_threads(pid, "gloo_tcp")) == {os.SCHED_BATCH}
                assert os.sched_getscheduler(pid) == os.SCHED_OTHER
            kill(pids[i % 2])
            assert seconds_to_end([*pids, process.pid], MOST_SECONDS) < MOST_SECONDS
            said = process.communicate(timeout=60)[0]
        assert process.returncode == 1
        assert 'train.py", line' not in said, said  # no traceback but torchrun's own
    n_frames = int(metrics(folder)["frames"][-1])
    end = total(n_frames + 96 - n_frames % 48)
    trained(tmp_path, 2, *arguments[:-1], end)
    trained(tmp_path, 2, tiny(tmp_path), "name=unbroken", *SETTINGS, end)
    check_same(folder, tmp_path / "runs" / "unbroken")


def test_a_run_that_is_stopped_has_a_checkpoint_of_one_batch(tmp_path):
    arguments = ["name=stopped", *SLICES, *OFTEN, "checkpoint.every_seconds=1000", LONG]
    with torchrun(tmp_path, 2, tiny(tmp_path), *arguments) as process:
        wait_for_lines(process, 3)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    folder = tmp_path / "runs" / "stopped"
    states, _ = shards(folder)
    assert {state["frames"] for state in states.values()} == {int(metrics(folder)["frames"][-1])}
    assert "stopped at " in said
    end = total(int(metrics(folder)["frames"][-1]) + 12)
    assert "resumed: " in trained(tmp_path, 2, "--resume", folder, end)


def test_a_rank_that_waits_for_a_long_evaluation_ends_too(tmp_path):
    """The first rank evaluates for minutes; the other one, which waits for it, is killed."""
    (tmp_path / "slow.py").write_text(SLOW)
    env = (
        "env={family: custom, make: slow.py:make, make_kwargs: {}, group: null, n_envs: 2, "
        "max_steps: 4, state: observations, team_reward: mean, processes: 1}"
    )
    settings = ["name=slow", env, "evaluation.every_frames=16", "evaluation.episodes=3", LONG]
    paths = os.pathsep.join([str(RECIPES.parent / "tests"), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": paths}
    with torchrun(tmp_path, 2, tiny(tmp_path), *settings, env=environment) as process:
        wait_for_lines(process, 0)
        (tmp_path / "sleep").touch()
        while not (tmp_path / "asleep").exists():
            assert process.poll() is None
        pids = rank_processes(process)
        kill(pids[1])
        assert seconds_to_end([*pids, process.pid], MOST_SECONDS) < MOST_SECONDS
        process.communicate(timeout=60)


SLOW = """
import time
from pathlib import Path

from collect_tools import CounterEnv


class Slow(CounterEnv):
    def _step(self, tensordict):
        if self.batch_size[0] == 3 and Path("sleep").exists():
            Path("asleep").touch()
            time.sleep(300)
        return super()._step(tensordict)


def make(n_envs):
    return Slow(n_envs)
"""


def test_manifests_name_the_files_of_all_ranks(unbroken):
    newest = newest_checkpoint(unbroken[0])
    manifest = json.loads((newest / "manifest.json").read_text().partition("\n")[2])
    assert manifest["ranks"] == 2
    assert {*manifest["files"], "manifest.json"} == {path.name for path in newest.iterdir()}
