"""Training that is killed at random moments and resumed, beside the same run unbroken."""

import os
import random
import shutil
import time

import pytest
from recipe_tools import AGENTS, MIXERS, game, metrics, run, tiny
from support.run_folder import newest_checkpoint
from train_tools import SAVED, check_same, started, wait_for_the_table

KILLS = int(os.environ.get("QMIX_TRL_KILLS", "5"))
SLICES = ("collection.rows=slices", "collection.steps=3", "env.max_steps=5")
CASES = {
    "kernel, fused": ["env.engine=kernel", "collection.collector=fused"],
    "kernel, vdn, recurrent, slices": [
        *("env.engine=kernel", *SLICES, AGENTS["recurrent"], MIXERS["vdn"]),
    ],
    "game": [game("memory", "delay: 2"), AGENTS["recurrent"]],
    "eager, stock": ["collection.collector=stock"],
}
LONG = "collection.total_frames=10000000"
START_SECONDS = 4.0  # about; a fifth of all kills come in this time after a start


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_killed_at_random_moments_equals_an_unbroken_one(name, tmp_path):
    overrides, draw = [*CASES[name], SAVED], random.Random(name)
    folder = tmp_path / "runs" / "killed"
    for _ in range(KILLS):
        if newest_checkpoint(folder):
            arguments = ["--resume", folder, LONG]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            arguments = [tiny(tmp_path), "name=killed", *overrides, LONG]
        kill_at_random(tmp_path, arguments, draw)
    n_frames = int(metrics(folder)["frames"][-1]) + 8 * 3
    end = f"collection.total_frames={n_frames - n_frames % (8 * 3)}"
    run(tmp_path, end, resume=folder)
    check_same(folder, run(tmp_path, *overrides, end, "name=unbroken"))


def kill_at_random(folder, arguments, draw):
    """Start a training and kill it, four times of five in its loop."""
    with started(folder, *arguments) as process:
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, START_SECONDS))
        else:
            wait_for_the_table(process)
            time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
