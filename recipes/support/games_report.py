"""The report of ``games.py``, printed and drawn: learned tables next to exact ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from support.projections import (
    Table,
    additive_projection,
    joint_fixed_point,
    monotone_projection,
    monotone_projections,
    squared_error,
    supermodular_projection,
)
from support.terminal import cells_line, filled

from qmix_trl.envs.game_tables import Game

MOST_SHOWN = 4  # states; of a game with more, means are shown instead of tables


@dataclass(frozen=True)
class Outcome:
    """The result of an algorithm in a game, for every seed.

    Attributes:
        tables: of each seed: Q_tot [S, A, A], or every agent's Q_a [S, N, A].
        greedy_return: of each seed, the mean greedy return.
        exact: the table that training should reach, of the same shape.
        seconds: of all seeds together.
    """

    tables: Sequence[Table]
    greedy_return: Sequence[float]
    exact: Table
    seconds: float


@dataclass(frozen=True)
class GameReport:
    """A game of two agents, and the outcome of each algorithm."""

    name: str
    game: Game
    gamma: float
    outcomes: dict[str, Outcome]

    @property
    def deciding(self) -> np.ndarray:
        """The states in which the agents act: those that do not end an episode."""
        return np.flatnonzero(~self.game.ends.numpy())

    @property
    def is_shown(self) -> bool:
        """Whether the tables of every state are shown."""
        return len(self.deciding) <= MOST_SHOWN

    def optimal(self, gamma: float) -> Table:
        """Return the optimal Q of every joint action [S, A, A]."""
        return joint_fixed_point(self.game, gamma, lambda table: table)

    def squared_errors(self, tables: Iterable[Table]) -> list[float]:
        """Return the squared error of each Q_tot [S, A, A], a mean over the states."""
        optimal, places = self.optimal(self.gamma), self.deciding
        return [squared_error(table[places], optimal[places]) / len(places) for table in tables]

    def summary(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Return {algorithm: {seeds, tables [seed][state][u_1][u_2], greedy_return, ..}}."""
        places = self.deciding
        return {
            algorithm: {
                "seeds": list(seeds),
                "tables": [table[places].tolist() for table in outcome.tables],
                "greedy_return": list(outcome.greedy_return),
                "exact": outcome.exact[places].tolist(),
                "seconds": outcome.seconds,
            }
            for algorithm, outcome in self.outcomes.items()
        }


def show(report: GameReport) -> None:
    """Print the outcomes of a game."""
    most = report.optimal(1.0)[report.game.starts.numpy()].max((1, 2)).mean()
    seconds = sum(outcome.seconds for outcome in report.outcomes.values())
    print(f"\n{report.name}: a return of {most:.2f} is possible; {seconds:.0f} s")
    for algorithm, outcome in report.outcomes.items():
        show_measures(
            algorithm,
            greedy_return=outcome.greedy_return,
            # Independent learners have no joint value.
            squared_error=report.squared_errors(outcome.tables) if algorithm != "iql" else [],
        )
        if report.is_shown:
            for kind, tables in (("learned", outcome.tables[0]), ("exact", outcome.exact)):
                show_tables(kind, tables[report.deciding])
    if not report.is_shown:
        show_projections(report)
    elif len(report.deciding) == 1:
        show_orders(report)


def show_measures(name: str, **measures: Sequence[float]) -> None:
    """Print the measures of a table, each a number for every seed."""
    for i, (measure, values) in enumerate(measures.items()):
        if len(values):
            called = measure.replace("_", " ")
            cells = f"  {'' if i else name:<20}", f"{called:<14}{numbers(values)}"
            print(cells_line(cells))


def numbers(values: Iterable[float]) -> str:
    """Return numbers in one line, aligned."""
    return " ".join(f"{value:7.2f}" for value in values)


def show_tables(kind: str, tables: Table) -> None:
    """Print tables [S, I, J] side by side."""
    for i in range(tables.shape[1]):
        line = "   |".join(numbers(table[i]) for table in tables)
        print(f"    {kind if i == 0 else '':<10}{line}")


def show_orders(report: GameReport) -> None:
    """Print the errors of the monotone tables closest to the payoffs, by order of the actions."""
    payoff = report.optimal(report.gamma)[report.deciding[0]]
    errors = {round(squared_error(table, payoff), 2) for table in monotone_projections(payoff)}
    listed = " ".join(f"{error:.2f}" for error in sorted(errors))
    print(filled(f"  errors of monotone tables by order: {listed}"))


def show_projections(report: GameReport) -> None:
    """Print the greedy returns and the errors of the exact projections of the payoffs."""
    payoffs = report.optimal(report.gamma)[report.deciding]
    projections: dict[str, Callable[[Table], Table]] = {
        "best sum": additive_projection,
        "best monotone table": monotone_projection,
        "best within QMixer": supermodular_projection,
    }
    for name, project in projections.items():
        tables = [project(payoff) for payoff in payoffs]
        pairs = list(zip(tables, payoffs, strict=True))
        show_measures(
            name,
            greedy_return=[np.mean([payoff.flat[table.argmax()] for table, payoff in pairs])],
            squared_error=[np.mean([squared_error(*pair) for pair in pairs])],
        )


def draw(reports: Sequence[GameReport], path: Path) -> None:
    """Draw the learned and the exact tables of the games whose tables are shown."""
    shown = [(report, state) for report in reports if report.is_shown for state in report.deciding]
    if not shown:
        return
    algorithms = shown[0][0].outcomes
    titles = ["optimal", *(f"{a}, {kind}" for a in algorithms for kind in ("learned", "exact"))]
    figure = Figure(figsize=(1.4 * len(titles), 0.6 + 1.4 * len(shown)), layout="constrained")
    figure.suptitle(
        "Q_tot: a line for each action of the first agent, a column for each of the second; "
        "iql: Q_a, a line for each agent",
        fontsize=9,
    )
    axes = figure.subplots(len(shown), len(titles), squeeze=False)
    for line, (report, state) in zip(axes, shown, strict=True):
        optimal = report.optimal(report.gamma)
        tables = [optimal[state]]
        for outcome in report.outcomes.values():
            tables += [outcome.tables[0][state], outcome.exact[state]]
        colours = Normalize(optimal[report.deciding].min(), optimal[report.deciding].max())
        for ax, table in zip(line, tables, strict=True):
            draw_table(ax, table, colours)
        line[0].set_ylabel(f"{report.name}\nstate {state}", fontsize=8)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_table(ax: Axes, table: Table, colours: Normalize) -> None:
    """Draw a table as a heat map with its numbers."""
    ax.imshow(table, cmap="viridis", norm=colours)
    ax.set_xticks([])
    ax.set_yticks([])
    for (i, j), value in np.ndenumerate(table):
        ink = "white" if colours(value) < 0.5 else "black"
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
