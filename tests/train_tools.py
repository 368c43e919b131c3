"""Trainings in processes of their own, and the comparison of a resumed run with another."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import torch
from recipe_tools import RECIPES, metrics, summary
from support.run_folder import newest_checkpoint

SAVED = "checkpoint.every_seconds=0"


def saved(folder: Path) -> dict:
    """Return all of a run's newest checkpoint but the time, the size and global random streams."""
    newest = newest_checkpoint(folder)
    files = json.loads((newest / "manifest.json").read_text().partition("\n")[2])["files"]
    state = json.loads((newest / "state.json").read_text())
    hashes = {name: file["sha256"] for name, file in files.items() if name.endswith(".bin")}
    for name in ("random", "report", "config"):
        state.pop(name)
        hashes.pop(f"{name}.bin", None)
    assert {"update.bin", "replay.bin", "collector.bin"} <= hashes.keys()
    return {"state": state, "hashes": hashes}


def check_same(resumed: Path, unbroken: Path):
    assert saved(resumed) == saved(unbroken)
    assert metrics(resumed) == metrics(unbroken)
    weights = [torch.load(folder / "weights.pt") for folder in (resumed, unbroken)]
    for part in ("agent", "mixer"):
        assert weights[0][part].keys() == weights[1][part].keys()
        for name, value in weights[0][part].items():
            assert torch.equal(value, weights[1][part][name]), name
    found = [summary(folder) for folder in (resumed, unbroken)]
    for name in ("frames", "gradient_steps", "return"):
        assert found[0][name] == found[1][name], name


def started(folder, *arguments, **settings):
    """Return the process of a training, with the signals as in a shell's foreground."""

    def as_in_a_shell():
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, str(RECIPES / "train.py"), *map(str, arguments)],
        cwd=folder,
        text=True,
        preexec_fn=as_in_a_shell,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings},
    )


def wait_for_the_table(process):
    while "loss" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
