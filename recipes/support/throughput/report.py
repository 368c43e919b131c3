"""The table and the picture of ``throughput.py``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.terminal import cells_line, filled

from qmix_trl.chosen import Chosen

WIDTHS = (10, 14, 6, 9, 9, 9, 10, 22, 13, 5, 7, 7)
HEADER = (
    "what",
    "scenario",
    "envs",
    "engine",
    "ms/step",
    "baseline",
    "1/s",
    "times faster (range)",
    "products",
    "ops",
    "build",
    "cached",
)
COLORS = {"kernel": "C0", "inductor": "C1", "eager": "C7"}
TITLES = {
    "env": "steps and resets\n(VmasEnv)",
    "collect": "collection, GRU of 64\n(Collector over VmasEnv)",
    "update-gru": "updates, GRU of 64\n(GRUCell loop)",
    "update-mlp": "updates, perceptron\n(QMixerLoss)",
    "train-1": "training, each frame once\n(Collector, GRUCell loop)",
    "train-4": "training, each frame 4 times\n(Collector, GRUCell loop)",
}


@dataclass(frozen=True)
class Timing:
    """A line of the table: one engine compared with the baseline.

    Milliseconds are of one step of all environments, or of one update; ``per_second`` counts
    frames, or updates. Ratio and baseline are None if the baseline could not run.
    """

    what: str
    scenario: str
    n_envs: int
    engine: str
    baseline: str
    ratio: dict[str, float] | None
    ms: float
    baseline_ms: float | None
    per_second: float
    operations: int  # of torch, in one step
    products_ms: float  # the matrix products alone, by torch; of collection and updates
    build_s: float
    cached_s: float
    host_ms: float  # until the call returned; on a GPU the device may go on
    start_s: float  # to make and to warm up our side
    peak_gib: float | None  # of the GPU's memory that our side took; None on the CPU
    baseline_peak_gib: float | None
    how: dict[str, Chosen]  # the implementations that ran, by part
    parts: dict[str, float]  # parts alone, by names that end in their unit
    machine: dict[str, str]  # names and versions

    @property
    def share(self) -> float:
        """The share of the time that the matrix products alone would take: 1 is the ceiling."""
        return self.products_ms / self.ms


def print_table(timings: Sequence[Timing], *, header: bool, details: bool) -> None:
    """Print the lines, and under each line why a faster implementation did not run.

    Args:
        timings: the lines.
        header: print the headings before.
        details: print implementations, the host's part, memory and parts under each line, too.
    """
    if header:
        print(_line(HEADER))
    for timing in timings:
        print(_line(_cells(timing)), flush=True)
        for part, chosen in timing.how.items():
            if details or chosen.passed_over:
                print(filled(f"    {part}: {chosen}"), flush=True)
        if details:
            print(filled(f"    {_details(timing)}"), flush=True)


def _cells(timing: Timing) -> Sequence[str]:
    ratio = timing.ratio
    return (
        timing.what,
        timing.scenario,
        str(timing.n_envs),
        timing.engine,
        f"{timing.ms:.3f}",
        "" if timing.baseline_ms is None else f"{timing.baseline_ms:.1f}",
        f"{timing.per_second:,.0f}",
        f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})" if ratio else "",
        f"{timing.products_ms:.3f}, {timing.share:.0%}" if timing.products_ms else "",
        str(timing.operations),
        f"{timing.build_s:.1f} s" if timing.build_s else "",
        f"{timing.cached_s:.1f} s" if timing.cached_s else "",
    )


def _details(timing: Timing) -> str:
    memory = (("peak_gib", timing.peak_gib), ("baseline_peak_gib", timing.baseline_peak_gib))
    numbers = {
        "host_ms": timing.host_ms,
        "start_s": timing.start_s,
        **{name: gib for name, gib in memory if gib is not None},
        **timing.parts,
    }
    return ", ".join(f"{name} {value:,.3f}" for name, value in numbers.items())


def _line(cells: Sequence[str]) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)]
    return cells_line(padded, gap=1)


def draw(timings: Sequence[Timing], path: Path) -> None:
    """Draw the median speed-up of each engine, with the range over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    titles = {name: title for name, title in TITLES.items() if any(r.what == name for r in timings)}
    engines = [engine for engine in COLORS if any(timing.engine == engine for timing in timings)]
    width = 0.8 / len(engines)
    size = (3 + 4 * len(titles), 4.5)
    figure, axes = plt.subplots(
        1, len(titles), figsize=size, sharey=True, layout="constrained", squeeze=False
    )
    for axis, (what, title) in zip(axes[0], titles.items(), strict=True):
        chosen = [timing for timing in timings if timing.what == what]
        cases = list(dict.fromkeys((timing.scenario, timing.n_envs) for timing in chosen))
        for timing in chosen:
            shift = (engines.index(timing.engine) - (len(engines) - 1) / 2) * width
            if timing.ratio is None:
                continue
            median, least, most = (timing.ratio[name] for name in ("median", "min", "max"))
            axis.bar(
                cases.index((timing.scenario, timing.n_envs)) + shift,
                median,
                width,
                color=COLORS[timing.engine],
                yerr=[[median - least], [most - median]],
                capsize=2,
            )
        names = [f"{scenario} {n_envs}" for scenario, n_envs in cases]
        axis.set_xticks(range(len(cases)), names, rotation=90, fontsize=8)
        axis.set_title(title)
        axis.set_yscale("log")
        axis.axhline(1, color="black", linewidth=0.8)
    axes[0, 0].set_ylabel("times faster")
    axes[0, -1].legend(handles=[Patch(color=COLORS[e], label=e) for e in engines], fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
