"""The pure functions, against numbers worked by hand and slow loops."""

import pytest
import torch

from qmix_trl import functional
from qmix_trl.functional import (
    first_episode_mask,
    first_steps,
    following,
    greedy_action,
    joined_observations,
    keep_where,
    lambda_returns,
    last_actions,
    random_action,
    value_of,
)


def column(*flags):
    """Return flags or numbers as one row [1, T, 1]."""
    return torch.tensor(flags).reshape(1, -1, 1)


def test_mask_ends_with_the_first_done():
    done = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(first_episode_mask(done.unsqueeze(-1)), expected)


def test_first_steps_and_following():
    done = column(False, True, False)
    assert torch.equal(first_steps(done), column(True, False, True))
    assert torch.equal(following(done), column(True, False, False))


def test_keep_where_stops_nan_and_its_gradient():
    x = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]], requires_grad=True)
    kept = keep_where(torch.tensor([True, False]), x)
    assert torch.equal(kept, torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(kept.sum(), x)
    assert torch.equal(gradient, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_joined_observations_take_the_true_last_one_before_padding():
    now, after = column(10.0, 11.0, -1.0, -1.0), column(11.0, 12.0, -1.0, -1.0)
    mask = torch.tensor([[True, True, False, False]])
    joined = joined_observations(now, after, mask)
    assert joined[0, :3, 0].tolist() == [10.0, 11.0, 12.0]


def test_joined_observations_follow_a_reset_inside_the_row():
    now, after = column(10.0, 50.0, 51.0), column(11.0, 51.0, 52.0)
    joined = joined_observations(now, after, torch.ones(1, 3, dtype=torch.bool))
    assert joined[0, :, 0].tolist() == [10.0, 50.0, 51.0, 52.0]


def test_last_actions_shift_by_one_and_vanish_after_a_reset():
    action = torch.tensor([[[1], [2], [0]]])  # [1, 3, 1]
    is_init = column(False, False, True, False)
    first = torch.tensor([[[0.0, 0.0, 1.0]]])
    expected = [[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert last_actions(action, first, is_init)[0, :, 0].tolist() == expected


def test_greedy_action_is_the_best_available_one():
    values = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    assert greedy_action(values, mask).tolist() == [0, 2, 0]
    assert greedy_action(values, None).tolist() == [0, 0, 0]


def test_random_action_is_uniform_over_the_available_ones():
    mask = torch.tensor([True, False, True, True]).expand(30_000, 4)
    drawn = random_action(mask.float(), mask, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=4)
    assert counts[1] == 0
    # 10,000 each with a standard deviation of sqrt(30000 * 1/3 * 2/3) = 82; four of them.
    assert (counts[[0, 2, 3]] - 10_000).abs().max() < 330


def test_value_of_gathers_the_taken_action():
    values = torch.arange(12.0).reshape(2, 2, 3)
    assert value_of(values, torch.tensor([[0, 2], [1, 1]]))[..., 0].tolist() == [[0, 5], [7, 10]]


@pytest.mark.parametrize("summed", [functional._summed_by_step, functional._summed_at_once])
def test_episode_returns_worked_by_hand(summed):
    # The first environment ends after steps 1 and 2, the second never.
    reward = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    done = torch.tensor([[False, True, True, False], [False] * 4])
    before, after = summed(reward, done, torch.tensor([10.0, -1.0]))
    assert before.tolist() == [[10, 11, 0, 0], [-1, 0, 1, 2]]
    assert after.tolist() == [[11, 13, 3, 4], [0, 1, 2, 3]]


def test_episode_returns_at_once_equal_those_by_step():
    torch.manual_seed(0)
    reward, done, first = torch.randn(20, 50).double(), torch.rand(20, 50) < 0.1, torch.randn(20)
    for one, other in zip(
        functional._summed_at_once(reward, done, first),
        functional._summed_by_step(reward, done, first.double()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("terminated", "expected"),
    [(True, [0.818305, 0.0692, 2.0]), (False, [0.958028, 0.304424, 2.396])],
)
def test_lambda_returns_worked_by_hand(terminated, expected):
    # Truncated: G_2 = 2 + .99 * .4 = 2.396; G_1 = -1 + .99 (.4 * -.3 + .6 * 2.396) = .304424;
    # G_0 = .5 + .99 (.4 * .7 + .6 * .304424) = .958028. Terminated: G_2 = 2, and so on.
    returns = lambda_returns(
        column(0.5, -1.0, 2.0),
        column(0.7, -0.3, 0.4),
        column(False, False, terminated),
        column(False, False, True),
        gamma=0.99,
        td_lambda=0.6,
    )
    assert returns.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("td_lambda", [0.0, 0.35, 0.8, 1.0])
def test_lambda_returns_equal_the_forward_view(td_lambda):
    """G_t = (1 - lambda) sum_n lambda^(n-1) G^(n)_t + lambda^(N-1) G^(N)_t, N steps to the end."""
    generator = torch.Generator().manual_seed(1)
    n_rows, n_steps, gamma = 20, 9, 0.9
    reward, value = torch.randn(2, n_rows, n_steps, 2, generator=generator, dtype=torch.float64)
    last = torch.rand(n_rows, n_steps, 1, generator=generator) < 0.25
    last[:, -1] = True
    terminated = last & (torch.rand(n_rows, n_steps, 1, generator=generator) < 0.5)
    returns = lambda_returns(reward, value, terminated, last, gamma=gamma, td_lambda=td_lambda)
    for row in range(n_rows):
        for t in range(n_steps):
            end = t + int(last[row, t:, 0].nonzero()[0, 0])
            expected, so_far = torch.zeros(2, dtype=torch.float64), torch.zeros(2).double()
            for n, k in enumerate(range(t, end + 1)):
                so_far = so_far + gamma**n * reward[row, k]
                tail = 0 if terminated[row, k] else gamma ** (n + 1) * value[row, k]
                weight = td_lambda**n * (1 if k == end else 1 - td_lambda)
                expected = expected + weight * (so_far + tail)
            torch.testing.assert_close(returns[row, t], expected, rtol=0, atol=1e-12)
