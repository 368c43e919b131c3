"""Statistics over seeds and tasks: values worked by hand."""

import numpy as np
import pytest
from support.robust_statistics import (
    improvement,
    interquartile_mean,
    interval,
    mean_over_tasks,
    mean_share,
    normalized,
    shares_above,
)


def test_the_interquartile_mean_of_five_is_that_of_the_middle_three():
    returns = np.array([[4.0, 0.0], [100.0, 0.0], [2.0, 3.0], [3.0, 6.0], [-50.0, 9.0]])
    assert interquartile_mean(returns).tolist() == [3.0, 3.0]


def test_the_interval_of_three_seeds_is_that_of_their_27_resamples():
    # All three draws are the least one with probability 1/27, which is more than 2.5 %. Of three,
    # a quarter is less than one: the interquartile mean is the mean.
    low, high = interval(interquartile_mean, np.array([[0.0], [1.0], [2.0]]))
    assert (low.tolist(), high.tolist()) == ([0.0], [2.0])


def test_the_interval_of_one_seed_is_itself():
    low, high = interval(interquartile_mean, np.array([[3.0, 4.0]]))
    assert low.tolist() == high.tolist() == [3.0, 4.0]


def returns(**by_group):
    """Return arrays of seeds by group."""
    return {group: np.array(values) for group, values in by_group.items()}


def test_normalized_scores_are_by_task():
    of_tasks = {
        "a": returns(qmix=[5.0], vdn=[3.0]),
        "b": returns(qmix=[2.0], vdn=[6.0], iql=[6.0]),
    }
    # Task a: 0 at 1, 1 at 5; task b: 0 at -2, 1 at 6. IQL did not run on task a.
    scores = normalized(of_tasks, {"a": 1.0, "b": -2.0})
    assert {name: [s.tolist() for s in samples] for name, samples in scores.items()} == {
        "qmix": [[1.0], [0.5]],
        "vdn": [[0.5], [1.0]],
    }


def test_a_task_that_nothing_learned_is_left_out_of_the_scores():
    of_tasks = {"a": returns(qmix=[5.0]), "b": returns(qmix=[0.5])}
    scores = normalized(of_tasks, {"a": 1.0, "b": 1.0})
    assert [sample.tolist() for sample in scores["qmix"]] == [[1.0]]


def test_nothing_is_normalized_where_nothing_learned():
    assert normalized({"a": returns(qmix=[0.0])}, {"a": 1.0}) == {}


def test_the_mean_over_tasks_weighs_tasks_alike():
    # Interquartile means 2 (the mean of three) and 6.
    assert mean_over_tasks(np.array([1.0, 2.0, 3.0]), np.array([6.0])) == 4.0


def test_the_performance_profile_is_the_share_of_runs_above_a_score():
    scores = [np.array([0.0, 0.5, 1.0, 1.0]), np.array([0.25, 0.5])]
    shares = mean_share(*shares_above(scores, np.array([-1.0, 0.25, 0.5, 1.0])))
    # Above 0.25: 3 of 4 and 1 of 2 runs; above 0.5: 2 of 4 and none; above 1 none.
    assert shares.tolist() == [1.0, (0.75 + 0.5) / 2, 0.25, 0.0]


def test_the_probability_of_improvement_counts_pairs_of_runs_and_equal_ones_by_half():
    x, y = np.array([1.0, 2.0]), np.array([0.0, 1.0, 3.0])
    # 1 > 0, 1 = 1, 1 < 3, 2 > 0, 2 > 1, 2 < 3: 3 and a half of 6 pairs.
    assert improvement(x, y) == pytest.approx(3.5 / 6)
    better = np.array([5.0]), np.array([4.0])
    # Two tasks: X's samples, then Y's.
    assert improvement(x, better[0], y, better[1]) == pytest.approx((3.5 / 6 + 1) / 2)
    assert improvement(y, x) == pytest.approx(2.5 / 6)


def test_the_probability_of_improvement_is_the_statistic_of_mann_and_whitney():
    from scipy import stats

    random = np.random.default_rng(0)
    x, y = random.integers(0, 5, 7).astype(float), random.integers(0, 5, 4).astype(float)
    assert improvement(x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / 28)


def test_the_interval_of_an_improvement_holds_it():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0])
    low, high = interval(improvement, x, y)
    # All of X's draws are 1, and Y's 3, with probability 1/27^2; all of X's are 4 with 1/27.
    assert 0 <= low < improvement(x, y) < high == 1
