"""Training that is killed or stopped at random moments and goes on, and training for long.

On demand there is more of it: QMIX_TRL_KILLS=100 QMIX_TRL_SOAK_SECONDS=3600.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from recipe_tools import AGENTS, MIXERS, game, metrics, run, tiny
from support.run_folder import newest_checkpoint
from train_tools import SAVED, check_same, started, wait_for_the_table

ON_DEMAND = "QMIX_TRL_KILLS" in os.environ
KILLS = int(os.environ.get("QMIX_TRL_KILLS", "3"))
STOPS = 3
SOAK_SECONDS = float(os.environ.get("QMIX_TRL_SOAK_SECONDS", "24"))
MOST_GROWTH_KB = 20_000
SLICES = ("collection.rows=slices", "collection.steps=3", "env.max_steps=5")
FUSED = ("env.engine=kernel", "collection.collector=fused")
CASES = {
    "kernel, fused": FUSED,
    "kernel, vdn, recurrent, slices": (
        *("env.engine=kernel", *SLICES, AGENTS["recurrent"], MIXERS["vdn"]),
    ),
    "game": (game("memory", "delay: 2"), AGENTS["recurrent"]),
    "eager, stock": ("collection.collector=stock",),
}
LONG = "collection.total_frames=10000000"
START_SECONDS = 4.0  # about; a fifth of all signals come in this time after a start
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES if ON_DEMAND else ["kernel, fused"])
def test_a_run_killed_at_random_moments_equals_an_unbroken_one(name, tmp_path):
    overrides, draw = [*CASES[name], SAVED], random.Random(name)
    folder = tmp_path / "runs" / "broken"
    for _ in range(KILLS):
        signalled_at_random(tmp_path, overrides, draw, signal.SIGKILL)
    end = f"collection.total_frames={whole_batches(folder)}"
    run(tmp_path, end, resume=folder)
    check_same(folder, run(tmp_path, *overrides, end, "name=unbroken"))


def test_a_run_stopped_at_random_moments_equals_an_unbroken_one(tmp_path):
    overrides, draw = [*FUSED, "checkpoint.every_seconds=1000"], random.Random(0)
    folder = tmp_path / "runs" / "broken"
    for _ in range(STOPS):
        process, said = signalled_at_random(tmp_path, overrides, draw, signal.SIGTERM)
        # Within the first lines of Python the signal itself ends the process.
        assert process.returncode in (75, -signal.SIGTERM)
        if "stopped at " in said:
            n_frames = int(said.partition("stopped at ")[2].split()[0].replace(",", ""))
            state = json.loads((newest_checkpoint(folder) / "state.json").read_text())
            assert state["frames"] == n_frames == metrics(folder)["frames"][-1]
    end = f"collection.total_frames={whole_batches(folder)}"
    run(tmp_path, end, resume=folder)
    check_same(folder, run(tmp_path, *overrides, end, "name=unbroken"))


def signalled_at_random(folder, overrides, draw, number):
    """Start a training, or let it go on, and send it a signal, four times of five in its loop.

    Returns:
        The process after its end, and what it printed since the table began.
    """
    broken = folder / "runs" / "broken"
    if newest_checkpoint(broken):
        arguments = ["--resume", broken, LONG]
    else:
        shutil.rmtree(broken, ignore_errors=True)
        arguments = [tiny(folder), "name=broken", *overrides, LONG]
    with started(folder, *arguments) as process:
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, START_SECONDS))
        else:
            wait_for_the_table(process)
            process.stdout.readline()  # of the first batch, so that each start gets on
            time.sleep(draw.uniform(0, 0.5))
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    assert errors == "" or number == signal.SIGKILL  # Python tells of what is left of a process
    return process, said


def whole_batches(folder):
    """Return a number of frames a little beyond a run's last, for batches of 6 or 8 frames."""
    n_frames = int(metrics(folder)["frames"][-1])
    return n_frames + 48 - n_frames % 24


def test_memory_does_not_grow(tmp_path):
    often = ("checkpoint.every_seconds=0.5", "evaluation.every_frames=400")
    slowly = "update.optimizer={name: adam, lr: 1e-6, eps: 1e-5}"  # networks this small diverge
    with started(
        tmp_path,
        tiny(tmp_path),
        *FUSED,
        *often,
        slowly,
        LONG,
        stdout=Path.open(tmp_path / "out", "w"),
    ) as process:
        time.sleep(SOAK_SECONDS / 3)  # to warm up
        first = resident_kb(process)
        time.sleep(2 * SOAK_SECONDS / 3)
        last = resident_kb(process)
        process.terminate()
        assert process.wait(60) == 75
    assert last - first < MOST_GROWTH_KB, f"{first} kB, then {last} kB"


def resident_kb(process):
    """Return the resident memory of a process in kilobytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
