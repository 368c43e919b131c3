"""The interval of values that rewards allow, and overestimation that is told from it."""

import math

import pytest
import torch
from support.possible_values import PossibleValues
from tensordict import TensorDict

from qmix_trl.keys import AGENT_REWARD, DONE, MASK, REWARD, TERMINATED, next_key


def batch_of(reward, *, terminated=(), truncated=(), mask=None):
    """Return a batch [1, T] of the team's rewards and ends, by step; two agents get half each."""
    reward = torch.tensor([reward], dtype=torch.float32).unsqueeze(-1)  # [1, T, 1]
    batch = TensorDict({}, reward.shape[:2])
    batch[next_key(REWARD)] = reward
    batch[next_key(AGENT_REWARD)] = reward.unsqueeze(-1).expand(*reward.shape[:2], 2, 1) / 2
    batch[next_key(TERMINATED)] = torch.zeros_like(reward, dtype=torch.bool)
    for step in terminated:
        batch[next_key(TERMINATED)][:, step] = True
    batch[next_key(DONE)] = batch[next_key(TERMINATED)].clone()
    for step in truncated:
        batch[next_key(DONE)][:, step] = True
    batch[MASK] = torch.tensor([mask or [True] * reward.shape[1]])
    return batch


def bound_of(*batches, **arguments):
    bound = PossibleValues(**{"gamma": 0.5, "max_steps": 3, **arguments})
    for batch in batches:
        bound.see(batch)
    return bound


def test_a_value_that_is_bootstrapped_at_the_time_limit_sums_endlessly():
    # 1 + 0.5 + 0.25 + .. = 2
    assert bound_of(batch_of([1.0, -3.0, 0.5], truncated=[2])).interval == (-6.0, 2.0)


def test_an_episode_that_terminates_has_max_steps_rewards():
    # 1 + 0.5 + 0.25 = 1.75
    assert bound_of(batch_of([1.0, -3.0, 0.5], terminated=[2])).interval == (-5.25, 1.75)
    assert bound_of(batch_of([1.0], terminated=[0]), gamma=1.0).interval == (0.0, 3.0)


def test_one_truncation_among_terminations_makes_it_endless():
    ended = batch_of([1.0, 1.0], terminated=[1])
    cut = batch_of([1.0, 1.0], truncated=[0])
    assert bound_of(ended, cut, ended).interval == (0.0, 2.0)
    assert bound_of(cut, gamma=1.0).interval == (0.0, math.inf)


def test_before_an_end_is_seen_it_is_endless():
    assert bound_of(batch_of([1.0, 1.0])).interval == (0.0, 2.0)


@pytest.mark.parametrize(
    ("rewards", "interval"),
    [([-1.0, -2.0], (-4.0, 0.0)), ([1.0, 2.0], (0.0, 4.0)), ([0.0, 0.0], (0.0, 0.0))],
)
def test_an_episode_may_end_so_that_zero_is_allowed(rewards, interval):
    assert bound_of(batch_of(rewards)).interval == interval


def test_padding_and_ends_in_it_do_not_count():
    padded = batch_of([1.0, 99.0], terminated=[0], truncated=[1], mask=[True, False])
    assert bound_of(padded).interval == (0.0, 1.75)
    nan = batch_of([1.0, math.nan], terminated=[0], mask=[True, False])
    assert bound_of(nan).interval == (0.0, 1.75)


def test_rewards_are_those_of_the_loss():
    batch = batch_of([4.0, -4.0])
    assert bound_of(batch, reward_scale=10.0).interval == (-80.0, 80.0)
    assert bound_of(batch, of_agents=True).interval == (-4.0, 4.0)


def test_the_bound_holds_for_every_sum_of_rewards_and_is_reached():
    torch.manual_seed(0)
    rewards = torch.empty(200, 7).uniform_(-1, 2)
    rewards[0], rewards[1] = rewards.min(), rewards.max()
    bound = bound_of(*[batch_of(row, terminated=[6]) for row in rewards.tolist()], max_steps=7)
    sums = (rewards * 0.5 ** torch.arange(7)).sum(1)
    low, high = bound.interval
    assert sums.min() == pytest.approx(low, rel=1e-6)
    assert sums.max() == pytest.approx(high, rel=1e-6)


def test_the_excess_is_the_distance_to_the_interval():
    bound = bound_of(batch_of([1.0, -3.0]))  # [-6, 2]
    assert bound.excess(2.0, -6.0) == 0
    assert bound.excess(1.0, 2.5) == 0.5
    assert bound.excess(-8.0, 2.5) == 2.0


def test_errors_of_learning_are_no_overestimation():
    bound = bound_of(batch_of([-1.0, -50.0]))  # [-100, 0]: 1 and 1 % of the end may be off
    assert not bound.is_exceeded(1.0, -102.0)
    assert bound.is_exceeded(1.1)
    assert bound.is_exceeded(-50.0, 1.1)
    assert bound.is_exceeded(-102.1)


def test_an_interval_without_an_end_is_exceeded_on_the_other_side():
    bound = bound_of(batch_of([-1.0, -2.0], truncated=[1]), gamma=1.0)
    assert bound.interval == (-math.inf, 0.0)
    assert bound.excess(155_000.0) == 155_000
    assert bound.is_exceeded(155_000.0)
    assert not bound.is_exceeded(-155_000.0)


def test_nothing_is_overestimated_before_the_first_reward():
    bound = bound_of(batch_of([0.0, 0.0]))
    assert bound.excess(1.5) == 1.5
    assert not bound.is_exceeded(1.5)
    bound.see(batch_of([0.0, 0.1]))  # [0, 0.2]
    assert bound.is_exceeded(1.5)


def test_what_was_seen_is_resumed():
    first = bound_of(batch_of([1.0, -3.0], terminated=[1]))
    other = bound_of()
    other.load_state_dict(first.state_dict())
    assert other.interval == first.interval == (-5.25, 1.75)
    other.see(batch_of([2.0], truncated=[0]))
    assert other.interval == (-6.0, 4.0)
