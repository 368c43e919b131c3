"""The environment of a game: specs, starts, ends and resets, against slow loops."""

import random
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from games_tools import EXAMPLES, corridor, make_env, play, rollout
from torchrl.envs import check_env_specs

from qmix_trl import RandomPolicy, env_dims, make_collector
from qmix_trl.chosen import Chosen
from qmix_trl.envs.game_tables import GAMES
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

# agents, observation size, actions, states
DIMS = {
    "matrix": (2, 2, 3, 2),  # the state and the end, one-hot; 3 actions of the second agent
    "memory": (3, 3, 2, 7),  # 2 cues and a flag; 3 times with 2 cues each, and the end
    "random_matrix": (2, 4, 3, 4),  # 3 games and the end
    "two_step": (2, 4, 2, 4),  # the paper's 1, 2A and 2B, and the end
}


def places(batch):
    """Return the places [E, T] that the first agent of ``corridor`` observes."""
    return batch[OBSERVATION][..., 0, 0].long()


STAY, GO = [0, 0], [1, 0]  # in corridor


# ---------------------------------------------------------------------- specs and sizes


def test_every_game_has_an_example():
    assert EXAMPLES.keys() == DIMS.keys() == GAMES.keys()


@pytest.mark.parametrize("state", ["world", "observations"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_game_matches_its_specs_and_the_sizes_worked_by_hand(name, state):
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
    for e, t in product(range(6), range(6)):
        joint = (int(here[e, t]), *batch[ACTION][e, t].tolist())
        assert after[e, t] == env.game.next_state[joint]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_agent_gets_the_reward_of_the_team(name):
    batch = rollout(make_env(name, EXAMPLES[name]), 8)
    reward, n_agents = batch[next_key(REWARD)], DIMS[name][0]
    assert reward.any()
    assert batch[next_key(AGENT_REWARD)].shape == (4, 8, n_agents, 1)
    for agent in range(n_agents):
        assert torch.equal(batch[next_key(AGENT_REWARD)][:, :, agent], reward)


def test_the_state_of_observations_concatenates_those_of_all_agents():
    batch = rollout(make_env(corridor(), state="observations"), 12)
    for of in (lambda key: key, next_key):
        first, second = batch[of(OBSERVATION)].unbind(2)
        assert torch.equal(batch[of(STATE)], torch.cat([first, second], -1))
    assert (batch[STATE][..., 1] < 0).any()


# ---------------------------------------------------------------------- starts


def test_every_environment_starts_in_each_start_equally_often():
    env, n_resets = make_env(corridor(starts=(0, 1, 3)), n_envs=5), 1200
    drawn = torch.stack([env.reset()[STATE].argmax(-1) for _ in range(n_resets)])  # [K, E]
    counts = torch.stack([(drawn == start).sum(1) for start in (0, 1, 3)], 1)  # [K, 3]
    assert torch.equal(counts.sort(1).values, torch.tensor([1, 2, 2]).expand(n_resets, 3))
    # Expected are 400 of 1,200, with a standard deviation of sqrt(1200 * 1/3 * 2/3) = 16.3; 65 is
    # four of them.
    for start in (0, 1, 3):
        assert ((drawn == start).sum(0) - 400).abs().max() < 65
    # In each reset 2 of the 10 pairs of environments share a start: expected are 240 of 1,200 for
    # each pair, with a standard deviation of sqrt(1200 * .2 * .8) = 13.9; 56 is four of them.
    for one, other in ((0, 1), (0, 3), (2, 4)):
        assert abs((drawn[:, one] == drawn[:, other]).sum() - 240) < 56


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


def test_a_corridor_equals_a_slow_loop():
    env = make_env(corridor(), n_envs=8, max_steps=6)
    batch, ends = rollout(env, 60), set()
    for e in range(8):
        place, age = 0, 0
        for t in range(60):
            step, after = batch[e, t], batch[e, t]["next"]
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
def test_a_time_limit_below_the_length_of_a_game_truncates(name, max_steps):
    batch = rollout(make_env(name, EXAMPLES[name], max_steps=max_steps), 3 * max_steps)
    limit = [t % max_steps == max_steps - 1 for t in range(3 * max_steps)]
    for key in (TRUNCATED, DONE):
        assert batch[next_key(key)][..., 0].tolist() == [limit] * 4
    assert not batch[next_key(TERMINATED)].any()
    begun = [t % max_steps == 0 for t in range(3 * max_steps)]
    assert batch[IS_INIT][..., 0].tolist() == [begun] * 4


def test_an_end_at_the_time_limit_terminates():
    batch = rollout(make_env("matrix", EXAMPLES["matrix"], max_steps=1), 3)
    assert batch[next_key(TERMINATED)].all()


def test_a_reset_of_one_environment_does_not_change_the_others():
    env = make_env(corridor(), n_envs=3, max_steps=5)
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
    # Environments that were not reset have 3 of their 5 steps left.
    no, others = [False] * 3, [True, False, True]
    assert truncated == [no, no, others, no, [False, True, False]]


def test_without_reset_when_done_an_environment_idles_until_all_are_reset():
    env = make_env(corridor(), n_envs=2, max_steps=5, reset_when_done=False)
    # The first environment terminates after 4 steps, the second one is truncated after 5.
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


# ---------------------------------------------------------------------- own games


@pytest.mark.parametrize("state", ["world", "observations"])
def test_an_own_game_keeps_the_contract(state):
    env = make_env(corridor(starts=(1, 2)), state=state)
    check_env_specs(env)
    dims = env_dims(env)
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == (2, 1, 2)
    assert dims.state_shape == ((5,) if state == "world" else (2,))
    assert set(places(rollout(env, 20))[:, 0].tolist()) == {1, 2}


def test_an_own_game_can_mask_actions_by_state():
    mask = torch.ones(5, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[2, 1, 1] = False  # no staying at 0, no earning at 2
    env = make_env(replace(corridor(), action_mask=mask))
    check_env_specs(env)
    batch = rollout(env, 40)
    for e, t in product(range(4), range(40)):
        assert torch.equal(batch[ACTION_MASK][e, t], mask[places(batch)[e, t]])
    go, take = batch[ACTION].unbind(-1)
    assert (go[places(batch) == 0] == 1).all()
    assert (take[places(batch) == 2] == 0).all()


# ---------------------------------------------------------------------- settings


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
            {"scenario": corridor(), "scenario_kwargs": {"delay": 1}},
            r"^env\.scenario_kwargs: expected none with a game of one's own$",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_run_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_env(**settings)


def test_a_game_is_stepped_by_its_tables():
    assert make_env("two_step").how == Chosen("tables")


def test_games_do_not_import_vmas():
    played = (
        "import sys; import qmix_trl.envs.games as games; "
        "games.make_env(scenario='two_step', n_envs=1, max_steps=2, state='world', seed=0)"
        ".rollout(2); sys.exit('vmas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", played], check=True, timeout=120)
