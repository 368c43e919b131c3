"""The tables of games, against payoffs worked by hand, and the refusal of malformed ones."""

from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from games_tools import make_env, play, rollout
from tensordict.nn import TensorDictModuleBase

from qmix_trl import env_dims, episode_returns
from qmix_trl.envs.game_tables import make_game, two_step
from qmix_trl.errors import ConfigError
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)

# ---------------------------------------------------------------------- the games


def test_all_16_paths_of_two_step_pay_what_the_paper_says():
    paths = torch.cartesian_prod(*[torch.arange(2)] * 4)  # [E, 4]: u_1, u_2, then u_1, u_2
    batch = play(make_env(n_envs=16), [paths[:, :2], paths[:, 2:]])
    # The first agent's action 0 leads to 2A, which pays 7, whatever the second agent does (8
    # paths); its action 1 to 2B, which pays 0, 1, 1, 8 (twice, for the second agent's actions).
    last = [7] * 8 + [0, 1, 1, 8] * 2
    assert batch[next_key(REWARD)][..., 0].T.tolist() == [[0] * 16, last]
    assert batch[next_key(TERMINATED)][..., 0].T.tolist() == [[False] * 16, [True] * 16]
    assert not batch[next_key(TRUNCATED)].any()
    states = torch.tensor([[0, 1, 3]] * 8 + [[0, 2, 3]] * 8)
    one_hot = torch.eye(4)[states]  # [E, 3, S]
    for key, seen in ((STATE, one_hot), (OBSERVATION, one_hot.unsqueeze(2).expand(-1, -1, 2, -1))):
        assert torch.equal(batch[key], seen[:, :-1])
        assert torch.equal(batch[next_key(key)], seen[:, 1:])


@pytest.mark.parametrize("shape", [(4,), (2, 2), (2, 3), (3, 1, 2), (2, 2, 2, 2)])
def test_a_matrix_pays_its_entries_and_masks_the_actions_that_an_agent_lacks(shape):
    payoff = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    joint = list(product(*map(range, shape)))
    env = make_env("matrix", {"payoff": payoff}, n_envs=prod(shape))
    batch = play(env, [torch.tensor(joint)])
    assert batch[next_key(REWARD)].flatten().tolist() == [payoff[place].item() for place in joint]
    assert batch[next_key(TERMINATED)].all()
    dims = env_dims(env)
    assert (dims.n_agents, dims.n_actions) == (len(shape), max(shape))
    if len(set(shape)) == 1:
        assert ACTION_MASK not in batch.keys(True)
        return
    for key in (ACTION_MASK, next_key(ACTION_MASK)):
        for agent, action in product(range(len(shape)), range(max(shape))):
            assert (batch[key][:, 0, agent, action] == (action < shape[agent])).all()


def test_a_matrix_of_two_and_three_actions_worked_by_hand():
    env = make_env("matrix", {"payoff": [[1, 2, 3], [4, 5, 6]]}, n_envs=2)
    batch = play(env, [torch.tensor([[0, 2], [1, 0]])])
    assert batch[next_key(REWARD)].flatten().tolist() == [3, 4]
    assert batch[ACTION_MASK][0, 0].tolist() == [[True, True, False], [True, True, True]]
    assert torch.equal(
        make_game("matrix", {"payoff": np.array([[1.0]])}).reward[0], torch.ones(1, 1)
    )


def test_random_matrices_are_uniform_and_reproduced_by_their_seed():
    def payoffs(seed):
        game = make_game("random_matrix", {"n_games": 1000, "seed": seed})
        return game.reward[game.starts]  # [G, A, A]

    drawn = payoffs(0)
    assert drawn.shape == (1000, 3, 3)
    assert torch.equal(drawn, payoffs(0))
    assert (drawn != payoffs(1)).float().mean() > 0.99
    assert drawn.min() >= -10
    assert drawn.max() < 10
    # 9,000 draws have a standard deviation of 20 / sqrt(12) = 5.77, their mean one of 0.061. Each
    # tail has a tenth of them: 900, with a standard deviation of sqrt(9000 * .1 * .9) = 28. The
    # bounds are four standard deviations.
    assert abs(drawn.mean()) < 0.25
    assert abs((drawn < -8).sum() - 900) < 114
    assert abs((drawn >= 8).sum() - 900) < 114


def test_a_random_matrix_pays_the_entry_of_the_observed_game():
    keywords = {"n_games": 4, "n_agents": 3, "n_actions": 2, "seed": 5}
    env, other = (make_env("random_matrix", keywords, n_envs=8, seed=seed) for seed in (0, 1))
    assert torch.equal(env.game.reward, other.game.reward)
    batch = rollout(env, 3)
    assert batch[next_key(TERMINATED)].all()
    seen = batch[OBSERVATION].argmax(-1)  # [E, T, N]
    assert set(seen.flatten().tolist()) == {0, 1, 2, 3}
    for e, t in product(range(8), range(3)):
        (game,) = set(seen[e, t].tolist())
        assert batch[next_key(REWARD)][e, t] == env.game.reward[(game, *batch[ACTION][e, t])]


@pytest.mark.parametrize(
    ("delay", "n_agents", "n_cues"), [(0, 2, 2), (1, 1, 3), (3, 2, 2), (2, 3, 2)]
)
def test_memory_equals_a_slow_loop(delay, n_agents, n_cues):
    keywords = {"delay": delay, "n_agents": n_agents, "n_cues": n_cues}
    batch = rollout(make_env("memory", keywords, n_envs=12), 5 * (delay + 1))
    observation, reward = batch[OBSERVATION], batch[next_key(REWARD)]
    assert 0 < reward.mean() < 1
    for e, t in product(range(12), range(5 * (delay + 1))):
        time = t % (delay + 1)
        if time == 0:
            cue = int(observation[e, t, 0, :n_cues].argmax())
        shown = [float(time == 0 and c == cue) for c in range(n_cues)]
        assert observation[e, t].tolist() == [[*shown, float(time == delay)]] * n_agents
        available = [time == delay or action == 0 for action in range(n_cues)]
        assert batch[ACTION_MASK][e, t].tolist() == [available] * n_agents
        named = batch[ACTION][e, t].tolist() == [cue] * n_agents
        assert reward[e, t] == float(time == delay and named)
        assert batch[next_key(TERMINATED)][e, t] == (time == delay)
        assert batch[STATE][e, t].argmax() == time * n_cues + cue
        if time < delay:
            for key in (OBSERVATION, ACTION_MASK, STATE):
                assert torch.equal(batch[next_key(key)][e, t], batch[key][e, t + 1])
        else:
            assert not batch[next_key(OBSERVATION)][e, t].any()


class NamesCue(TensorDictModuleBase):
    """Names the cue that it saw last, or always the same cue, when it is time to decide."""

    in_keys = [OBSERVATION]
    out_keys = [ACTION]

    def __init__(self, always=None):
        super().__init__()
        self.always, self.cue = always, torch.tensor(0)

    def forward(self, data):
        shown, deciding = data[OBSERVATION][..., :-1], data[OBSERVATION][..., -1] == 1
        self.cue = torch.where(shown.any(-1), shown.argmax(-1), self.cue)
        name = self.cue if self.always is None else self.always
        return data.set(ACTION, torch.where(deciding, name, 0))


@pytest.mark.parametrize(("n_cues", "n_envs"), [(2, 2), (2, 10), (3, 6), (5, 20)])
def test_memory_pays_1_with_a_memory_and_one_cue_in_n_without(n_cues, n_envs):
    env = make_env("memory", {"delay": 2, "n_cues": n_cues}, n_envs=n_envs)
    for seed in range(3):
        returns = episode_returns(env, NamesCue(), max_steps=3, seed=seed)
        assert returns.tolist() == [1] * n_envs
        for cue in range(n_cues):
            # Every cue is the start of equally many environments.
            returns = episode_returns(env, NamesCue(always=cue), max_steps=3, seed=seed)
            assert returns.sum() == n_envs / n_cues


# ---------------------------------------------------------------------- malformed games


@pytest.mark.parametrize(
    ("table", "replacement", "message"),
    [
        ("reward", torch.zeros(4, 2, 3), r"reward of .*\(4, 3, 3\) by .*got .*\(4, 2, 3\)"),
        (
            "reward",
            torch.zeros(4, 2),
            r"reward of .*\(4, 2, 2\) by an observation of 4 states and 2",
        ),
        ("reward", torch.tensor(1.0), r"and reward \[S, A, .., A\], got \(4, 2, 4\) and \(\)"),
        ("reward", torch.zeros(4, 2, 2).double(), "reward of torch.float32 .*got torch.float64"),
        ("next_state", torch.zeros(3, 2, 2).long(), r"next_state of .*\(4, 2, 2\) by.*\(3, 2, 2\)"),
        ("next_state", torch.full((4, 2, 2), 4), r"next_state to be states in \[0, 4\).*\[4\]"),
        ("next_state", torch.full((4, 2, 2), -1), r"next_state to be states in \[0, 4\).*\[-1\]"),
        ("next_state", torch.zeros(4, 2, 2), "next_state of torch.int64 .*got torch.float32"),
        ("ends", torch.ones(3).bool(), r"ends of .*\(4,\) .*got .*\(3,\)"),
        ("ends", torch.ones(4).long(), "ends of torch.bool .*got torch.int64"),
        ("starts", torch.tensor([0, 4]), r"starts to be states in \[0, 4\).*got \[0, 4\]"),
        ("starts", torch.tensor([-1, 0]), r"starts to be states in \[0, 4\).*got \[-1, 0\]"),
        ("starts", torch.tensor([], dtype=torch.int64), r"starts to be states .*got \[\]"),
        ("starts", torch.tensor([[0]]), r"starts of .*\(1,\) .*got .*\(1, 1\)"),
        ("starts", torch.tensor([0, 3]), "starts that episodes go on from"),
        (
            "observation",
            torch.zeros(3, 2, 5),
            r"reward of .*\(3, 2, 2\) by .*3 states.*\(4, 2, 2\)",
        ),
        ("observation", torch.zeros(4, 3, 5), r"reward of .*\(4, 2, 2, 2\) by .*3 agents"),
        ("observation", torch.zeros(4), r"expected observation \[S, N, O\].*got \(4,\)"),
        ("action_mask", torch.ones(4, 2, 3).bool(), r"action_mask of .*\(4, 2, 2\)"),
        ("action_mask", torch.ones(4, 2, 2), "action_mask of torch.bool .*got torch.float32"),
    ],
)
def test_a_malformed_game_is_refused_by_the_name_of_its_table(table, replacement, message):
    with pytest.raises(ValueError, match=message):
        replace(two_step(), **{table: replacement})


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        (
            "memory",
            {"dely": 1},
            r"\.dely: unknown to game 'memory'; did you mean 'delay'\?; .*n_cues",
        ),
        ("two_step", {"delay": 1}, r"\.delay: unknown to game 'two_step'; it takes: none; "),
        (
            "memory",
            {"n_cues": 3},
            r"^env\.scenario_kwargs\.delay: missing; game 'memory' wants it$",
        ),
        ("matrix", {}, r"\.payoff: missing; game 'matrix' wants it$"),
        ("random_matrix", {}, r"\.n_games: missing; game 'random_matrix' wants it$"),
        ("memory", {"delay": 1.0}, r"\.delay: expected an integer, got 1\.0$"),
        ("memory", {"delay": "2"}, r"\.delay: expected an integer, got '2'$"),
        ("memory", {"delay": 1, "n_agents": True}, r"\.n_agents: expected an integer, got True$"),
        ("random_matrix", {"n_games": 1, "seed": None}, r"\.seed: expected an integer, got None$"),
        ("memory", {"delay": -1}, r"game 'memory': expected delay of at least 0, got -1$"),
        ("memory", {"delay": 1, "n_agents": 0}, "expected n_agents of at least 1, got 0"),
        ("memory", {"delay": 1, "n_cues": 0}, "expected n_cues of at least 1, got 0"),
        ("random_matrix", {"n_games": 0}, "'random_matrix': expected n_games of at least 1, got 0"),
        ("random_matrix", {"n_games": 1, "n_agents": 0}, "n_agents of at least 1, got 0"),
        ("random_matrix", {"n_games": 1, "n_actions": 0}, "n_actions of at least 1, got 0"),
        # With one action, 21 agents are too many; 3,163 states squared are 10,004,569 entries.
        (
            "random_matrix",
            {"n_games": 1, "n_agents": 21, "n_actions": 1},
            "at most 20 agents and .* 10,000,000 entries, got 21 agents, 1 actions and 2 states",
        ),
        ("random_matrix", {"n_games": 1, "n_agents": 10**9}, "at most 20 agents"),
        ("random_matrix", {"n_games": 3163, "n_agents": 1, "n_actions": 1}, "at most .* entries"),
        # 2 states, a game and its end, with 10^7 joint actions each.
        ("random_matrix", {"n_games": 1, "n_agents": 7, "n_actions": 10}, "at most .* entries"),
        ("memory", {"delay": 10**6}, "game 'memory': expected .* at most .* entries"),
        ("matrix", {"payoff": np.zeros([1] * 21)}, "game 'matrix': .* at most 20 agents"),
        (
            "matrix",
            {"payoff": [[1, 2], [3]]},
            "expected payoff to be an array of numbers: .*length",
        ),
        ("matrix", {"payoff": [["a"]]}, "expected payoff to be an array of numbers: .*str"),
        ("matrix", {"payoff": "abc"}, "expected payoff to be an array of numbers: .*str"),
        ("matrix", {"payoff": None}, "expected payoff to be an array of numbers: "),
        ("matrix", {"payoff": [[0.0, float("nan")]]}, "to be finite float32 numbers"),
        ("matrix", {"payoff": [[0.0, float("inf")]]}, "to be finite float32 numbers"),
        ("matrix", {"payoff": [[]]}, "an axis for each agent, at least one$"),
        ("matrix", {"payoff": 3.0}, "an axis for each agent, at least one$"),
    ],
)
def test_keywords_that_cannot_be_used_are_refused(name, keywords, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        make_env(name, keywords)
    assert str(refusal.value).startswith("env.scenario_kwargs")


def test_the_largest_sizes_are_allowed():
    # 20 agents; 3,161 states and the end, squared, are 9,998,244.
    assert env_dims(make_env("matrix", {"payoff": np.zeros([1] * 20)})).n_agents == 20
    keywords = {"n_games": 3161, "n_agents": 1, "n_actions": 1}
    assert make_game("random_matrix", keywords).n_states == 3162
