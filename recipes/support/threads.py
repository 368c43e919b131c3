"""The number of threads on the CPU: as configured, or the one of a few that is fastest now."""

import itertools
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar, cast

import torch

T = TypeVar("T")
Threads = Literal["auto"] | int | None
MOST_THREADS = 4  # updates in C++ have work for so many (PARTS in networks.h)
N_TRIALS = 3  # batches by each number
N_BETWEEN = 60  # batches between trials: another program may begin or end
AVAILABLE = torch.get_num_threads()  # the processors, or OMP_NUM_THREADS: before any other is set


def set_threads(threads: Threads) -> None:
    """Set the number of threads on the CPU; None leaves it to torch, "auto" begins with one."""
    if threads is not None:
        torch.set_num_threads(1 if threads == "auto" else threads)


def numbers_to_try(most: int, n_processes: int = 1) -> list[int]:
    """Return the powers of two up to the processors of one process, or to OMP_NUM_THREADS.

    Args:
        most: the greatest number.
        n_processes: that share the processors which this one may use.
    """
    limit = max(1, min(most, AVAILABLE // n_processes))
    return [2**i for i in range(limit.bit_length())]


def by_threads(batches: Iterable[T], threads: Threads, n_processes: int) -> Iterator[T]:
    """Yield batches; with "auto" each by the number of threads that is fastest.

    Args:
        batches: an iterable that makes each batch when it is asked for.
        threads: as configured.
        n_processes: that share the processors.
    """
    if threads != "auto":
        return iter(batches)
    return by_fastest_threads(batches, numbers_to_try(MOST_THREADS, n_processes))


def by_fastest_threads(batches: Iterable[T], numbers: list[int]) -> Iterator[T]:
    """Yield batches, with the number of threads that makes and uses a batch in the least time.

    Each number is tried for some batches, again and again, as other programs may take processors.
    Nothing that is learned depends on the number where updates run in C++.

    Args:
        batches: an iterable that makes each batch when it is asked for.
        numbers: of threads.
    """
    rest, end = iter(batches), object()
    trials = numbers * N_TRIALS
    seconds: dict[int, list[float]] = {}
    for i in itertools.cycle(range(len(trials) + N_BETWEEN)):
        if i == 0:
            seconds = {n: [] for n in numbers}
        fastest = min(numbers, key=lambda n: statistics.median(seconds[n] or [math.inf]))
        n_threads = trials[i] if i < len(trials) else fastest
        torch.set_num_threads(n_threads)
        start = time.perf_counter()
        batch = next(rest, end)
        if batch is end:
            return
        yield cast(T, batch)
        seconds[n_threads].append(time.perf_counter() - start)
