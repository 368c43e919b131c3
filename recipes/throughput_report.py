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
    cases = list(dict.fromkeys((row.scenario, row.n_envs) for row in rows))
    engines = [engine for engine in COLORS if any(row.engine == engine for row in rows)]
    width = 0.8 / len(engines)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        for row in (row for row in rows if row.what == what):
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
    axes[0].set_ylabel("times faster than TorchRL")
    axes[1].legend(handles=[Patch(color=COLORS[e], label=e) for e in engines], fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
