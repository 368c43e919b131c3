"""The table and the picture of ``throughput.py``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTHS = (10, 14, 6, 9, 9, 9, 10, 22, 9, 5, 7, 7)
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
class Row:
    """One engine beside the baseline.

    Milliseconds are of one step of all environments, or of one update; ``per_second`` are frames,
    or updates.
    """

    what: str
    scenario: str
    n_envs: int
    engine: str
    baseline: str
    ratio: dict[str, float]
    ms: float
    baseline_ms: float
    per_second: float
    operations: int  # of torch, in one step
    products_ms: float  # of collection: the matrix products of its network alone, by torch
    build_s: float
    cached_s: float


def print_table(rows: Sequence[Row], *, header: bool) -> None:
    """Print one line a row."""
    if header:
        print(_line(HEADER))
    for row in rows:
        ratio = row.ratio
        print(
            _line(
                (
                    row.what,
                    row.scenario,
                    str(row.n_envs),
                    row.engine,
                    f"{row.ms:.3f}",
                    f"{row.baseline_ms:.1f}",
                    f"{row.per_second:,.0f}",
                    f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})",
                    f"{row.products_ms:.3f}" if row.products_ms else "",
                    str(row.operations),
                    f"{row.build_s:.1f} s" if row.build_s else "",
                    f"{row.cached_s:.1f} s" if row.cached_s else "",
                )
            ),
            flush=True,
        )


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw how many times faster each engine is, with the range over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    titles = {name: title for name, title in TITLES.items() if any(r.what == name for r in rows)}
    engines = [engine for engine in COLORS if any(row.engine == engine for row in rows)]
    width = 0.8 / len(engines)
    size = (3 + 4 * len(titles), 4.5)
    figure, axes = plt.subplots(
        1, len(titles), figsize=size, sharey=True, layout="constrained", squeeze=False
    )
    for axis, (what, title) in zip(axes[0], titles.items(), strict=True):
        chosen = [row for row in rows if row.what == what]
        cases = list(dict.fromkeys((row.scenario, row.n_envs) for row in chosen))
        for row in chosen:
            shift = (engines.index(row.engine) - (len(engines) - 1) / 2) * width
            median, least, most = (row.ratio[name] for name in ("median", "min", "max"))
            axis.bar(
                cases.index((row.scenario, row.n_envs)) + shift,
                median,
                width,
                color=COLORS[row.engine],
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
