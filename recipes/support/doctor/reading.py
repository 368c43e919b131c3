"""A reading of throughput, which recommends a number of environments and of threads.

A batch of collection and some updates are timed for each choice, in rounds that take each choice
once. The frames a second of whole training follow: a batch, and as many updates for each frame as
the configuration asks for.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from support.components import (
    build_collector,
    build_exploration,
    build_loss,
    build_replay,
    build_training_env,
    build_update,
    frames_per_batch,
    in_process,
    without_checks,
)
from support.memory import check_room
from support.threads import numbers_to_try

from qmix_trl import Learner, MachineError, RunConfig, env_dims, make_policy, with_memory
from qmix_trl.config.schema import InPython
from qmix_trl.trained import build_agent, build_mixer

FACTORS = (0.25, 0.5, 1, 2, 4)  # of the configured number of environments
MOST_THREADS = 8
N_UPDATES = 3  # timed at a time
FEWEST_ROUNDS = 2
READING_SECONDS = 20
MAKING_SECONDS = 10  # of these, after which no more environments are made
ENDLESS = 10**15  # frames
HEADINGS = ("n_envs", "threads", "per_batch", "frames/s", "least", "most")
WIDTH = 10


def row(cells: Sequence[str]) -> str:
    """Return a row of the table, of 60 columns."""
    return "".join(cell.rjust(WIDTH) for cell in cells)


@dataclass(frozen=True)
class Choice:
    """A number of environments with the updates that it asks for, and a number of threads."""

    n_envs: int
    per_batch: int
    threads: int

    def overrides(self) -> list[str]:
        """Return the overrides that make a run of it."""
        return [
            f"env.n_envs={self.n_envs}",
            f"update.per_batch={self.per_batch}",
            f"runtime.threads={self.threads}",
        ]


@dataclass(frozen=True)
class Reading:
    """The frames a second of a choice, one for each round."""

    choice: Choice
    frames_per_second: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.frames_per_second)

    def __str__(self) -> str:
        least, most = min(self.frames_per_second), max(self.frames_per_second)
        choice = self.choice.n_envs, self.choice.threads, self.choice.per_batch
        return row([f"{x:,.0f}" for x in (*choice, self.median, least, most)])


def sizes(config: RunConfig) -> dict[int, int]:
    """Return the numbers of environments to try, each with its updates after a batch.

    Each frame is trained on as often as configured. A number that would be no whole one, or more
    than the rows of the replay buffer, is left out; so are all others where the buffer holds the
    rows of exactly one batch.
    """
    n, processes = config.env.n_envs, 1
    if isinstance(config.env, InPython):
        processes = config.env.processes
    tried = {}
    for factor in FACTORS:
        n_envs, per_batch = n * factor, config.update.per_batch * factor
        is_whole = n_envs >= 1 and n_envs % processes == 0 and per_batch == int(per_batch) >= 1
        least = config.replay.capacity_rows if config.replay.sampling == "each_once" else 1
        if is_whole and least <= n_envs <= config.replay.capacity_rows:
            tried[int(n_envs)] = int(per_batch)
    return tried


def threads(config: RunConfig) -> list[int]:
    """Return the numbers of threads to try: powers of two up to the processors, and the own one."""
    return sorted({*numbers_to_try(MOST_THREADS), _own_threads(config)})


class Sizing:
    """A training of one number of environments, whose collection and updates are timed.

    Args:
        config: of the run, with this number of environments.
        device: of the networks.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        config = in_process(config)
        self._config, self._device = config, device
        env = build_training_env(config, device)
        dims = env_dims(env)
        agent = build_agent(config, dims, device)
        mixer = build_mixer(config, dims, device)
        policy = make_policy(agent, build_exploration(config, device))
        collector = build_collector(config, with_memory(env, agent), policy)
        self._batches = iter(collector)
        self._replay = build_replay(config, device)
        update = build_update(config, build_loss(config, agent, mixer, dims))
        self._learner = Learner(update, self._replay, n_steps=N_UPDATES)
        while len(self._replay) < config.replay.batch_rows:
            self._replay.extend(next(self._batches))
        self._learner()  # what happens only at first is not timed

    def frames_per_second(self) -> float:
        """Return the frames a second of whole training, from one batch and some updates."""
        collection = self._seconds(lambda: self._replay.extend(next(self._batches)))
        updates = self._seconds(self._learner) / N_UPDATES * self._config.update.per_batch
        return frames_per_batch(self._config) / (collection + updates)

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def read(config: RunConfig, device: torch.device) -> list[Reading]:
    """Return the readings of several choices, after about ``READING_SECONDS``.

    Numbers of threads are compared first, with the configured number of environments; then numbers
    of environments, with the threads that did best.

    Args:
        config: of the run.
        device: of the networks.

    Raises:
        MachineError: if the memory has no room for the configured number of environments.
    """
    own = _sizing(config, device, config.env.n_envs)
    start = time.perf_counter()  # the first may compile its environment
    sizings = {config.env.n_envs: own}
    first = {_choice(config, config.env.n_envs, n_threads): own for n_threads in threads(config)}
    of_threads = _timed(first, start + READING_SECONDS / 3)
    n_threads = recommended(of_threads, config).choice.threads
    torch.set_num_threads(n_threads)
    for n_envs in _others(config):
        if time.perf_counter() - start > MAKING_SECONDS:
            print(f"env.n_envs={n_envs} is left out: making the others took long")
            continue
        try:
            sizings[n_envs] = _sizing(config, device, n_envs)
        except MachineError as error:
            print(f"env.n_envs={n_envs} is left out: {error}")
    second = {_choice(config, n_envs, n_threads): one for n_envs, one in sizings.items()}
    of_envs = _timed(second, start + READING_SECONDS)
    readings = [one for one in of_threads if one.choice not in second] + of_envs
    return sorted(readings, key=lambda one: (one.choice.n_envs, one.choice.threads))


def _others(config: RunConfig) -> list[int]:
    """Return the other numbers of environments, the nearest first."""
    own = config.env.n_envs
    others = [n_envs for n_envs in sizes(config) if n_envs != own]
    return sorted(others, key=lambda n_envs: (abs(math.log(n_envs / own)), n_envs))


def _choice(config: RunConfig, n_envs: int, n_threads: int) -> Choice:
    return Choice(n_envs, sizes(config)[n_envs], n_threads)


def _timed(sizings: Mapping[Choice, Sizing], until: float) -> list[Reading]:
    """Return the readings of choices, in ``FEWEST_ROUNDS`` or more up to a time."""
    rounds: dict[Choice, list[float]] = {choice: [] for choice in sizings}
    n_rounds = 0
    while n_rounds < FEWEST_ROUNDS or time.perf_counter() < until:
        for choice, sizing in sizings.items():
            torch.set_num_threads(choice.threads)
            rounds[choice].append(sizing.frames_per_second())
        n_rounds += 1
    return [Reading(choice, found) for choice, found in rounds.items()]


def _sizing(config: RunConfig, device: torch.device, n_envs: int) -> Sizing:
    """Return the training of a number of environments.

    Raises:
        MachineError: if the memory has no room for it.
    """
    config = without_checks(config)
    config = replace(
        config,
        env=replace(config.env, n_envs=n_envs),
        update=replace(config.update, per_batch=sizes(config)[n_envs]),
        collection=replace(config.collection, total_frames=ENDLESS),
    )
    check_room(config, device, Path())
    return Sizing(config, device)


def recommended(readings: Sequence[Reading], config: RunConfig) -> Reading:
    """Return the reading that differs least from a configuration among the fastest.

    One is among the fastest if its best round is no slower than the worst one of the fastest.

    Args:
        readings: of the choices.
        config: of the run.
    """
    best = max(readings, key=lambda reading: reading.median)
    slowest = min(best.frames_per_second)
    near = [reading for reading in readings if max(reading.frames_per_second) >= slowest]
    return min(near, key=lambda reading: _difference(reading.choice, config))


def _difference(choice: Choice, config: RunConfig) -> tuple[float, float]:
    """Return how far a choice is from a configuration, in environments and then in threads."""
    of_envs = abs(math.log(choice.n_envs / config.env.n_envs))
    return of_envs, abs(math.log(choice.threads / _own_threads(config)))


def _own_threads(config: RunConfig) -> int:
    """Return the number of threads of a configuration; torch's where it names none."""
    threads = config.runtime.threads
    return threads if isinstance(threads, int) else torch.get_num_threads()


def is_busy() -> bool:
    """Return whether other processes have used the processors in the last minute."""
    return os.getloadavg()[0] > (os.cpu_count() or 1) + 0.5
