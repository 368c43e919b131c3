"""The ceiling of the processor: the rates of one matrix product and of one copy, by torch."""

import statistics
import time
from collections.abc import Callable

import torch

N_SAMPLES, WIDTH = 2400, 128  # of a layer of perceptrons of 128, 128
COPIED = 2**26  # bytes, more than caches hold
N_TRIALS = 20


def ceiling(n_threads: int) -> str:
    """Return the rates of the processor by some threads, as a line of text."""
    samples, weight = torch.rand(N_SAMPLES, WIDTH), torch.rand(WIDTH, WIDTH)
    product = torch.empty(N_SAMPLES, WIDTH)
    source = torch.zeros(COPIED, dtype=torch.uint8)
    target = torch.zeros_like(source)
    flops = 2 * N_SAMPLES * WIDTH**2 / _seconds(lambda: torch.mm(samples, weight, out=product))
    rate = 2 * COPIED / _seconds(lambda: target.copy_(source))  # read and written
    threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
    shape = f"{N_SAMPLES:,} x {WIDTH} x {WIDTH}"
    return (
        f"ceiling of {threads}: {flops / 1e9:.0f} GFLOP/s in a product of {shape}, "
        f"{rate / 1e9:.0f} GB/s in a copy"
    )


def _seconds(run: Callable[[], object]) -> float:
    """Return the median seconds of a run, after one that is not timed."""
    run()
    seconds = []
    for _ in range(N_TRIALS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
