"""Targets within the values that rewards allow: the interval, its state, a divergence it prevents.

``tests/test_parity.py`` compares losses with bounded targets with a slow loop, and
``tests/test_update.py`` their steps as graphs with eager ones.
"""

import math

import pytest
import torch
from loss_tools import make_loss, random_batch
from tensordict import TensorDict

from qmix_trl import FeedforwardAgent, QMixLoss, VDNMixer
from qmix_trl.keys import ACTION, AGENT_REWARD, MASK, OBSERVATION, REWARD, TERMINATED, next_key
from qmix_trl.value_bound import TargetBound

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def bounded(bound, values, rewards, *, terminated=(), mask=None, gamma=0.5):
    """Return the values of a row of steps, clamped by a bound that sees the step's rewards."""
    value, reward = (torch.tensor(x).reshape(1, -1, 1) for x in (values, rewards))
    ends = torch.zeros_like(reward, dtype=torch.bool)
    ends[:, list(terminated)] = True
    mask = torch.tensor([mask or [True] * len(rewards)])
    return bound(value, reward, ends, mask, gamma).flatten().tolist()


def test_values_are_clamped_to_endless_sums_of_the_extreme_rewards():
    # 1 + 0.5 + 0.25 + .. = 2
    assert bounded(TargetBound(), [9.0, -9.0, 0.5], [1.0, -3.0, 0.5]) == [2.0, -6.0, 0.5]
    assert bounded(TargetBound(), [9.0, -9.0], [-1.0, -3.0]) == [-2.0, -6.0]
    assert bounded(TargetBound(), [0.0, -9.0], [1.0, 1.0], gamma=0.0) == [1.0, 1.0]


def test_rewards_of_zero_follow_a_termination():
    assert bounded(TargetBound(), [9.0, -9.0], [-1.0, -3.0], terminated=[1]) == [0.0, -6.0]
    assert bounded(TargetBound(), [9.0, -9.0], [1.0, 3.0], terminated=[0]) == [6.0, 0.0]


def test_padding_does_not_count():
    bound = TargetBound()
    values = bounded(bound, [9.0, -9.0], [1.0, 99.0], terminated=[1], mask=[True, False])
    assert values == [2.0, 2.0]
    assert (bound.least_reward, bound.greatest_reward) == (1.0, 1.0)


def test_the_extremes_of_all_batches_count():
    bound = TargetBound()
    assert bounded(bound, [9.0, -9.0], [1.0, -1.0]) == [2.0, -2.0]
    assert bounded(bound, [9.0, -9.0], [0.5, -0.5]) == [2.0, -2.0]
    assert bounded(bound, [9.0, -9.0], [0.5, -2.0]) == [2.0, -4.0]


def test_rewards_are_those_of_the_targets():
    batch = random_batch(4, 6)
    for mixer, key in (("vdn", REWARD), ("none", AGENT_REWARD)):
        loss = make_loss(mixer=mixer, reward_scale=3.0, bounded_targets=True)
        loss(batch)
        scaled = 3 * batch[next_key(key)]
        assert (loss.bound.least_reward, loss.bound.greatest_reward) == scaled.aminmax()


def test_the_interval_follows_the_discount_of_the_moment():
    loss = make_loss(mixer="vdn", gamma=0.5, bounded_targets=True)
    batch = random_batch(2, 4)
    batch[next_key(REWARD)].fill_(1.0)
    for gamma, target in ((0.5, 2.0), (0.75, 4.0)):  # every sum of rewards is 1 / (1 - gamma)
        loss.gamma = gamma
        assert loss(batch)["target_value"].item() == pytest.approx(target, rel=1e-12)


def test_a_batch_without_valid_steps_has_zero_loss_and_shows_no_reward():
    batch = random_batch(2, 3)
    batch[MASK] = torch.zeros(2, 3, dtype=torch.bool)
    loss = make_loss(td_lambda=0.5, bounded_targets=True)
    value = loss(batch)["loss"]
    value.backward()
    assert value == 0
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    assert (loss.bound.least_reward, loss.bound.greatest_reward) == (math.inf, -math.inf)


def test_the_extremes_are_part_of_the_state():
    wide, narrow = random_batch(2, 3, seed=0), random_batch(2, 3, seed=0)
    narrow[next_key(REWARD)].mul_(1e-3)
    first, other = (make_loss(gamma=0.5, seed=s, bounded_targets=True) for s in (0, 1))
    first(wide)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(narrow)["loss"], first(narrow)["loss"])
    fresh = make_loss(gamma=0.5, seed=0, bounded_targets=True)
    assert fresh(narrow)["loss"] != first(narrow)["loss"]


def test_a_loss_without_a_bound_has_no_other_state():
    extra = make_loss(bounded_targets=True).state_dict().keys() - make_loss().state_dict().keys()
    assert extra == {"bound.least_reward", "bound.greatest_reward"}


def test_a_discount_of_one_is_refused():
    with pytest.raises(ValueError, match="gamma below 1 with bounded_targets, got 1"):
        make_loss(gamma=1.0, bounded_targets=True)
    loss = make_loss(gamma=0.9, bounded_targets=True)
    loss.gamma = 1.0
    with pytest.raises(ValueError, match="gamma below 1, got 1"):
        loss(random_batch(2, 3))


def trained_weight(steps, **arguments):
    """Return w after gradient steps on Q(1) = w towards ``-1 + 0.9 Q(2)``, with Q(o) = w o.

    A step of 0.25 takes w to ``w + 0.5 (-1 + 1.8 w - w) = 1.4 w - 0.5``: away from w = 1.25. Every
    reward is -1, and so the value of every policy is -1 / (1 - 0.9) = -10.
    """
    agent = FeedforwardAgent(1, 1, 1, hidden_dims=(), use_agent_id=False)
    layer = agent.layers[0]
    layer.weight.data.fill_(2.0)
    layer.bias.data.zero_()
    layer.bias.requires_grad_(False)
    loss = QMixLoss(agent, VDNMixer(), gamma=0.9, **arguments)
    batch = TensorDict({}, [1, 1])
    batch[OBSERVATION] = torch.ones(1, 1, 1, 1)
    batch[next_key(OBSERVATION)] = 2 * batch[OBSERVATION]
    batch[ACTION] = torch.zeros(1, 1, 1, dtype=torch.int64)
    batch[next_key(REWARD)] = -torch.ones(1, 1, 1)
    batch[next_key(TERMINATED)] = torch.zeros(1, 1, 1, dtype=torch.bool)
    optimizer = torch.optim.SGD([layer.weight], lr=0.25)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(batch)["loss"].backward()
        optimizer.step()
        loss.copy_to_targets()
    return layer.weight.item()


def test_a_divergence_of_bootstrapping_is_bounded():
    # w_n - 1.25 = 1.4^n (w_0 - 1.25)
    assert trained_weight(60) == pytest.approx(1.25 + 0.75 * 1.4**60, rel=1e-4)
    assert trained_weight(60, bounded_targets=True) == pytest.approx(-10.0, rel=1e-6)
