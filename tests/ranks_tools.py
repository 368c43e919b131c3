"""Ranks of a training: threads in place of processes, and processes of torchrun."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recipe_tools import RECIPES
from support.run_folder import newest_checkpoint
from torchrl.envs.utils import exploration_type, set_exploration_type

from qmix_trl.ranks import Ranks


class ThreadRanks(Ranks):
    """One of several threads that stand for the processes of a training."""

    def __init__(self, rank, size, shared):
        self.rank, self.size = rank, size
        self._shared, self._barrier = shared

    def gathered(self, value):
        self._shared[self.rank] = pickle.dumps(value)
        self._barrier.wait(60)
        values = [pickle.loads(value) for value in self._shared]
        self._barrier.wait(60)
        return values

    def from_first(self, value):
        return self.gathered(value)[0]

    def add(self, values):
        values.copy_(sum(self.gathered(values.clone())))

    def take_maximum(self, values):
        for other in self.gathered(values.clone()):
            values.copy_(values.maximum(other))

    def copy_first(self, values):
        values.copy_(self.gathered(values.clone())[0])


def in_threads(function, size):
    """Return the results of a function of ``Ranks``, called in a thread for each rank."""
    shared = [None] * size, threading.Barrier(size)
    ranks = [ThreadRanks(rank, size, shared) for rank in range(size)]
    # Losses set and restore the process's exploration type, in threads in any order.
    with set_exploration_type(exploration_type()), ThreadPoolExecutor(size) as threads:
        return list(threads.map(function, ranks))


def torchrun(folder, n_ranks, *arguments, **settings):
    """Return the process of torchrun that trains by some ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, f"--nproc-per-node={n_ranks}", RECIPES / "train.py", *map(str, arguments)],
        cwd=folder,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **settings},
    )


def trained(folder, n_ranks, *arguments, code=0):
    """Train by torchrun to the end; return what it said."""
    with torchrun(folder, n_ranks, *arguments) as process:
        said, _ = process.communicate(timeout=600)
    assert process.returncode == code, said
    return said


def wait_for_lines(process, n_lines):
    """Read what a training prints, until its table has some lines."""
    said = []
    while "loss" not in (line := process.stdout.readline()):
        said.append(line)
        assert line, "".join(said)
    for _ in range(n_lines):
        process.stdout.readline()


def rank_processes(process):
    """Return the numbers of torchrun's processes, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(x[5:]): int(child) for x in environment if x.startswith(b"RANK=")}
    return [found[rank] for rank in range(len(found))]


def is_running(pid):
    """Say whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def seconds_to_end(pids, most):
    """Return the seconds until some processes have ended, at most so many."""
    start = time.monotonic()
    while any(map(is_running, pids)) and time.monotonic() < start + most:
        time.sleep(0.05)
    return time.monotonic() - start


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def shards(folder):
    """Return the states and the hashes of all ranks in a run's newest checkpoint.

    Without global random streams, the time of the report, and the configuration.
    """
    newest = newest_checkpoint(folder)
    files = json.loads((newest / "manifest.json").read_text().partition("\n")[2])["files"]
    states = {}
    for name in [name for name in files if name.endswith("state.json")]:
        state = json.loads((newest / name).read_text())
        states[name] = {
            key: x for key, x in state.items() if key not in ("random", "report", "config")
        }
    hashes = {n: x["sha256"] for n, x in files.items() if n.endswith(".bin") and "random" not in n}
    return states, hashes


def scheduling_of_threads(pid, prefix):
    """Return how Linux schedules a process's threads whose names begin so."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    named = [int(x.name) for x in threads if (x / "comm").read_text().startswith(prefix)]
    return [os.sched_getscheduler(number) for number in named]
