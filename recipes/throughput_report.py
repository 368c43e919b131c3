"""The table and the picture of ``throughput.py``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTHS = (8, 14, 6, 9, 9, 9, 22, 9, 5, 7, 7)
HEADER = (
    "what",
    "scenario",
    "envs",
    "engine",
    "ms/step",
    "TorchRL",
    "times faster (range)",
    "products",
    "ops",
    "build",
    "cached",
)
COLORS = {"kernel": "C0", "inductor": "C1", "eager": "C7"}


def print_table(rows: Sequence[Any], *, header: bool) -> None:
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
                    f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})",
                    f"{row.products_ms:.3f}" if row.products_ms else "",
                    str(row.operations),
                    f"{row.build_s:.1f} s",
                    f"{row.cached_s:.1f} s",
                )
            ),
            flush=True,
        )


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def draw(rows: Sequence[Any], path: Path) -> None:
    """Draw how many times faster each engine is, with the range over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    titles = {"env": "steps and resets", "collect": "collection, GRU of 64"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        chosen = [row for row in rows if row.what == what]
        for i, row in enumerate(chosen):
            median = row.ratio["median"]
            spread = [[median - row.ratio["min"]], [row.ratio["max"] - median]]
            axis.bar(i, median, color=COLORS[row.engine], yerr=spread, capsize=2)
        names = [f"{row.scenario} {row.n_envs}" for row in chosen]
        axis.set_xticks(range(len(chosen)), names, rotation=90, fontsize=7)
        axis.set_title(title)
        axis.set_yscale("log")
        axis.axhline(1, color="black", linewidth=0.8)
    axes[0].set_ylabel("times faster than TorchRL's VmasEnv and Collector")
    axes[1].legend(handles=[Patch(color=c, label=e) for e, c in COLORS.items()], fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
