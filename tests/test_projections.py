"""Projections and fixed points, against numbers worked by hand and general solvers."""

from itertools import permutations, product
from math import comb

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from support.projections import (
    additive_projection,
    central_fixed_points,
    independent_fixed_point,
    isotonic,
    joint_fixed_point,
    monotone_projection,
    monotone_projections,
    optimistic_fixed_points,
    squared_error,
    supermodular_projection,
    upper_sets,
)

from qmix_trl.envs.game_tables import Game, matrix, memory, two_step

CLIMBING = np.array([[8.0, -12, -12], [-12, 0, 0], [-12, 0, 0]])
SHAPES = [(2, 2), (2, 3), (3, 3), (4, 2), (4, 4)]


def random_tables(*shape, n=10):
    """Return n random tables: half of integers, which have ties, half of normal numbers."""
    generator = np.random.default_rng(0)
    ties = generator.integers(-3, 4, (n // 2, *shape)).astype(float)
    return [*ties, *generator.normal(size=(n - n // 2, *shape))]


def lowest_step(table):
    """Return the smallest difference of neighbouring entries along any axis."""
    return min(np.diff(table, axis=a).min(initial=np.inf) for a in range(table.ndim))


def sorted_by_sums(table):
    """Return a table [R, C] with its lines and columns sorted by their sums."""
    return table[np.ix_(table.sum(1).argsort(), table.sum(0).argsort())]


def two_places():
    """Return a game of one agent that is paid 1 for staying and 3 for going to the end.

    The table of rewards holds 5 at the end, which no episode earns.
    """
    return Game(
        reward=torch.tensor([[1.0, 3.0], [5.0, 5.0]]),
        next_state=torch.tensor([[0, 1], [1, 1]]),
        ends=torch.tensor([False, True]),
        starts=torch.tensor([0]),
        observation=torch.eye(2)[:, None],
    )


def test_the_squared_error_is_the_sum_over_the_entries():
    # 1 + 0 + 4 + 9
    assert squared_error(np.array([[1.0, 2], [3, 4]]), np.array([[0.0, 2], [5, 1]])) == 14


# ---------------------------------------------------------------------- sums


@pytest.mark.parametrize("shape", [(4,), (2, 2), (3, 4), (2, 3, 4), (3, 1, 2)])
def test_the_additive_projection_is_least_squares_on_dummy_columns(shape):
    columns = [
        (np.indices(shape)[agent] == action).ravel().astype(float)
        for agent, n_actions in enumerate(shape)
        for action in range(n_actions)
    ]
    dummies = np.stack(columns, 1)
    for table in random_tables(*shape):
        values = np.linalg.lstsq(dummies, table.ravel())[0]
        np.testing.assert_allclose(additive_projection(table).ravel(), dummies @ values, atol=1e-12)


def test_the_additive_projection_of_an_additive_table_is_itself():
    table = np.add.outer([1.0, 5, -2], [0.5, 3])
    np.testing.assert_allclose(additive_projection(table), table, atol=1e-14)


# ---------------------------------------------------------------------- monotone tables


@pytest.mark.parametrize(
    ("row", "fitted"),
    [
        ([1, 2, 2, 5], [1, 2, 2, 5]),
        ([7], [7]),
        ([3, 1], [2, 2]),
        ([1, 3, 2, 4], [1, 2.5, 2.5, 4]),
        # 5 and 3 are pooled to 4. That exceeds the next entry, 1, so all three are pooled to 3.
        ([1, 5, 3, 1, 4], [1, 3, 3, 3, 4]),
        ([4, 3, 2, 1], [2.5] * 4),
    ],
)
def test_isotonic_pools_adjacent_violators_of_a_line_or_column(row, fitted):
    row, fitted = np.array([row], dtype=float), np.array([fitted], dtype=float)
    np.testing.assert_allclose(isotonic(row), fitted)
    np.testing.assert_allclose(isotonic(row.T), fitted.T)


@pytest.mark.parametrize(
    ("table", "fitted"),
    [
        ([[0, 1], [1, 8]], [[0, 1], [1, 8]]),
        ([[1, 4], [2, 3]], [[1, 3.5], [2, 3.5]]),  # 4 above 3
        ([[3, 1], [2, 4]], [[2, 2], [2, 4]]),  # 3 above 1 and 2
        ([[4, 3], [2, 1]], [[2.5, 2.5], [2.5, 2.5]]),
        (
            [[9, 0], [5, 4]],
            [[4.5, 4.5], [4.5, 4.5]],
        ),  # 9 and 0, and 5 and 4, are pooled
        ([[2, 0], [7, 5]], [[1, 1], [6, 6]]),
    ],
)
def test_isotonic_worked_by_hand(table, fitted):
    np.testing.assert_allclose(isotonic(np.array(table, dtype=float)), fitted)


def pool_adjacent_violators(row):
    """Return the nearest rising sequence, by merging neighbours while they fall."""
    pools = []
    for entry in row:
        pools.append([entry])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return np.concatenate([[np.mean(pool)] * len(pool) for pool in pools])


def slow_isotonic(table):
    """Project on rising lines and columns alternately (Dykstra and Robertson 1982)."""
    fitted, of_rows, of_columns, before = table, 0, 0, None
    while before is None or np.abs(fitted - before).max() > 1e-9:
        before = fitted
        rows = np.apply_along_axis(pool_adjacent_violators, 1, fitted + of_rows)
        of_rows = fitted + of_rows - rows
        fitted = np.apply_along_axis(pool_adjacent_violators, 0, rows + of_columns)
        of_columns = rows + of_columns - fitted
    return fitted


@pytest.mark.parametrize("shape", SHAPES)
def test_isotonic_is_the_nearest_monotone_table(shape):
    for table in random_tables(*shape):
        fitted = isotonic(table)
        assert lowest_step(fitted) >= -1e-12
        np.testing.assert_allclose(fitted, slow_isotonic(table), atol=1e-5)
        np.testing.assert_allclose(isotonic(fitted), fitted, atol=1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (1, 4), (4, 1), (3, 4)])
def test_upper_sets_are_complete_and_closed_upwards(shape):
    n_rows, n_columns = shape
    sets = upper_sets(n_rows, n_columns)
    # The border of a set is a path of R steps down and C steps to the right.
    assert len(sets) == comb(n_rows + n_columns, n_rows)
    assert len({of.tobytes() for of in sets}) == len(sets)
    for of, row, column in product(sets, range(n_rows), range(n_columns)):
        assert not of[row, column] or of[row:, column:].all()


def test_the_monotone_projections_of_a_published_payoff():
    fitted = monotone_projections(CLIMBING)
    errors = [squared_error(table, CLIMBING) for table in fitted]
    assert len(errors) == 36  # 3! orders of the rows, 3! of the columns
    assert errors == sorted(errors)
    # With action 0 of both agents last, 8 stays; four -12 and four 0 are pooled at -6. The error
    # is 8 * 36 = 288.
    assert errors[0] == pytest.approx(288)
    np.testing.assert_allclose(fitted[0], [[8, -6, -6], [-6, -6, -6], [-6, -6, -6]])
    assert monotone_projection(CLIMBING).tolist() == fitted[0].tolist()
    # With both first, 8 and four -12 are pooled at -8: 16^2 + 4 * 4^2 = 320. With one first and
    # the other last, two -12 stay; 8, two -12 and four 0 are pooled at -16/7. The error is
    # 64 + 2 * 144 - 7 (16/7)^2 = 2208/7 = 315.43.
    for published in (315.43, 320):
        assert min(abs(error - published) for error in errors) < 0.005


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 3)])
def test_the_monotone_projection_of_a_table_monotone_in_some_order_is_itself(shape):
    risen = np.sort(np.sort(np.random.default_rng(0).normal(size=shape), 0), 1)
    orders = (permutations(range(n)) for n in shape)
    for places in product(*orders):
        table = risen[np.ix_(*places)]
        np.testing.assert_allclose(monotone_projection(table), table, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (3, 3)])
def test_monotone_projections_are_the_nearest_tables_of_each_order(shape):
    for table in random_tables(*shape, n=4):
        slow = []
        for order in product(*(permutations(range(n)) for n in shape)):
            ordered = table[np.ix_(*order)]
            slow.append(squared_error(isotonic(ordered), ordered))
        errors = [squared_error(fitted, table) for fitted in monotone_projections(table)]
        np.testing.assert_allclose(errors, sorted(slow), atol=1e-9)


# ---------------------------------------------------------------------- increasing differences


def test_the_supermodular_projection_of_or_is_its_additive_one():
    # The first agent's step is worth 1 and then 0, where it may not become less: the best fit is
    # a constant step, and an additive table. Lines and columns have means .5 and 1; the mean is
    # .75.
    fitted = supermodular_projection(np.array([[0.0, 1], [1, 1]]))
    np.testing.assert_allclose(fitted, [[0.25, 0.75], [0.75, 1.25]], atol=1e-12)
    assert squared_error(fitted, np.array([[0.0, 1], [1, 1]])) == pytest.approx(4 * 0.25**2)


@pytest.mark.parametrize(
    "table", [[[0, 1], [1, 8]], [[-5, -5, -5], [-5, -4, -2], [-4, -3, 3]], [[2, 2, 7]], [[-3]]]
)
def test_the_supermodular_projection_of_a_supermodular_table_is_itself_in_any_order(table):
    table = np.array(table, dtype=float)
    for rows, columns in product(*(permutations(range(n)) for n in table.shape)):
        given = table[np.ix_(rows, columns)]
        np.testing.assert_allclose(supermodular_projection(given), given, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 3), (4, 3)])
def test_a_supermodular_projection_has_increasing_differences(shape):
    for table in random_tables(*shape, n=6):
        fitted = supermodular_projection(table)
        risen = sorted_by_sums(fitted)
        assert lowest_step(risen) >= -1e-9
        assert np.diff(np.diff(risen, axis=0), axis=1).min() >= -1e-9
        error = squared_error(fitted, table)
        # Supermodular tables are monotone, and additive tables are supermodular.
        assert error >= squared_error(monotone_projection(table), table) - 1e-9
        assert error <= squared_error(additive_projection(table), table) + 1e-9


def test_a_supermodular_projection_is_as_near_as_a_table_worked_by_hand():
    # Columns in the order 1, 0, 2 and lines in the order 1, 0 are [[0, -1, -1], [-3, 0, 0]].
    # Pooling 0 and -3 makes [[-1.5, -1, -1], [-1.5, 0, 0]] with steps of 0 and then 1; its error
    # is 2 * 1.5^2 = 4.5.
    table = np.array([[0.0, -3, 0], [-1, 0, -1]])
    assert squared_error(supermodular_projection(table), table) <= 4.5 + 1e-9


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 3)])
def test_a_general_solver_finds_no_nearer_supermodular_table(shape):
    def at_least_zero(flat):
        table = flat.reshape(shape)
        differences = np.diff(np.diff(table, axis=0), axis=1)
        steps = np.diff(table, axis=0)[:, 0], np.diff(table, axis=1)[0], differences.ravel()
        return np.concatenate(steps)

    for table in random_tables(*shape, n=4):
        slow = []
        for order in product(*(permutations(range(n)) for n in shape)):
            target = table[np.ix_(*order)].ravel()
            found = minimize(
                lambda flat, target=target: np.square(flat - target).sum(),
                np.zeros_like(target),
                constraints={"type": "ineq", "fun": at_least_zero},
                method="SLSQP",
            )
            slow.append(found.fun)
        error = squared_error(supermodular_projection(table), table)
        assert error == pytest.approx(min(slow), abs=1e-5)


# ---------------------------------------------------------------------- fixed points

# Rewards of states 1 (2A) and 2 (2B) of the two-step game; gamma is 0.99 from state 0.
OF_2A, OF_2B = [[7, 7], [7, 7]], [[0, 1], [1, 8]]
NOTHING = [[0, 0], [0, 0]]


def assert_tables(got, expected):
    """Assert that a fixed point equals a table worked by hand."""
    np.testing.assert_allclose(got, np.array(expected, dtype=float), atol=1e-12)


def test_vdn_on_two_step_worked_by_hand():
    # State 2B: lines and columns have means .5 and 4.5, the mean is 2.5: .5 + .5 - 2.5 = -1.5 etc.
    # State 0: .99 * 7 = 6.93 and .99 * 6.5 = 6.435 for all actions of the second agent: additive.
    expected = [[[6.93, 6.93], [6.435, 6.435]], OF_2A, [[-1.5, 2.5], [2.5, 6.5]], NOTHING]
    assert_tables(joint_fixed_point(two_step(), 0.99, additive_projection), expected)


@pytest.mark.parametrize(
    "project", [monotone_projection, supermodular_projection, lambda table: table]
)
def test_qmix_on_two_step_has_the_true_values(project):
    # 2B is monotone with increasing differences, 1 and then 7. State 0: .99 * 8 = 7.92.
    expected = [[[6.93, 6.93], [7.92, 7.92]], OF_2A, OF_2B, NOTHING]
    assert_tables(joint_fixed_point(two_step(), 0.99, project), expected)


def test_iql_on_two_step_worked_by_hand():
    # State 2B: each agent's actions are worth .5 and 4.5 on average. State 0: the first agent's
    # are worth .99 * 7 = 6.93 and .99 * 4.5 = 4.455, both of the second agent's
    # (6.93 + 4.455) / 2 = 5.6925.
    expected = [
        [[6.93, 4.455], [5.6925, 5.6925]],
        OF_2A,
        [[0.5, 4.5], [0.5, 4.5]],
        NOTHING,
    ]
    assert_tables(independent_fixed_point(two_step(), 0.99), expected)


def test_iql_averages_over_the_other_agents():
    # Means of [[1, 2, 3], [4, 9, 11]]: lines 2, 8; columns 2.5, 5.5, 7. The first agent's third
    # action pays 0, so columns have 2/3 of these means.
    values = independent_fixed_point(matrix(payoff=[[1, 2, 3], [4, 9, 11], [0, 0, 0]]), 0.9)
    assert_tables(values[0], [[2, 8, 0], [5 / 3, 11 / 3, 14 / 3]])
    # Action 1 of three agents earns 1, 10 and 100; half of it counts for each of the others.
    payoff = [[[u + 10 * v + 100 * w for w in (0, 1)] for v in (0, 1)] for u in (0, 1)]
    values = independent_fixed_point(matrix(payoff=payoff), 0.9)
    assert_tables(values[0], [[55, 56], [50.5, 60.5], [5.5, 105.5]])


def test_iql_bootstraps_from_each_agents_own_best():
    # State 0 leads to state 1, which pays [[0, 4], [2, 8]]: lines have means 2 and 5, columns 1
    # and 6. With gamma 0.5, state 0 is worth half of 5 and half of 6.
    game = Game(
        reward=torch.tensor([[[0.0, 0], [0, 0]], [[0, 4], [2, 8]], [[0, 0], [0, 0]]]),
        next_state=torch.tensor([1, 2, 2]).reshape(3, 1, 1).expand(3, 2, 2),
        ends=torch.tensor([False, False, True]),
        starts=torch.tensor([0]),
        observation=torch.eye(3).unsqueeze(1).expand(3, 2, 3),
    )
    expected = [[[2.5, 2.5], [3, 3]], [[2, 5], [1, 6]], NOTHING]
    assert_tables(independent_fixed_point(game, 0.5), expected)


def test_vdn_has_the_true_values_of_additive_payoffs_of_three_agents():
    payoff = [[[u + 10 * v + 100 * w for w in (0, 1)] for v in (0, 1)] for u in (0, 1)]
    values = joint_fixed_point(matrix(payoff=payoff), 0.9, additive_projection)
    assert_tables(values[0], payoff)


def test_a_fixed_point_bootstraps_from_a_state_to_itself_but_not_from_the_end():
    # Going is worth 3, and staying 1 + .5 * 3, as going is best afterwards. The end belongs to no
    # episode: its rewards stand alone, and nothing bootstraps from them.
    expected = [[2.5, 3], [5, 5]]
    assert_tables(joint_fixed_point(two_places(), 0.5, lambda table: table), expected)
    assert_tables(independent_fixed_point(two_places(), 0.5)[:, 0], expected)


def test_the_best_of_a_memory_game_is_its_discounted_payment():
    # Naming the cue earns 1 at the third step: .9^2 at the first step, .9 at the second.
    game = memory(delay=2)
    best = joint_fixed_point(game, 0.9, lambda table: table).max((1, 2))
    assert best.tolist() == pytest.approx([0.81, 0.81, 0.9, 0.9, 1, 1, 0])


def test_tables_of_integers_are_projected_as_floats():
    assert isotonic(np.array([[3, 2]])).tolist() == [[2.5, 2.5]]
    assert additive_projection(np.array([[0, 1], [1, 1]])).tolist() == [[0.25, 0.75], [0.75, 1.25]]


@pytest.mark.parametrize(
    "solve",
    [
        lambda game: independent_fixed_point(game, 0.99),
        lambda game: joint_fixed_point(game, 0.99, additive_projection),
    ],
)
def test_a_game_that_returns_to_a_state_is_refused(solve):
    back = Game(
        reward=torch.ones(2, 2, 2),
        next_state=torch.tensor([[[0, 0], [0, 1]], [[1, 1], [1, 1]]]),
        ends=torch.tensor([False, True]),
        starts=torch.tensor([0]),
        observation=torch.eye(2)[:, None].expand(2, 2, 2),
    )
    with pytest.raises(ValueError, match="never comes back to a state"):
        solve(back)


# ---------------------------------------------------------------------- weighted tables


def test_the_weighted_fixed_points_of_a_published_payoff():
    # The joint action (0, 0) is the greedy one and pays most: 8 stays. Of CW all others weigh
    # alike: four -12 and four 0 have the mean -6. Of OW the zeros, above the fit x, weigh ten times
    # as much as the -12s: 4 (-12 - x) + 40 (0 - x) = 0, so x = -12/11.
    for tables, others in (
        (central_fixed_points(CLIMBING, 0.1), -6),
        (optimistic_fixed_points(CLIMBING, 0.1), -12 / 11),
    ):
        expected = np.full((3, 3), others, dtype=float)
        expected[0, 0] = 8
        assert any(np.allclose(table, expected, atol=1e-12) for table in tables)
        assert len(tables) == 36


@pytest.mark.parametrize("points", [central_fixed_points, optimistic_fixed_points])
def test_fixed_points_of_alpha_1_are_those_of_qmix(points):
    for table in random_tables(3, 3, n=4):
        pairs = zip(points(table, 1.0), monotone_projections(table), strict=True)
        assert all(np.allclose(*pair, atol=1e-12) for pair in pairs)


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (3, 3)])
def test_a_general_solver_finds_no_nearer_weighted_table(shape):
    generator = np.random.default_rng(1)
    for table in random_tables(*shape, n=6):
        weights = generator.choice([0.1, 1.0], size=shape)
        fitted = isotonic(table, weights)
        assert lowest_step(fitted) >= -1e-12
        assert weighted_solution(table, lambda error, w=weights: w * error**2) == pytest.approx(
            (weights * (fitted - table) ** 2).sum(), abs=1e-5
        )


@pytest.mark.parametrize("shape", [(1, 4), (2, 3)])
def test_optimistic_fixed_points_have_the_least_asymmetric_loss(shape):
    def loss(error):
        return np.where(error < 0, 1, 0.1) * error**2

    for table in random_tables(*shape, n=4):
        slow = []
        for order in product(*(permutations(range(n)) for n in shape)):
            slow.append(weighted_solution(table[np.ix_(*order)], loss))
        found = [loss(fitted - table).sum() for fitted in optimistic_fixed_points(table, 0.1)]
        np.testing.assert_allclose(sorted(found), sorted(slow), atol=1e-4)


def weighted_solution(table, loss):
    """Return the least loss of errors of a monotone table, by a general solver."""

    def steps(flat):
        fitted = flat.reshape(table.shape)
        return np.concatenate([np.diff(fitted, axis=axis).ravel() for axis in (0, 1)])

    found = minimize(
        lambda flat: loss(flat.reshape(table.shape) - table).sum(),
        np.full(table.size, table.mean()),
        constraints={"type": "ineq", "fun": steps},
        method="SLSQP",
        options={"maxiter": 500},
    )
    return found.fun
