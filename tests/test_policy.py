"""Acting: heads under masks, the exploration schedule and its statistics, and the memory."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import TransformedEnv, check_env_specs, step_mdp

from qmix_trl import FeedforwardAgent, RecurrentAgent, make_env
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    OBSERVATION,
    next_key,
)
from qmix_trl.policy import (
    EpsilonGreedyAction,
    GreedyAction,
    NoOpPolicy,
    RandomPolicy,
    RememberAction,
    make_policy,
    with_memory,
)

# Upper 0.1 % points of the chi-square distribution, by degrees of freedom (any printed table).
CHI_SQUARE = {2: 13.82, 3: 16.27, 5: 20.52}
NONE_AVAILABLE = torch.zeros(1, 2, 3, dtype=torch.bool)  # [E, N, A]


def head_input(values, mask=None):
    """Return what a head reads: values [*B, N, A] and, if given, the mask of that shape."""
    data = TensorDict({ACTION_VALUE: values}, values.shape[:-2])
    return data if mask is None else data.set(ACTION_MASK, mask)


def observed(n_envs, n_agents, mask=None):
    """Return what a policy without values reads: observations [E, N, 5], all NaN, and the mask."""
    data = TensorDict({OBSERVATION: torch.full((n_envs, n_agents, 5), torch.nan)}, [n_envs])
    return data if mask is None else data.set(ACTION_MASK, mask)


def explorer(epsilon, seed=0):
    """Return a head with constant epsilon."""
    return EpsilonGreedyAction(epsilon, epsilon, 0, seed=seed)


def chi_square(counts, probabilities):
    """Return Pearson's statistic of counts against the probabilities of their cells."""
    expected = counts.sum() * torch.tensor(probabilities, dtype=torch.float64)
    return ((counts - expected).square() / expected).sum().item()


def test_greedy_head_takes_the_best_available_action_of_each_agent():
    values = torch.tensor([[[3.0, 2.0, 1.0], [-3.0, -2.0, -1.0]]] * 2)  # [E, N, A]
    mask = torch.tensor([[[0, 1, 1], [1, 1, 0]], [[1, 1, 1], [1, 0, 0]]], dtype=torch.bool)
    assert GreedyAction()(head_input(values, mask))[ACTION].tolist() == [[1, 1], [0, 0]]
    assert GreedyAction()(head_input(values))[ACTION].tolist() == [[0, 2], [0, 2]]


def test_greedy_head_takes_any_batch_dimensions():
    values = torch.zeros(2, 4, 3, 5)  # [E, T, N, A]
    values[..., 3] = 1
    action = GreedyAction()(head_input(values))[ACTION]
    assert action.dtype == torch.int64
    assert torch.equal(action, torch.full((2, 4, 3), 3))


@pytest.mark.parametrize(
    ("frames", "epsilon"),
    # 1 - 0.95 frames / 1000 up to frame 1000
    [(0, 1.0), (250, 0.7625), (500, 0.525), (999, 0.05095), (1000, 0.05), (10**9, 0.05)],
)
def test_epsilon_is_linear_in_frames(frames, epsilon):
    head = EpsilonGreedyAction(1.0, 0.05, 1000, seed=0)
    head.step(frames)
    assert head.epsilon == pytest.approx(epsilon, abs=1e-12)


def test_epsilon_does_not_drift():
    many, one = (EpsilonGreedyAction(1.0, 0.05, 10_000, seed=0) for _ in range(2))
    for _ in range(1000):
        many.step(7)
    one.step(7000)
    assert many.epsilon == one.epsilon == pytest.approx(1 - 0.95 * 0.7, abs=1e-12)


def test_without_annealing_epsilon_is_epsilon_end():
    assert EpsilonGreedyAction(1.0, 0.3, 0, seed=0).epsilon == 0.3


def test_acting_does_not_count_frames():
    head = EpsilonGreedyAction(1.0, 0.0, 10, seed=0)
    head(head_input(torch.zeros(8, 2, 3)))
    assert head.epsilon == 1.0


@pytest.mark.parametrize("arguments", [(1.1, 0.0, 1), (1.0, -0.1, 1), (1.0, 0.0, -1)])
def test_schedule_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match=r"epsilon_start and epsilon_end in \[0, 1\]"):
        EpsilonGreedyAction(*arguments, seed=0)


@pytest.mark.parametrize("exponent", [-0.1, -2.0])
def test_a_negative_repeat_exponent_is_refused(exponent):
    with pytest.raises(ValueError, match=r"repeat_exponent of at least 0, or None, got -"):
        EpsilonGreedyAction(1.0, 1.0, 0, exponent, seed=0)


@pytest.mark.parametrize(
    ("exponent", "shares"),
    # n ** -2 has the sum 1.63498 up to 100, n ** -100 is 1 for n = 1 and next to nothing beyond.
    [(2.0, [0.61163, 0.15291, 0.06796, 0.16750]), (100.0, [1.0, 0.0, 0.0, 0.0])],
)
def test_repeats_last_n_steps_with_the_stated_probability(exponent, shares):
    head = EpsilonGreedyAction(1.0, 1.0, 0, exponent, seed=0)
    explore, _ = head.draws(400, (50, 2, 3))  # [T, E, N]; with epsilon 1 a repeat ends, one begins
    begins = (explore >= 0).flatten(1).t()  # [E N, T]
    lengths = torch.cat([row.nonzero().flatten().diff() for row in begins])
    counts = torch.bincount(lengths.clamp(max=4), minlength=5)[1:]  # 1, 2, 3, longer
    if exponent == 100:
        assert counts.tolist() == [50 * 2 * 399, 0, 0, 0]
    else:
        assert chi_square(counts, shares) < CHI_SQUARE[3]


def test_a_repeat_keeps_its_action_and_explores():
    head = EpsilonGreedyAction(0.3, 0.3, 0, 1.0, seed=0)
    explore, choose = head.draws(60, (20, 3, 4))
    goes_on = explore < 0
    assert goes_on[1:].any()
    assert not goes_on[0].any()
    assert torch.equal(choose[1:][goes_on[1:]], choose[:-1][goes_on[1:]])
    assert (choose[1:][~goes_on[1:]] != choose[:-1][~goes_on[1:]]).all()
    # Only who has begun to explore goes on.
    assert ((explore[:-1] < 0.3) | ~goes_on[1:]).all()


def test_a_repeat_continues_over_calls_without_new_exploration():
    whole, parts = (EpsilonGreedyAction(1.0, 0.0, 10, 1.0, seed=0) for _ in range(2))
    explore, _ = whole.draws(8, (50, 1, 3))
    split = torch.cat([parts.draws(1, (50, 1, 3))[0] for _ in range(8)])
    assert torch.equal(explore, split)
    whole.step(10)  # epsilon is 0
    later = whole.draws(100, (50, 1, 3))[0] < 0
    assert later[0].any()
    assert not later[99].any()
    assert not (later[1:] & ~later[:-1]).any()


@pytest.mark.parametrize("repeat_exponent", [None, 1.5])
def test_the_head_continues_from_a_random_state(repeat_exponent):
    head = EpsilonGreedyAction(0.5, 0.5, 0, repeat_exponent, seed=0)
    values = TensorDict({ACTION_VALUE: torch.zeros(20, 3, 5)}, (20,))

    def actions():
        return torch.stack([head(values)[ACTION].clone() for _ in range(10)])

    actions()
    state = head.random_state()
    expected = actions()
    assert not torch.equal(actions(), expected)
    head.set_random_state(state)
    assert torch.equal(actions(), expected)


def test_a_repeat_skips_an_action_that_is_masked():
    head = EpsilonGreedyAction(1.0, 1.0, 0, 0.0, seed=0)
    for _ in range(20):
        mask = torch.rand(100, 2, 4) < 0.7
        action = head(head_input(torch.zeros(100, 2, 4), mask))[ACTION]
        available = mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        assert (available | ~mask.any(-1)).all()


def test_without_epsilon_the_head_is_greedy():
    values = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(50, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    greedy = GreedyAction()(head_input(values, mask))[ACTION]
    assert torch.equal(explorer(0.0)(head_input(values, mask))[ACTION], greedy)


def test_agents_explore_independently():
    values = torch.zeros(40_000, 2, 4)  # [E, N, A]
    values[..., 1] = 1
    action = explorer(0.4)(head_input(values))[ACTION]
    strayed = (action != 1).long()  # [E, N]
    counts = torch.bincount(2 * strayed[:, 0] + strayed[:, 1], minlength=4)
    # An agent strays with probability 0.4 * 3/4 = 0.3, whatever the other one does.
    assert chi_square(counts, [0.49, 0.21, 0.21, 0.09]) < CHI_SQUARE[3]


def test_exploring_and_the_action_explored_are_independent():
    values = torch.tensor([0.0, 0.0, 1.0]).expand(30_000, 1, 3)
    counts = torch.bincount(explorer(0.5)(head_input(values))[ACTION].flatten(), minlength=3)
    assert chi_square(counts, [1 / 6, 1 / 6, 2 / 3]) < CHI_SQUARE[2]


def test_exploring_agents_draw_uniformly_from_their_available_actions():
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1]], dtype=torch.bool).expand(30_000, 2, 4)
    action = explorer(1.0)(head_input(torch.zeros(30_000, 2, 4), mask))[ACTION]
    counts = torch.bincount(4 * action[:, 0] + action[:, 1], minlength=16).reshape(4, 4)
    available = counts[[0, 2, 3]][:, [1, 3]]
    assert available.sum() == 30_000
    assert chi_square(available.flatten(), [1 / 6] * 6) < CHI_SQUARE[5]


@pytest.mark.parametrize(
    "policy",
    [
        GreedyAction(),
        explorer(0.0),
        explorer(1.0),
        RandomPolicy(3, seed=0),
        NoOpPolicy(3),
    ],
    ids=["greedy", "epsilon 0", "epsilon 1", "random", "no-op"],
)
def test_a_fully_masked_agent_takes_action_0(policy):
    data = observed(1, 2, NONE_AVAILABLE).set(ACTION_VALUE, torch.tensor([[[1.0, 2.0, 3.0]] * 2]))
    assert policy(data)[ACTION].tolist() == [[0, 0]]


def draws(make):
    """Return the actions of three calls, and the global generator's state before and after."""
    policy, before = make(), torch.get_rng_state()
    data = observed(20, 3).set(ACTION_VALUE, torch.zeros(20, 3, 4))
    actions = torch.stack([policy(data.clone())[ACTION] for _ in range(3)])
    return actions, before, torch.get_rng_state()


@pytest.mark.parametrize(
    "make",
    [lambda seed: explorer(1.0, seed), lambda seed: RandomPolicy(4, seed=seed)],
    ids=["epsilon", "random"],
)
def test_policies_have_their_own_random_stream(make):
    first, before, after = draws(lambda: make(7))
    assert torch.equal(before, after)
    torch.manual_seed(123)
    assert torch.equal(first, draws(lambda: make(7))[0])
    assert not torch.equal(first, draws(lambda: make(8))[0])
    assert not torch.equal(first[0], first[1])


def test_random_policy_draws_uniformly_from_the_available_actions():
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool).expand(20_000, 2, 3)
    action = RandomPolicy(3, seed=0)(observed(20_000, 2, mask))[ACTION]
    counts = torch.bincount(3 * action[:, 0] + action[:, 1], minlength=9).reshape(3, 3)
    available = counts[[0, 2]][:, [0, 1]]
    assert available.sum() == 20_000
    assert chi_square(available.flatten(), [1 / 4] * 4) < CHI_SQUARE[3]


def test_random_policy_draws_uniformly_from_all_actions_without_a_mask():
    action = RandomPolicy(3, seed=0)(observed(10_000, 1))[ACTION]
    assert action.shape == (10_000, 1)
    counts = torch.bincount(action.flatten(), minlength=3)
    assert chi_square(counts, [1 / 3] * 3) < CHI_SQUARE[2]


def test_no_op_policy_takes_action_0_or_the_first_available():
    mask = torch.tensor([[[1, 1, 1], [0, 0, 1], [0, 1, 1]]], dtype=torch.bool)
    assert NoOpPolicy(3)(observed(1, 3, mask))[ACTION].tolist() == [[0, 2, 1]]
    assert NoOpPolicy(3)(observed(1, 3))[ACTION].tolist() == [[0, 0, 0]]


def test_the_next_step_reads_the_last_action():
    data = RememberAction(3)(TensorDict({ACTION: torch.tensor([[2, 0]])}, [1]))
    assert data[next_key(LAST_ACTION)].tolist() == [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
    assert LAST_ACTION not in data.keys(True, True)


def team_env(n_envs=3):
    """Return a small VMAS environment."""
    return make_env(
        "vmas",
        scenario="balance",
        n_envs=n_envs,
        max_steps=50,
        state="world",
        team_reward="mean",
        seed=0,
    )


def test_policy_acts_on_the_agents_values_and_writes_its_memory():
    agent = RecurrentAgent(3, 16, 9, hidden_dim=6)
    data = with_memory(team_env(), agent).reset()
    values, hidden = agent.step(data[OBSERVATION], data[LAST_ACTION], data[HIDDEN])
    acted = make_policy(agent, GreedyAction())(data)
    assert torch.equal(acted[ACTION_VALUE], values)
    assert torch.equal(acted[ACTION], values.argmax(-1))
    assert torch.equal(acted[next_key(HIDDEN)], hidden)
    one_hot = torch.nn.functional.one_hot(values.argmax(-1), 9).float()
    assert torch.equal(acted[next_key(LAST_ACTION)], one_hot)


@pytest.mark.parametrize(
    ("make_agent", "carried"),
    [
        (lambda: RecurrentAgent(3, 16, 9, hidden_dim=6), {HIDDEN, LAST_ACTION}),
        (lambda: FeedforwardAgent(3, 16, 9, use_last_action=True), {LAST_ACTION}),
        (lambda: FeedforwardAgent(3, 16, 9), set()),
    ],
    ids=["recurrent", "feedforward with last action", "feedforward"],
)
def test_memory_is_carried_and_begins_at_zero(make_agent, carried):
    agent = make_agent()
    env = with_memory(team_env(), agent)
    assert isinstance(env, TransformedEnv)
    check_env_specs(env)
    data = env.reset()
    assert {HIDDEN, LAST_ACTION} & set(data.keys(True, True)) == carried
    assert all((data[key] == 0).all() for key in carried)
    data = step_mdp(env.step(make_policy(agent, GreedyAction())(data)))
    assert all((data[key] != 0).any() for key in carried)


def test_a_partial_reset_zeroes_only_the_memory_of_reset_environments():
    torch.manual_seed(0)
    agent = RecurrentAgent(3, 16, 9, hidden_dim=6)
    env = with_memory(team_env(), agent)
    acted = env.step(make_policy(agent, GreedyAction())(env.reset()))
    reset = torch.tensor([[True], [False], [True]])
    data = env.reset(step_mdp(acted).set("_reset", reset))
    assert torch.equal(data[IS_INIT], reset)
    for key in (HIDDEN, LAST_ACTION):
        carried = acted[next_key(key)]
        assert carried.flatten(1).any(1).all()
        expected = torch.where(reset.unsqueeze(-1), torch.zeros_like(carried), carried)
        assert torch.equal(data[key], expected)
