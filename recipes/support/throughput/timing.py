"""The timing of ``throughput.py``: in rounds, each of which runs all sides one after the other."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from support.throughput.plan import machine
from support.throughput.report import Timing

from qmix_trl.chosen import Chosen
from qmix_trl.errors import ConfigError, one_line

Result = TypeVar("Result")
BASELINE, PRODUCTS = "baseline", "products"  # sides of a case, beside our engines
GIB = 2**30


class Times(NamedTuple):
    """Milliseconds of one step.

    Attributes:
        ms: until the device has done it.
        host_ms: until the call returned; a GPU may still be working then.
    """

    ms: float
    host_ms: float


@dataclass(frozen=True)
class Runner:
    """A side of a comparison, warmed up.

    Attributes:
        run: takes the steps of a round.
        n_steps: their number.
        operations: of torch, in one step.
        how: the implementations that run, by part; none for a baseline.
        parts: measures parts alone; returns numbers by names that end in their unit.
    """

    run: Callable[[], object]
    n_steps: int
    operations: int = 0
    how: dict[str, Chosen] = field(default_factory=dict)
    parts: Callable[[], dict[str, float]] = dict


Make = Callable[[], Runner]


@dataclass(frozen=True)
class Case:
    """A comparison of our engines with a baseline.

    Attributes:
        what: the part that is timed, a key of ``report.TITLES``.
        scenario: of VMAS; of updates, the kind of rows.
        n_envs: the number of environments; of updates, of rows in a batch.
        device: of all sides.
        baseline: its name.
        theirs: makes the baseline.
        ours: by engine, a function that makes our side.
        products: makes the matrix products of a step alone.
        per_step: the frames, or updates, of one step.
        seconds: by engine, the seconds of a first start and of a later one.
    """

    what: str
    scenario: str
    n_envs: int
    device: torch.device
    baseline: str
    theirs: Make
    ours: dict[str, Make]
    products: Make | None = None
    per_step: int = 1
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def label(self, side: str) -> str:
        """Return the name of a side, for messages."""
        return f"{self.what} {self.scenario} {self.n_envs}, {side}"


@dataclass(frozen=True)
class Side:
    """A runner that was made.

    Attributes:
        runner: to time.
        start_s: the seconds to make it and to warm it up.
        peak_gib: the most memory of the GPU that this took; None on the CPU.
    """

    runner: Runner
    start_s: float
    peak_gib: float | None


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations of torch that run while it is active."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations(run: Callable[[], object]) -> int:
    """Return the number of torch's operations in a run."""
    with Operations() as mode:
        run()
    return mode.count


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its work; the CPU has always done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(runner: Runner, device: torch.device) -> Times:
    """Return the times of one step, from one run between two waits for the device."""
    synchronize(device)
    start = time.perf_counter()
    runner.run()
    returned = time.perf_counter()
    synchronize(device)
    end = time.perf_counter()
    scale = 1e3 / runner.n_steps
    return Times((end - start) * scale, (returned - start) * scale)


def part_ms(run: Callable[[], object], n_steps: int, device: torch.device) -> float:
    """Return the median milliseconds of a step over three runs, after one that is not timed."""
    run()
    runner = Runner(run, n_steps)
    return round(statistics.median(timed(runner, device).ms for _ in range(3)), 4)


def made(make: Make, device: torch.device) -> Side:
    """Make a runner; return it with the seconds and the memory that this took."""
    synchronize(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    runner = make()
    synchronize(device)
    seconds = time.perf_counter() - start
    if device.type != "cuda":
        return Side(runner, seconds, None)
    return Side(runner, seconds, (torch.cuda.max_memory_allocated(device) - before) / GIB)


def attempt(name: str, call: Callable[[], Result]) -> Result | None:
    """Return the result of a call; None, and print why, if the device or the engine cannot."""
    try:
        return call()
    except (torch.OutOfMemoryError, ConfigError) as error:
        print(f"{name}: left out: {one_line(error)}", flush=True)
    release()
    return None


def release() -> None:
    """Return unused memory to the GPU, if there is one, for the next side or case."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sides_of(case: Case) -> dict[str, Side]:
    """Return the sides of a case that could be made: baseline, products, and our engines."""
    makes = {**case.ours, BASELINE: case.theirs}  # ours first: a baseline may take all memory left
    if case.products is not None:
        makes[PRODUCTS] = case.products
    sides = {}
    for name, make in makes.items():
        side = attempt(case.label(name), partial(made, make, case.device))
        if side is not None:
            sides[name] = side
    return {name: sides[name] for name in (BASELINE, PRODUCTS, *case.ours) if name in sides}


def interleaved(case: Case, sides: dict[str, Side], rounds: int) -> dict[str, list[Times]]:
    """Return the times of each side's rounds; a side that runs out of memory is removed."""
    times: dict[str, list[Times]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in list(sides):
            runner = sides[name].runner
            one = attempt(case.label(name), partial(timed, runner, case.device))
            if one is None:
                del sides[name], times[name]
            else:
                times[name].append(one)
    return times


def measured(case: Case, rounds: int) -> tuple[list[Timing], dict[str, Side]]:
    """Return a line of the table for each engine of a case, and the sides that were timed."""
    sides = sides_of(case)
    times = interleaved(case, sides, rounds)
    engines = [engine for engine in case.ours if engine in sides]
    return [_line(case, engine, sides, times) for engine in engines], sides


def _line(case: Case, engine: str, sides: dict[str, Side], times: dict[str, list[Times]]) -> Timing:
    mine, theirs = times[engine], times.get(BASELINE, [])
    ratios = [b.ms / a.ms for a, b in zip(mine, theirs, strict=False)]
    ms = statistics.median(one.ms for one in mine)
    side, baseline = sides[engine], sides.get(BASELINE)
    products = times.get(PRODUCTS, [Times(0.0, 0.0)])
    build_s, cached_s = case.seconds.get(engine, (0.0, 0.0))
    return Timing(
        what=case.what,
        scenario=case.scenario,
        n_envs=case.n_envs,
        engine=engine,
        baseline=case.baseline,
        ratio=_spread(ratios) if ratios else None,
        ms=round(ms, 4),
        baseline_ms=round(statistics.median(one.ms for one in theirs), 2) if theirs else None,
        per_second=round(case.per_step / ms * 1e3, 1),
        operations=side.runner.operations,
        products_ms=round(statistics.median(one.ms for one in products), 3),
        build_s=round(build_s, 2),
        cached_s=round(cached_s, 2),
        host_ms=round(statistics.median(one.host_ms for one in mine), 4),
        start_s=round(side.start_s, 2),
        peak_gib=side.peak_gib and round(side.peak_gib, 2),
        baseline_peak_gib=baseline and baseline.peak_gib and round(baseline.peak_gib, 2),
        how=side.runner.how,
        parts=attempt(case.label("parts"), side.runner.parts) or {},
        machine=machine(case.device),
    )


def _spread(ratios: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 2),
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
    }
