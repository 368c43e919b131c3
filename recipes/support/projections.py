"""The tables that VDN, QMIX and IQL converge to on a game whose joint actions are equally frequent.

In every state each algorithm fits, by least squares, a table of targets over joint actions by one
that it can represent: VDN by a sum of the agents' values; QMIX by a table that is monotone in an
order of each agent's actions; IQL by each agent's means over the others' actions.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement, permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from qmix_trl.envs.game_tables import Game

Table = NDArray[np.float64]
TIE = 1e-12  # an entry that its fit is below by less is fitted exactly
MOST_WEIGHTINGS = 100


def squared_error(fitted: Table, table: Table) -> float:
    """Return the squared error summed over the entries."""
    return float(np.square(fitted - table).sum())


def additive_projection(table: Table) -> Table:
    """Return the sum of agents' values closest to a table [A, .., A] in squared error: VDN's fit.

    As all joint actions have the same weight, it is the table's main effects (analysis of
    variance).
    """
    agents = range(table.ndim)
    fitted = np.full(table.shape, table.mean())
    for agent in agents:
        others = tuple(other for other in agents if other != agent)
        fitted += table.mean(others, keepdims=True) - table.mean()
    return fitted


def monotone_projections(table: Table) -> list[Table]:
    """Return the monotone table closest to a table [A, A], for every order of both agents' actions.

    The first has the least error: no monotone mixer does better. Training may stop at any other,
    because a small change of the agents' values does not change their orders.
    """
    return _in_orders(table, isotonic)


def monotone_projection(table: Table) -> Table:
    """Return the monotone table closest to a table [A, A], in the best order of the actions."""
    return monotone_projections(table)[0]


def isotonic(table: Table, weights: Table | None = None) -> Table:
    """Return the table closest to a table [I, J] that decreases along neither axis.

    The squared errors are weighted by ``weights`` [I, J], above 0; None weights all alike.

    By the max-min formula of isotonic regression (Robertson, Wright and Dykstra 1988, theorem
    1.4.4): ``fit[i, j] = max over U containing (i, j) of min over L containing (i, j) of
    mean(table[U & L])``, with U the upper sets of places and L their complements.
    """
    weights = np.ones(table.shape) if weights is None else weights
    upper = upper_sets(*table.shape)  # [K, I, J]
    lower = ~upper
    both = upper[:, None] & lower  # [K, K, I, J]
    totals = (both * weights).sum((-1, -2))  # [K, K], 0 where U and L share no place
    means = (both * (weights * table)).sum((-1, -2)) / np.where(totals > 0, totals, 1)  # [K, K]
    fitted = np.empty(table.shape)
    for i, j in np.ndindex(*table.shape):
        fitted[i, j] = means[upper[:, i, j]][:, lower[:, i, j]].min(1).max()
    return fitted


def upper_sets(n_lines: int, n_columns: int) -> NDArray[np.bool_]:
    """Return all upper sets of places: with a place, they have all places right of and below it.

    Returns:
        bool [K, n_lines, n_columns].
    """
    columns = np.arange(n_columns)
    # A line has at least as many places of the set as the line above it.
    counts = combinations_with_replacement(range(n_columns + 1), n_lines)
    return np.array([[columns >= n_columns - n for n in of_lines] for of_lines in counts])


def central_fixed_points(table: Table, alpha: float) -> list[Table]:
    """Return the monotone tables of CW-QMIX [A, A], one for every order of both agents' actions.

    The greedy joint action, the last one of an order, and those that pay more weigh 1, all others
    alpha (Rashid et al. 2020, arXiv 2006.10800).
    """

    def project(ordered: Table) -> Table:
        weights = np.where(ordered > ordered[-1, -1], 1, alpha)
        weights[-1, -1] = 1
        return isotonic(ordered, weights)

    return _in_orders(table, project)


def optimistic_fixed_points(table: Table, alpha: float) -> list[Table]:
    """Return the monotone tables of OW-QMIX [A, A], one for every order of both agents' actions.

    Entries that their fit is below weigh 1, all others alpha (the same paper). This loss is convex
    in the fit; weights are computed and the table is fitted again until no weight changes.

    Raises:
        ArithmeticError: if weights do not settle.
    """

    def project(ordered: Table) -> Table:
        fitted, before = isotonic(ordered), np.zeros(0)
        for _ in range(MOST_WEIGHTINGS):
            weights = np.where(fitted < ordered - TIE, 1, alpha)
            if np.array_equal(weights, before):
                return fitted
            fitted, before = isotonic(ordered, weights), weights
        raise ArithmeticError(f"expected weights that settle, got others for {ordered.tolist()}")

    return _in_orders(table, project)


def supermodular_projection(table: Table) -> Table:
    """Return the monotone table with increasing differences closest to a table [A, A].

    ``QMixer`` itself can do no better: its ELU is convex and its weights are not negative, so an
    increase of one agent's value is worth no less where the other's value is higher.
    """
    return _in_orders(table, _isotonic_supermodular)[0]


def _isotonic_supermodular(table: Table) -> Table:
    """Return the table closest to a table [I, J] that is isotonic with increasing differences.

    Such tables are sums of indicators of "from this line and this column on", with coefficients
    that are not negative, except that of the first indicator, which is constant.
    """
    lines, columns = (np.arange(n) for n in table.shape)
    indicators = [
        np.outer(lines >= i, columns >= j).ravel().astype(float)
        for i, j in np.ndindex(*table.shape)
    ]
    spanning = np.stack(indicators, 1)
    least = np.r_[-np.inf, np.zeros(table.size - 1)]
    # An exact active-set method; scipy's nnls stops short of the optimum on some tables with ties.
    coefficients = lsq_linear(spanning, table.ravel(), (least, np.inf), method="bvls").x
    return (spanning @ coefficients).reshape(table.shape)


def _in_orders(table: Table, project: Callable[[Table], Table]) -> list[Table]:
    """Return a projection of the table [A, A] for every order of lines and columns, best first."""
    found = []
    for lines, columns in product(*(permutations(range(n)) for n in table.shape)):
        places = np.ix_(lines, columns)
        fitted = np.empty(table.shape)
        fitted[places] = project(table[places])
        found.append(fitted)
    return sorted(found, key=lambda fitted: squared_error(fitted, table))


def joint_fixed_point(game: Game, gamma: float, project: Callable[[Table], Table]) -> Table:
    """Return Q_tot of every joint action [S, A, .., A].

    In each state it is the projection of the targets; these bootstrap from the largest entry of
    the next state's table.

    Args:
        game: never returns to a state; all its actions are available.
        gamma: the discount per step.
        project: projects a table onto those that the mixer can represent.

    Raises:
        ValueError: if the game returns to a state.
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
    """Return Q_a of every agent's actions [S, N, A] under independent learning.

    Args:
        game: as in ``joint_fixed_point``.
        gamma: the discount per step.

    Raises:
        ValueError: if the game returns to a state.
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
