"""The timing of ``throughput.py``: in rounds, each of which runs both sides one after the other."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from support.throughput.report import Timing

Timed = Callable[[], float]  # runs for a while and returns milliseconds a step
NOTHING: Timed = lambda: 0.0  # noqa: E731


@dataclass
class Case:
    """A comparison of our engines with a baseline.

    Attributes:
        what: the part that is timed, a key of ``report.TITLES``.
        scenario: of VMAS; of updates, the kind of rows.
        n_envs: the number of environments; of updates, of rows in a batch.
        baseline: its name.
        theirs: times the baseline.
        ours: by engine, a function that times it, and its operations of torch in a step.
        products: times the matrix products of a step alone.
        per_step: the frames, or updates, of one step.
        seconds: by engine, the seconds of a first start and of a later one.
    """

    what: str
    scenario: str
    n_envs: int
    baseline: str
    theirs: Timed
    ours: dict[str, tuple[Timed, int]]
    products: Timed = NOTHING
    per_step: int = 1
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations of torch that run while it is active."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def timed(run: Callable[[], object], n_steps: int) -> Timed:
    """Return a function that runs once and returns milliseconds a step."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / n_steps * 1e3

    return measure


def operations(run: Callable[[], object]) -> int:
    """Return the number of torch's operations in a run."""
    with Operations() as mode:
        run()
    return mode.count


def measured(case: Case, rounds: int) -> Iterator[Timing]:
    """Yield a line of the table for each engine of a case, timed in ``rounds`` rounds."""
    times = [
        (case.theirs(), case.products(), {name: ms() for name, (ms, _) in case.ours.items()})
        for _ in range(rounds)
    ]
    for engine, (_, count) in case.ours.items():
        ratios = [theirs / mine[engine] for theirs, _, mine in times]
        ms = statistics.median(mine[engine] for _, _, mine in times)
        build_s, cached_s = case.seconds.get(engine, (0.0, 0.0))
        yield Timing(
            what=case.what,
            scenario=case.scenario,
            n_envs=case.n_envs,
            engine=engine,
            baseline=case.baseline,
            ratio={
                "median": round(statistics.median(ratios), 2),
                "min": round(min(ratios), 2),
                "max": round(max(ratios), 2),
            },
            ms=round(ms, 4),
            baseline_ms=round(statistics.median(theirs for theirs, _, _ in times), 2),
            per_second=round(case.per_step / ms * 1e3, 1),
            operations=count,
            products_ms=round(statistics.median(least for _, least, _ in times), 3),
            build_s=round(build_s, 2),
            cached_s=round(cached_s, 2),
        )
