"""Games given as tables, against payoffs worked by hand and slow loops."""

import random
import subprocess
import sys
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import check_env_specs

from qmix_trl import RandomPolicy, env_dims, episode_returns, make_collector
from qmix_trl import make_env as make_env_of
from qmix_trl.envs.game_tables import GAMES, Game, make_game, two_step
from qmix_trl.errors import ConfigError
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    IS_INIT,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)

EXAMPLES = {
    "matrix": {"payoff": [[1, 2, 3], [4, 5, 6]]},
    "memory": {"delay": 2, "n_agents": 3, "n_cues": 2},
    "random_matrix": {"n_games": 3},
    "two_step": {},
}
# agents, observation size, actions, states
DIMS = {
    "matrix": (2, 2, 3, 2),  # a view of the one state and the end; 3 actions of the second agent
    "memory": (3, 3, 2, 7),  # 2 cues and a flag; 3 times with 2 cues each, and the end
    "random_matrix": (2, 4, 3, 4),  # 3 games and the end
    "two_step": (2, 4, 2, 4),  # the paper's 1, 2A and 2B, and the end
}


def make_env(scenario="two_step", scenario_kwargs=None, **settings):
    """Return a small environment; ``settings`` replace its own."""
    settings = {"n_envs": 4, "max_steps": 20, "state": "world", "seed": 0, **settings}
    return make_env_of("games", scenario=scenario, scenario_kwargs=scenario_kwargs, **settings)


def rollout(env, steps, *, seed=0):
    """Return random steps [E, T], going on where an environment is done."""
    policy = RandomPolicy(env_dims(env).n_actions, seed=seed)
    return env.rollout(steps, policy, break_when_any_done=False)


def play(env, actions):
    """Return the steps [E, T] of joint actions, each int64 [E, N] or [N] for all."""
    data, taken = env.reset(), []
    shape = data[OBSERVATION].shape[:-1]
    for action in actions:
        data.set(ACTION, torch.as_tensor(action).expand(shape).clone())
        step, data = env.step_and_maybe_reset(data)
        taken.append(step)
    return torch.stack(taken, 1)


def walk(starts=(0,)):
    """Return a game on the places 0 .. 4, of which 4 is the end.

    The first agent's action 1 goes one on, the second one's pays the place's number. The first
    agent sees the place, the second one the place below zero.
    """
    place = torch.arange(5)
    reward, next_state = torch.zeros(5, 2, 2), torch.empty(5, 2, 2, dtype=torch.int64)
    for here, go, take in product(range(5), range(2), range(2)):
        reward[here, go, take] = here * take
        next_state[here, go, take] = min(here + go, 4)
    return Game(
        reward=reward,
        next_state=next_state,
        ends=place == 4,
        starts=torch.tensor(starts),
        observation=torch.stack([place, -place], 1).unsqueeze(-1).float(),
    )


def places(batch):
    """Return where the steps of ``walk`` begin [E, T], by the first agent's view."""
    return batch[OBSERVATION][..., 0, 0].long()


STAY, GO = [0, 0], [1, 0]  # in walk


# ---------------------------------------------------------------------- specs and sizes


def test_every_game_has_an_example_here():
    assert EXAMPLES.keys() == DIMS.keys() == GAMES.keys()


@pytest.mark.parametrize("state", ["world", "observations"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_game_keeps_its_specs_and_has_the_sizes_worked_by_hand(name, state):
    env = make_env(name, EXAMPLES[name], state=state)
    check_env_specs(env)
    dims, (n_agents, observation_dim, n_actions, n_states) = env_dims(env), DIMS[name]
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == DIMS[name][:3]
    size = n_states if state == "world" else n_agents * observation_dim
    assert dims.state_shape == (size,)
    assert rollout(env, 2)[OBSERVATION].shape == (4, 2, n_agents, observation_dim)
    assert env.full_action_spec[ACTION].space.n == n_actions


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_world_state_is_one_hot_of_the_place(name):
    env = make_env(name, EXAMPLES[name], n_envs=6)
    batch = rollout(env, 6)
    for key in (STATE, next_key(STATE)):
        assert (batch[key].sum(-1) == 1).all()
        assert (batch[key].max(-1).values == 1).all()
    here, after = batch[STATE].argmax(-1), batch[next_key(STATE)].argmax(-1)  # [E, T]
    assert torch.equal(batch[OBSERVATION], env.game.observation[here])
    for row, t in product(range(6), range(6)):
        joint = (int(here[row, t]), *batch[ACTION][row, t].tolist())
        assert after[row, t] == env.game.next_state[joint]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_agent_is_paid_what_the_team_is(name):
    batch = rollout(make_env(name, EXAMPLES[name]), 8)
    reward, n_agents = batch[next_key(REWARD)], DIMS[name][0]
    assert reward.any()
    assert batch[next_key(AGENT_REWARD)].shape == (4, 8, n_agents, 1)
    for agent in range(n_agents):
        assert torch.equal(batch[next_key(AGENT_REWARD)][:, :, agent], reward)


def test_the_observations_as_state_are_those_of_the_team_side_by_side():
    batch = rollout(make_env(walk(), state="observations"), 12)
    for of in (lambda key: key, next_key):
        first, second = batch[of(OBSERVATION)].unbind(2)
        assert torch.equal(batch[of(STATE)], torch.cat([first, second], -1))
    assert (batch[STATE][..., 1] < 0).any()


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
def test_a_matrix_pays_its_entry_and_masks_what_an_agent_lacks(shape):
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
    # 9,000 draws of a standard deviation of 20 / sqrt(12) = 5.77: their mean has one of 0.061;
    # a tenth are at either end, 900 with one of sqrt(9000 * .1 * .9) = 28; four of them each.
    assert abs(drawn.mean()) < 0.25
    assert abs((drawn < -8).sum() - 900) < 114
    assert abs((drawn >= 8).sum() - 900) < 114


def test_a_random_matrix_pays_the_entry_of_the_game_that_all_agents_see():
    keywords = {"n_games": 4, "n_agents": 3, "n_actions": 2, "seed": 5}
    env, other = (make_env("random_matrix", keywords, n_envs=8, seed=seed) for seed in (0, 1))
    assert torch.equal(env.game.reward, other.game.reward)
    batch = rollout(env, 3)
    assert batch[next_key(TERMINATED)].all()
    seen = batch[OBSERVATION].argmax(-1)  # [E, T, N]
    assert set(seen.flatten().tolist()) == {0, 1, 2, 3}
    for row, t in product(range(8), range(3)):
        (game,) = set(seen[row, t].tolist())
        assert batch[next_key(REWARD)][row, t] == env.game.reward[(game, *batch[ACTION][row, t])]


@pytest.mark.parametrize(
    ("delay", "n_agents", "n_cues"), [(0, 2, 2), (1, 1, 3), (3, 2, 2), (2, 3, 2)]
)
def test_memory_equals_a_slow_loop(delay, n_agents, n_cues):
    keywords = {"delay": delay, "n_agents": n_agents, "n_cues": n_cues}
    batch = rollout(make_env("memory", keywords, n_envs=12), 5 * (delay + 1))
    observation, reward = batch[OBSERVATION], batch[next_key(REWARD)]
    assert 0 < reward.mean() < 1
    for row, t in product(range(12), range(5 * (delay + 1))):
        time = t % (delay + 1)
        if time == 0:
            cue = int(observation[row, t, 0, :n_cues].argmax())
        shown = [float(time == 0 and c == cue) for c in range(n_cues)]
        assert observation[row, t].tolist() == [[*shown, float(time == delay)]] * n_agents
        available = [time == delay or action == 0 for action in range(n_cues)]
        assert batch[ACTION_MASK][row, t].tolist() == [available] * n_agents
        named = batch[ACTION][row, t].tolist() == [cue] * n_agents
        assert reward[row, t] == float(time == delay and named)
        assert batch[next_key(TERMINATED)][row, t] == (time == delay)
        assert batch[STATE][row, t].argmax() == time * n_cues + cue
        if time < delay:
            for key in (OBSERVATION, ACTION_MASK, STATE):
                assert torch.equal(batch[next_key(key)][row, t], batch[key][row, t + 1])
        else:
            assert not batch[next_key(OBSERVATION)][row, t].any()


class NamesCue(TensorDictModuleBase):
    """Names the cue that was seen last, or always the same one, when it is time to decide."""

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
def test_memory_pays_1_to_who_remembers_and_exactly_its_share_to_who_does_not(n_cues, n_envs):
    env = make_env("memory", {"delay": 2, "n_cues": n_cues}, n_envs=n_envs)
    for seed in range(3):
        returns = episode_returns(env, NamesCue(), max_steps=3, seed=seed)
        assert returns.tolist() == [1] * n_envs
        for cue in range(n_cues):
            # As many environments begin with one cue as with another.
            returns = episode_returns(env, NamesCue(always=cue), max_steps=3, seed=seed)
            assert returns.sum() == n_envs / n_cues


# ---------------------------------------------------------------------- starts


def test_every_environment_begins_everywhere_equally_often():
    env, n_resets = make_env(walk(starts=(0, 1, 3)), n_envs=5), 1200
    dealt = torch.stack([env.reset()[STATE].argmax(-1) for _ in range(n_resets)])  # [K, E]
    counts = torch.stack([(dealt == start).sum(1) for start in (0, 1, 3)], 1)  # [K, 3]
    assert torch.equal(counts.sort(1).values, torch.tensor([1, 2, 2]).expand(n_resets, 3))
    # 400 of 1,200 with a standard deviation of sqrt(1200 * 1/3 * 2/3) = 16.3; four of them.
    for start in (0, 1, 3):
        assert ((dealt == start).sum(0) - 400).abs().max() < 65
    # Of the 10 pairs of environments, two begin in the same place: each in a fifth of the resets,
    # 240 with a standard deviation of sqrt(1200 * .2 * .8) = 13.9.
    for one, other in ((0, 1), (0, 3), (2, 4)):
        assert abs((dealt[:, one] == dealt[:, other]).sum() - 240) < 56


def test_the_seed_reproduces_the_starts():
    def starts(env):
        return torch.stack([env.reset()[STATE] for _ in range(5)])

    keywords = {"delay": 1, "n_cues": 3}
    one, same, other = (make_env("memory", keywords, n_envs=9, seed=seed) for seed in (5, 5, 6))
    first = starts(one)
    assert torch.equal(first, starts(same))
    assert not torch.equal(first, starts(other))
    assert not torch.equal(first, starts(one))
    for env in (one, other):
        env.set_seed(5)
        assert torch.equal(starts(env), first)
    one.set_seed(6)
    assert not torch.equal(starts(one), first)


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_generator_of_the_process_is_touched(name):
    def states():
        numpy_state = np.random.get_state()[1]  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state.tolist()

    before = states()
    env = make_env(name, EXAMPLES[name])
    rollout(env, 8)
    env.set_seed(4)
    env.reset()
    assert states() == before


# ---------------------------------------------------------------------- ends and resets


def test_a_walk_equals_a_slow_loop():
    env = make_env(walk(), n_envs=8, max_steps=6)
    batch, ends = rollout(env, 60), set()
    for row in range(8):
        place, age = 0, 0
        for t in range(60):
            step, after = batch[row, t], batch[row, t]["next"]
            assert step[OBSERVATION].tolist() == [[place], [-place]]
            assert step[STATE].argmax() == place
            assert step[IS_INIT] == (age == 0)
            go, take = step[ACTION].tolist()
            assert after[REWARD] == place * take
            place, age = place + go, age + 1
            assert after[OBSERVATION].tolist() == [[place], [-place]]
            assert after[STATE].argmax() == place
            assert not after[IS_INIT]
            assert after[TERMINATED] == (place == 4)
            assert after[DONE] == (place == 4 or age == 6)
            if place < 4:
                assert after[TRUNCATED] == (age == 6)
            ends.add((place == 4, age == 6))
            if after[DONE]:
                place, age = 0, 0
    assert ends == {(False, False), (True, False), (False, True), (True, True)}


@pytest.mark.parametrize(("name", "max_steps"), [("two_step", 1), ("memory", 2)])
def test_a_time_limit_below_the_length_of_a_game_truncates_and_never_terminates(name, max_steps):
    batch = rollout(make_env(name, EXAMPLES[name], max_steps=max_steps), 3 * max_steps)
    limit = [t % max_steps == max_steps - 1 for t in range(3 * max_steps)]
    for key in (TRUNCATED, DONE):
        assert batch[next_key(key)][..., 0].tolist() == [limit] * 4
    assert not batch[next_key(TERMINATED)].any()
    begun = [t % max_steps == 0 for t in range(3 * max_steps)]
    assert batch[IS_INIT][..., 0].tolist() == [begun] * 4


def test_a_game_that_is_over_at_its_time_limit_has_terminated():
    batch = rollout(make_env("matrix", EXAMPLES["matrix"], max_steps=1), 3)
    assert batch[next_key(TERMINATED)].all()


def test_a_reset_of_one_environment_leaves_the_others_alone():
    env = make_env(walk(), n_envs=3, max_steps=5)
    data = env.step_mdp(play(env, [GO, GO])[:, -1])
    data = env.reset(data.set("_reset", torch.tensor([[False], [True], [False]])))
    assert data[IS_INIT].flatten().tolist() == [False, True, False]
    assert not any(data[flag].any() for flag in (TERMINATED, TRUNCATED, DONE))
    assert data[OBSERVATION][:, 0, 0].tolist() == data[STATE].argmax(-1).tolist() == [2, 0, 2]
    truncated = []
    for _ in range(5):
        data.set(ACTION, torch.zeros(3, 2, dtype=torch.int64))
        step, data = env.step_and_maybe_reset(data)
        truncated.append(step[next_key(TRUNCATED)].flatten().tolist())
    # Of 5 steps, two are gone where nothing was reset.
    no, others = [False] * 3, [True, False, True]
    assert truncated == [no, no, others, no, [False, True, False]]


def test_without_own_resets_an_environment_that_is_done_idles_until_all_are_reset():
    env = make_env(walk(), n_envs=2, max_steps=5, reset_when_done=False)
    # The first environment ends after 4 steps, the second one is cut off after 5.
    steps = [torch.tensor([GO, STAY])] * 7
    for _ in range(2):
        batch = play(env, steps)
        assert places(batch).tolist() == [[0, 1, 2, 3, 4, 4, 4], [0] * 7]
        assert batch[IS_INIT][..., 0].tolist() == [[True] + [False] * 6] * 2
        done = [[False] * 3 + [True] * 4, [False] * 4 + [True] * 3]
        assert batch[next_key(DONE)][..., 0].tolist() == done
        assert batch[next_key(TERMINATED)][..., 0].tolist() == [done[0], [False] * 7]
        assert batch[next_key(TRUNCATED)][1, :, 0].tolist() == done[1]
        assert not batch[next_key(IS_INIT)].any()


def test_rows_of_episodes_are_masked_after_the_end():
    env = make_env("memory", {"delay": 2}, reset_when_done=False)
    collector = make_collector(env, RandomPolicy(2, seed=0), rows="episodes", steps=5, n_batches=3)
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert len(batches) == 3
    for batch in batches:
        assert batch[MASK].tolist() == [[True] * 3 + [False] * 2] * 4
        assert batch[IS_INIT][..., 0].tolist() == [[True] + [False] * 4] * 4
        assert batch[OBSERVATION][:, 0, :, :2].sum(-1).eq(1).all()
        assert batch[next_key(TERMINATED)][:, 2].all()


def test_rows_of_slices_hold_episodes_that_reach_across_batches():
    env = make_env("memory", {"delay": 2})
    collector = make_collector(env, RandomPolicy(2, seed=0), rows="slices", steps=4, n_batches=3)
    batch = torch.cat([batch.clone() for batch in collector], 1)  # [E, T]
    collector.shutdown()
    assert batch[MASK].all()
    assert batch[IS_INIT][..., 0].tolist() == [[t % 3 == 0 for t in range(12)]] * 4
    assert batch[next_key(TERMINATED)][..., 0].tolist() == [[t % 3 == 2 for t in range(12)]] * 4
    assert torch.equal(batch[OBSERVATION][..., :2].any(-1).all(-1), batch[IS_INIT][..., 0])


# ---------------------------------------------------------------------- a game of one's own


@pytest.mark.parametrize("state", ["world", "observations"])
def test_a_game_of_ones_own_keeps_the_contract(state):
    env = make_env(walk(starts=(1, 2)), state=state)
    check_env_specs(env)
    dims = env_dims(env)
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == (2, 1, 2)
    assert dims.state_shape == ((5,) if state == "world" else (2,))
    assert set(places(rollout(env, 20))[:, 0].tolist()) == {1, 2}


def test_a_game_of_ones_own_can_mask_actions_by_state():
    mask = torch.ones(5, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[2, 1, 1] = False  # at 0 the first agent must go, at 2 nothing is paid
    env = make_env(replace(walk(), action_mask=mask))
    check_env_specs(env)
    batch = rollout(env, 40)
    for row, t in product(range(4), range(40)):
        assert torch.equal(batch[ACTION_MASK][row, t], mask[places(batch)[row, t]])
    go, take = batch[ACTION].unbind(-1)
    assert (go[places(batch) == 0] == 1).all()
    assert (take[places(batch) == 2] == 0).all()


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


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scenario": "two_stp"},
            r"^env\.scenario: unknown game 'two_stp'; did you mean 'two_step'\?; "
            "known: matrix, memory, random_matrix, two_step$",
        ),
        ({"scenario": "chess"}, r"unknown game 'chess'; known: matrix"),
        ({"state": "global"}, r"^env\.state: expected one of world, observations, got 'global'$"),
        ({"n_envs": 0}, r"^env\.n_envs: expected at least 1, got 0$"),
        ({"max_steps": 0}, r"^env\.max_steps: expected at least 1, got 0$"),
        (
            {"scenario": walk(), "scenario_kwargs": {"delay": 1}},
            r"^env\.scenario_kwargs: expected none with a game of one's own$",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_run_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_env(**settings)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        (
            "memory",
            {"dely": 1},
            r"\.dely: unknown to game 'memory'; did you mean 'delay'\?; .*n_cues",
        ),
        ("two_step", {"delay": 1}, r"\.delay: unknown to game 'two_step'; it takes: none$"),
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
        # One action each: 21 agents alone are too many; 3,163 states squared are 10,004,569.
        (
            "random_matrix",
            {"n_games": 1, "n_agents": 21, "n_actions": 1},
            "at most 20 agents and .* 10,000,000 entries, got 21 agents, 1 actions and 2 states",
        ),
        ("random_matrix", {"n_games": 1, "n_agents": 10**9}, "at most 20 agents"),
        ("random_matrix", {"n_games": 3163, "n_agents": 1, "n_actions": 1}, "at most .* entries"),
        # A game and its end, 10^7 joint actions each.
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


def test_games_are_played_without_vmas():
    played = (
        "import sys; import qmix_trl.envs.games as games; "
        "games.make_env(scenario='two_step', n_envs=1, max_steps=2, state='world', seed=0)"
        ".rollout(2); sys.exit('vmas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", played], check=True, timeout=120)
