"""What VDN, QMIX and IQL converge to on a game, all joint actions being played equally often.

In every state each of them regresses a table of targets over joint actions on the tables that it
can represent: VDN on sums of the agents' values; QMIX on tables that are monotone in an order of
each agent's actions; IQL on each agent's means over the others' actions.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement, permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from qmix_trl.envs.game_tables import Game

Table = NDArray[np.float64]


def squared_error(fitted: Table, table: Table) -> float:
    """Return the sum over the entries."""
    return float(np.square(fitted - table).sum())


def additive_projection(table: Table) -> Table:
    """Return the sum of the agents' values next to a table [A, .., A], in squares: VDN's.

    As all joint actions weigh the same, it is the table's main effects (analysis of variance).
    """
    agents = range(table.ndim)
    fitted = np.full(table.shape, table.mean())
    for agent in agents:
        others = tuple(other for other in agents if other != agent)
        fitted += table.mean(others, keepdims=True) - table.mean()
    return fitted


def monotone_projections(table: Table) -> list[Table]:
    """Return the monotone table next to a table [A, A] for every order of both agents' actions.

    That of least error comes first: no monotone mixer does better. At the others training may
    stop, for a small change of the agents' values leaves their orders as they are.
    """
    return _in_orders(table, isotonic)


def monotone_projection(table: Table) -> Table:
    """Return the monotone table next to a table [A, A], whatever the order of the actions."""
    return monotone_projections(table)[0]


def isotonic(table: Table) -> Table:
    """Return the table next to another [R, C] that falls neither along rows nor along columns.

    By the max-min formula of isotonic regression (Robertson, Wright and Dykstra 1988, theorem
    1.4.4): an entry is the largest over the upper sets that hold it of the least over the lower
    sets that hold it of the mean of what both hold.
    """
    upper = upper_sets(*table.shape)  # [K, R, C]
    lower = ~upper
    both = upper[:, None] & lower  # [K, K, R, C]
    means = (both * table).sum((-1, -2)) / np.maximum(both.sum((-1, -2)), 1)  # [K, K]
    fitted = np.empty(table.shape)
    for row, column in np.ndindex(*table.shape):
        means_here = means[upper[:, row, column]][:, lower[:, row, column]]
        fitted[row, column] = means_here.min(1).max()
    return fitted


def upper_sets(n_rows: int, n_columns: int) -> NDArray[np.bool_]:
    """Return all sets of places that hold with a place all right of and below it: [K, R, C]."""
    columns = np.arange(n_columns)
    counts = combinations_with_replacement(range(n_columns + 1), n_rows)  # a row never has fewer
    return np.array([[columns >= n_columns - n for n in of_rows] for of_rows in counts])


def supermodular_projection(table: Table) -> Table:
    """Return the monotone table with increasing differences next to a table [A, A].

    That is the least error that ``QMixer`` itself can reach: its ELU is convex and its weights
    are not negative, so that a step up of one agent is worth no less where the other is higher.
    """
    return _in_orders(table, _isotonic_supermodular)[0]


def _isotonic_supermodular(table: Table) -> Table:
    """As ``isotonic``, with increasing differences.

    Such tables are the sums of indicators of "from this row and this column on", none of which
    but the first, a constant, is taken a negative number of times.
    """
    rows, columns = (np.arange(n) for n in table.shape)
    indicators = [
        np.outer(rows >= row, columns >= column).ravel().astype(float)
        for row, column in np.ndindex(*table.shape)
    ]
    spanning = np.stack(indicators, 1)
    least = np.r_[-np.inf, np.zeros(table.size - 1)]
    # An exact active-set method; scipy's nnls stops short of the optimum on some tables with ties.
    taken = lsq_linear(spanning, table.ravel(), (least, np.inf), method="bvls").x
    return (spanning @ taken).reshape(table.shape)


def _in_orders(table: Table, project: Callable[[Table], Table]) -> list[Table]:
    """Return a projection of the table [A, A] for every order of its rows and columns."""
    found = []
    for rows, columns in product(*(permutations(range(n)) for n in table.shape)):
        places = np.ix_(rows, columns)
        fitted = np.empty(table.shape)
        fitted[places] = project(table[places])
        found.append(fitted)
    return sorted(found, key=lambda fitted: squared_error(fitted, table))


def joint_fixed_point(game: Game, gamma: float, project: Callable[[Table], Table]) -> Table:
    """Return Q_tot of every joint action [S, A, .., A].

    In each state it is the projection of the targets, which bootstrap from the largest entry of
    the next state's.

    Args:
        game: that never comes back to a state, and whose actions are all available.
        gamma: the discount per step.
        project: a table onto what the mixer can represent.

    Raises:
        ValueError: if the game comes back to a state.
    """
    reward, next_state = game.reward.double().numpy(), game.next_state.numpy()
    value = np.zeros(game.n_states)
    for _ in range(game.n_states + 1):
        tables = np.stack([project(target) for target in reward + gamma * value[next_state]])
        best = tables.reshape(game.n_states, -1).max(1) * ~game.ends.numpy()
        if np.array_equal(best, value):
            return tables
        value = best
    raise ValueError("expected a game that never comes back to a state")


def independent_fixed_point(game: Game, gamma: float) -> Table:
    """Return Q_a of every agent's actions [S, N, A], each agent learning by itself.

    Args:
        game: as in ``joint_fixed_point``.
        gamma: the discount per step.

    Raises:
        ValueError: if the game comes back to a state.
    """
    reward, next_state = game.reward.double().numpy(), game.next_state.numpy()
    agents = range(game.n_agents)
    value = np.zeros((game.n_states, game.n_agents))
    for _ in range(game.n_states + 1):
        means = []
        for agent in agents:
            targets = reward + gamma * value[next_state, agent]  # [S, A, .., A]
            means.append(targets.mean(tuple(1 + other for other in agents if other != agent)))
        utilities = np.stack(means, 1)  # [S, N, A]
        best = utilities.max(-1) * ~game.ends.numpy()[:, None]
        if np.array_equal(best, value):
            return utilities
        value = best
    raise ValueError("expected a game that never comes back to a state")
