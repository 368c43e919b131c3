"""Level-based foraging: rules worked by hand, both engines, starts, ends, collection, settings."""

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from foraging_tools import (
    EAST,
    LOAD,
    NORTH,
    NOTHING,
    SOUTH,
    TASKS,
    WEST,
    cells_of,
    exact_starts,
    field,
    make_env,
    p_value,
    random_actions,
    rules_of,
    steps_of,
)
from torchrl.envs import check_env_specs

from qmix_trl import (
    EpsilonGreedyAction,
    RandomPolicy,
    RecurrentAgent,
    env_dims,
    make_collector,
    make_policy,
    with_memory,
)
from qmix_trl.chosen import CPP_LOOP, Chosen
from qmix_trl.envs import foraging_engines
from qmix_trl.errors import ConfigError
from qmix_trl.foraging_task import OPTIONS, ForagingTask, foraging_task
from qmix_trl.keys import (
    ACTION,
    ACTION_VALUE,
    AGENT_REWARD,
    DONE,
    HIDDEN,
    IS_INIT,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)
from qmix_trl.native import build

GONE = [-1, -1, 0]

try:
    build.compiler()
    HAS_COMPILER = True
except build.NoCompiler:
    HAS_COMPILER = False
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


def after(rules, fields, *actions):
    """Return what follows one step of one field: its units, the rewards, whether it ends."""
    fields, reward, terminated = rules.step(fields, torch.tensor([actions]))
    return fields.units[0].tolist(), reward[0].tolist(), bool(terminated)


# ---------------------------------------------------------------------- rules by hand


@pytest.mark.parametrize(
    ("action", "place"),
    [(NOTHING, [2, 2]), (NORTH, [1, 2]), (SOUTH, [3, 2]), (WEST, [2, 1]), (EAST, [2, 3])],
)
def test_players_move_by_one_cell(action, place):
    units, reward, ends = after(rules_of("5x5-1p-1f"), field([[1, 1, 3]], [[2, 2, 1]]), action)
    assert units == [[1, 1, 3], [*place, 1]]
    assert (reward, ends) == ([0], False)


@pytest.mark.parametrize(
    ("place", "action"),
    [([0, 2], NORTH), ([3, 2], SOUTH), ([2, 0], WEST), ([2, 5], EAST), ([1, 2], WEST)],
    ids=["top", "bottom", "left", "right", "food"],
)
def test_the_border_and_foods_stop_players(place, action):
    units, _, _ = after(rules_of("4x6-1p-1f"), field([[1, 1, 3]], [[*place, 1]]), action)
    assert units[1] == [*place, 1]


# Players at (2, 1), (2, 3) and (2, 4) of 5x5; where they are after the step.
@pytest.mark.parametrize(
    ("actions", "columns"),
    [
        ((EAST, WEST, NOTHING), (1, 3, 4)),  # two want the same cell
        ((NOTHING, EAST, WEST), (1, 4, 3)),  # two change places
        ((NOTHING, NOTHING, WEST), (1, 3, 4)),  # one stands in the other's way
        ((NOTHING, WEST, WEST), (1, 2, 3)),  # one follows another
        ((NOTHING, LOAD, WEST), (1, 3, 4)),  # one that loads stands in the way
        ((EAST, WEST, WEST), (1, 3, 3)),  # one enters the cell of another that is kept there
    ],
)
def test_players_that_want_the_same_cell_stay(actions, columns):
    before = field([[4, 0, 9]], [[2, 1, 1], [2, 3, 1], [2, 4, 1]])
    units, _, _ = after(rules_of("5x5-3p-1f"), before, *actions)
    assert [column for _, column, _ in units[1:]] == list(columns)


def test_players_load_the_food_next_to_them_together():
    rules = rules_of("6x6-3p-2f", penalty=0.5)
    before = field([[2, 2, 4], [4, 4, 1]], [[2, 1, 1], [1, 2, 3], [3, 2, 2]])
    # Levels 1 + 3 suffice for 4 and share 4 of the field's 5 by their levels.
    units, reward, ends = after(rules, before, LOAD, LOAD, NOTHING)
    assert units == [GONE, [4, 4, 1], [2, 1, 1], [1, 2, 3], [3, 2, 2]]
    assert reward == pytest.approx([4 / 5 * 1 / 4, 4 / 5 * 3 / 4, 0])
    assert not ends
    # Levels 1 + 2 do not; those who tried pay.
    units, reward, _ = after(rules, before, LOAD, NOTHING, LOAD)
    assert units[0] == [2, 2, 4]
    assert reward == [-0.5, 0, -0.5]


def test_loading_next_to_no_food_does_nothing():
    rules = rules_of("6x6-1p-1f", penalty=0.5)
    for place in ([1, 1], [2, 4], [0, 0]):  # (1, 1) is the food's corner
        units, reward, _ = after(rules, field([[2, 2, 1]], [[*place, 2]]), LOAD)
        assert (units, reward) == ([[2, 2, 1], [*place, 2]], [0])


def test_the_last_food_ends_the_episode():
    rules = rules_of("6x6-1p-2f")
    before = field([GONE, [2, 2, 2]], [[2, 3, 2]])._replace(spawned=torch.tensor([3.0]))
    units, reward, ends = after(rules, before, LOAD)
    assert units == [GONE, GONE, [2, 3, 2]]
    assert reward == pytest.approx([2 / 3])
    assert ends
    assert after(rules, before, WEST)[2] is False


def test_rewards_that_are_not_normalized_are_levels_of_food_times_levels():
    rules = rules_of("6x6-2p-1f", normalize_reward=False)
    _, reward, _ = after(rules, field([[2, 2, 4]], [[2, 1, 1], [2, 3, 3]]), LOAD, LOAD)
    assert reward == [4, 12]


def test_observations_list_foods_then_oneself_then_others():
    fields = field([[1, 1, 3], [4, 2, 2]], [[0, 3, 1], [5, 5, 2]])
    first, second = rules_of("6x6-2p-2f").observe(fields)[0].tolist()
    assert first == [1, 1, 3, 4, 2, 2, 0, 3, 1, 5, 5, 2]
    assert second == [1, 1, 3, 4, 2, 2, 5, 5, 2, 0, 3, 1]


def test_observations_count_from_the_corner_of_the_window():
    rules = rules_of("2s-9x9-3p-2f")
    # The window of a player at (5, 5) begins at (3, 3), and ends at (7, 7).
    fields = field([[2, 5, 1], [7, 3, 4]], [[5, 5, 2], [3, 7, 1], [8, 5, 1]])
    assert rules.observe(fields)[0, 0].tolist() == [4, 0, 4, *GONE, 2, 2, 2, 0, 4, 1, *GONE]
    # That of a player at (0, 1) is cut: it begins at (0, 0). Foods are seen up to (2, 3), and
    # players up to (4, 4).
    fields = field([[2, 3, 1], [3, 1, 4]], [[0, 1, 2], [4, 4, 1], [5, 1, 1]])
    assert rules.observe(fields)[0, 0].tolist() == [2, 3, 1, *GONE, 0, 1, 2, 4, 4, 1, *GONE]


def test_eaten_foods_leave_no_gap_in_observations():
    fields = field([GONE, [4, 2, 2]], [[0, 3, 1]])
    assert rules_of("6x6-1p-2f").observe(fields)[0, 0].tolist() == [4, 2, 2, *GONE, 0, 3, 1]


# ---------------------------------------------------------------------- engines


@needs_compiler
@pytest.mark.parametrize("state", ["observations", "world"])
@pytest.mark.parametrize("name", TASKS)
def test_the_engines_return_the_same_numbers(name, state):
    n_envs, n_steps, ends = 50, 40, 0
    engines = [
        make_env(name, TASKS[name], n_envs=n_envs, max_steps=15, state=state, engine=engine)
        for engine in ("kernel", "tensors")
    ]
    assert torch.equal(*(env.reset()[STATE] for env in engines))
    buffers = [env.begin_buffers(n_steps) for env in engines]
    generator = torch.Generator().manual_seed(0)
    for t in range(n_steps):
        action = random_actions(engines[0], generator)
        done = [env.step_buffers(b, t, action) for env, b in zip(engines, buffers, strict=True)]
        assert torch.equal(*done)
        ends += int(done[0].sum())
    assert ends >= 2 * n_envs
    for entry in ("seen", "next_seen", "agent_reward", "reward", "terminated", "truncated"):
        assert torch.equal(*(getattr(b, entry) for b in buffers)), entry


@needs_compiler
@pytest.mark.parametrize("state", ["observations", "world"])
@pytest.mark.parametrize("engine", ["kernel", "tensors"])
def test_scaled_observations_are_raw_ones_over_the_longer_side(engine, state):
    raw, scaled = (
        make_env("2s-6x9-3p-2f", {"scale_observations": on}, engine=engine, state=state, n_envs=9)
        for on in (False, True)
    )
    data = [raw.reset(), scaled.reset()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):  # with resets, at 20 steps
        for key in (OBSERVATION, STATE):
            assert torch.equal(data[0][key] / 9, data[1][key])
        action = random_actions(raw, generator)
        pairs = zip((raw, scaled), data, strict=True)
        steps, data = zip(
            *(env.step_and_maybe_reset(shown.set(ACTION, action)) for env, shown in pairs),
            strict=True,
        )
        steps = [step["next"] for step in steps]
        assert torch.equal(steps[0][REWARD], steps[1][REWARD])
        assert torch.equal(steps[0][OBSERVATION] / 9, steps[1][OBSERVATION])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", TASKS)
def test_a_gpu_returns_the_numbers_of_the_cpu(name):
    settings = {"n_envs": 50, "engine": "tensors"}
    envs = [make_env(name, TASKS[name], device=device, **settings) for device in ("cpu", "cuda")]
    for steps in zip(*(steps_of(env, 40) for env in envs), strict=True):
        here, there = (step.cpu() for _, step in steps)
        assert (here == there).all()


@needs_compiler
def test_threads_and_steps_in_one_call_change_no_bit():
    def buffers_of(n_threads, steps_per_call):
        env = make_env("10x10-3p-3f", n_envs=40, engine="kernel")
        env.reset()
        buffers = env.begin_buffers(30)
        buffers.action.copy_(
            torch.randint(6, buffers.action.shape, generator=torch.Generator().manual_seed(0))
        )
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        for t in range(0, 30, steps_per_call):
            env.engine.advance(buffers, t, steps_per_call, reset_when_done=True)
        torch.set_num_threads(before)
        return buffers

    one, other = buffers_of(1, 1), buffers_of(2, 30)
    assert one.done.any()
    assert torch.equal(one.seen, other.seen)
    assert torch.equal(one.reward, other.reward)


def test_how_tells_the_engine(monkeypatch):
    assert make_env(engine="tensors").how == Chosen("tensors")
    if HAS_COMPILER:
        assert make_env().how == make_env(engine="kernel").how == Chosen("kernel")

    def refuse():
        raise build.NoCompiler("no C++ compiler was found")

    monkeypatch.setattr(foraging_engines, "library", refuse)
    assert make_env().how == Chosen("tensors", {"kernel": "no C++ compiler was found"})
    with pytest.raises(ConfigError, match=r"^env\.engine: kernel is asked for, but no C\+\+"):
        make_env(engine="kernel")


# ---------------------------------------------------------------------- specs and steps


@pytest.mark.parametrize("state", ["observations", "world"])
@pytest.mark.parametrize("engine", ["auto", "tensors"])
def test_environments_match_their_specs(engine, state):
    env = make_env("2s-10x8-3p-4f", state=state, engine=engine)
    check_env_specs(env)
    dims = env_dims(env)
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == (3, 21, 6)
    assert dims.state_shape == ((63,) if state == "observations" else (21,))


def test_steps_hold_rewards_states_and_observations():
    env = make_env("1s-5x5-3p-2f", n_envs=30, state="world", max_steps=10)
    rewarded = 0
    for before, step in steps_of(env, 40):
        assert torch.equal(step[STATE], before.units.flatten(1))
        reward = step[next_key(AGENT_REWARD)]
        torch.testing.assert_close(step[next_key(REWARD)], reward.sum(1))
        rewarded += int((reward > 0).any(1).sum())
        foods = step[next_key(STATE)].unflatten(-1, (5, 3))[:, :2]
        assert torch.equal(step[next_key(TERMINATED)], (foods[..., 2] == 0).all(1, keepdim=True))
    assert rewarded > 30


def test_an_episode_in_which_all_is_eaten_returns_1():
    env, total = make_env("4x4-3p-2f", n_envs=40, max_steps=200), torch.zeros(40, 1)
    wins = 0
    for _, step in steps_of(env, 200):
        total += step[next_key(REWARD)]
        eaten = step[next_key(TERMINATED)]
        torch.testing.assert_close(total[eaten], torch.ones(int(eaten.sum())))
        wins += int(eaten.sum())
        total[step[next_key(DONE)]] = 0
    assert wins > 40


def test_the_time_limit_truncates():
    env = make_env(max_steps=3)
    batch = env.rollout(7, RandomPolicy(6, seed=0), break_when_any_done=False)
    late = [t % 3 == 2 for t in range(7)]
    for key in (TRUNCATED, DONE):
        assert batch[next_key(key)][..., 0].tolist() == [late] * 4
    assert not batch[next_key(TERMINATED)].any()
    assert batch[IS_INIT][..., 0].tolist() == [[t % 3 == 0 for t in range(7)]] * 4
    assert not torch.equal(batch[OBSERVATION][:, 0], batch[OBSERVATION][:, 3])


def test_a_reset_of_one_environment_does_not_change_the_others():
    env = make_env(n_envs=3)
    data = env.reset()
    _, data = env.step_and_maybe_reset(data.set(ACTION, torch.zeros(3, 2, dtype=torch.int64)))
    first = data[OBSERVATION].clone()
    data = env.reset(data.set("_reset", torch.tensor([[False], [True], [False]])))
    assert data[IS_INIT].flatten().tolist() == [False, True, False]
    same = (data[OBSERVATION] == first).flatten(1).all(1)
    assert same.tolist() == [True, False, True]
    assert env.run_state()["episodes"].tolist() == [1, 2, 1]


def test_without_reset_when_done_environments_idle_until_all_are_reset():
    env = make_env("3x3-1p-1f", n_envs=20, max_steps=12, reset_when_done=False)
    batch = env.rollout(15, RandomPolicy(6, seed=0), break_when_any_done=False)
    done, terminated = batch[next_key(DONE)][..., 0], batch[next_key(TERMINATED)][..., 0]
    assert 0 < terminated[:, 5].sum() < 20
    assert (done[:, 1:] >= done[:, :-1]).all()
    assert done[:, 11].all()
    assert not batch[IS_INIT][:, 1:].any()
    begun = env.reset()
    assert begun[IS_INIT].all()
    assert (begun[STATE][:, 2] > 0).any()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), r"expected actions int64 \[4, 2\], got"),
        (torch.zeros(4, 2), r"expected actions int64 \[4, 2\], got torch.float32"),
        (torch.full((4, 2), 6), "expected actions from 0 to 5, got 6"),
        (torch.full((4, 2), -1), "expected actions from 0 to 5, got -1"),
    ],
)
def test_actions_that_are_none_are_refused(action, message):
    env = make_env()
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step_buffers(env.begin_buffers(1), 0, action)


# ---------------------------------------------------------------------- starts


def starts(rules, n_envs):
    """Return the fields of the first episodes."""
    return rules.spawn(3, torch.arange(n_envs), torch.zeros(n_envs, dtype=torch.int64))


def test_starts_are_uniform_over_possible_cells():
    expected = exact_starts(4, 5)
    assert sum(expected.values()) == 1
    assert min(len(foods) for _, foods in expected) == 1  # some leave no room for a second food
    fields = starts(rules_of("1s-4x5-1p-2f"), 20_000)
    counts = Counter(cells_of(units, 2) for units in fields.units.tolist())
    assert p_value(counts, expected) > 0.001


def test_other_starts_are_told_from_uniform_ones():
    expected = exact_starts(4, 5)
    n = 20_000
    # Foods that may lie two cells apart in a row, as if the rule of spacing were shorter.
    skewed = Counter(
        {x: n * float(p) * (1.3 if len(x[1]) == 1 else 1) for x, p in expected.items()}
    )
    skewed = Counter({x: round(count * n / skewed.total()) for x, count in skewed.items()})
    assert p_value(skewed, expected) < 1e-6


def test_players_take_different_cells():
    fields = starts(rules_of("3x4-9p-1f"), 500)
    place = fields.units[:, 1:, 0] * 4 + fields.units[:, 1:, 1]
    assert all(len(set(row)) == 9 for row in place.tolist())
    # Each of the 12 cells is a player's in 3 of 4 fields: 375 of 500, with a standard deviation
    # of 9.7; 39 is four of them.
    assert (torch.bincount(place.long().flatten(), minlength=12) - 375).abs().max() < 39


@pytest.mark.parametrize(
    ("name", "options", "lowest", "above_sum"),
    [
        ("9x9-4p-3f", {}, 1, 0),
        ("9x9-4p-3f", {"rules": "v2"}, 1, -1),
        ("9x9-4p-3f", {"rules": "v1"}, 1, -1),
        ("9x9-4p-3f-coop", {}, None, 0),
        ("9x9-4p-3f-coop", {"rules": "v2"}, None, 0),
        ("9x9-4p-3f", {"min_food_level": 2}, 2, 0),
    ],
)
def test_levels_of_food_follow_those_of_players(name, options, lowest, above_sum):
    n = 6000
    fields = starts(rules_of(name, **options), n)
    foods, players = fields.units[..., 2].long().split([3, 4], 1)
    assert set(players.flatten().tolist()) == {1, 2}
    assert abs(int((players == 1).sum()) - 2 * n) < 4 * n**0.5  # n: 4 n draws, variance 1/4
    three = players.sort(1).values[:, :3].sum(1)
    assert torch.equal(fields.spawned, foods.sum(1).float())
    for level in three.unique().tolist():
        drawn = foods[three == level].flatten()
        highest = level + above_sum
        if lowest is None:
            assert (drawn == highest).all()
            continue
        possible = range(lowest, highest + 1)
        expected = {x: 1 / len(possible) for x in possible}
        assert p_value(Counter(drawn.tolist()), expected) > 0.001


def test_ranges_of_levels():
    rules = rules_of(
        "9x9-2p-2f", min_player_level=3, max_player_level=5, min_food_level=2, max_food_level=4
    )
    fields = starts(rules, 900)
    assert set(fields.units[:, :2, 2].flatten().tolist()) == {2, 3, 4}
    assert set(fields.units[:, 2:, 2].flatten().tolist()) == {3, 4, 5}
    fields = starts(rules_of("9x9-2p-2f-coop", max_food_level=7), 90)
    assert set(fields.units[:, :2, 2].flatten().tolist()) == {7}


def test_in_v1_players_do_not_start_in_the_last_row_and_column():
    for rules, last in (("v1", 3), ("v2", 4), ("v3", 4)):
        units = (
            rules_of("5x5-2p-1f", rules=rules)
            .spawn(0, torch.arange(300), torch.zeros(300).long())
            .units
        )
        assert units[:, 1:, :2].max() == last


def test_one_player_of_level_1_finds_food_of_level_1_in_v2():
    # The range from 1 to below 1 is empty: the package takes 1.
    units = (
        rules_of("5x5-1p-1f", rules="v2").spawn(0, torch.arange(90), torch.zeros(90).long()).units
    )
    assert set(units[:, 0, 2].tolist()) == {1}


# ---------------------------------------------------------------------- seeds and resuming


def test_the_seed_reproduces_the_starts():
    def states(env):
        return torch.stack([env.reset()[STATE] for _ in range(3)])

    one, same, other = (make_env(n_envs=9, seed=seed) for seed in (5, 5, 6))
    first = states(one)
    assert torch.equal(first, states(same))
    assert not torch.equal(first, states(other))
    assert not torch.equal(first, states(one))
    assert len(first.flatten(0, 1).unique(dim=0)) == 27
    for env in (one, other):
        env.set_seed(5)
        assert torch.equal(states(env), first)


def test_no_generator_of_the_process_is_touched():
    def states():
        numpy_state = np.random.get_state()[1]  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state.tolist()

    before = states()
    for engine in ("auto", "tensors"):
        env = make_env("3x3-1p-1f", engine=engine)
        env.rollout(8, RandomPolicy(6, seed=0), break_when_any_done=False)
        env.set_seed(4)
        env.reset()
    assert states() == before


@needs_compiler
def test_one_engine_continues_where_the_other_stopped():
    envs = [make_env("5x5-2p-2f", n_envs=10, engine=name) for name in ("kernel", "tensors")]
    for _ in steps_of(envs[0], 30):
        pass
    envs[1].load_run_state(envs[0].run_state())
    batches = []
    for env in envs:
        env.rollout(1)  # from a reset of all
        batches.append(torch.stack([step for _, step in steps_of(env, 30)], 1))
    assert (batches[0] == batches[1]).all()


def test_a_state_of_another_task_is_refused():
    state = make_env("8x8-2p-3f").run_state()
    with pytest.raises(ValueError, match=r"ForagingTeam: expected 'units' of shape \(4, 4, 3\)"):
        make_env("8x8-2p-2f").load_run_state(state)


# ---------------------------------------------------------------------- collection


@pytest.mark.parametrize("rows", ["slices", "episodes"])
def test_collectors_return_the_same_batches(rows):
    def batches_of(engine, collector):
        torch.manual_seed(0)
        env = make_env(
            "2s-5x5-2p-2f", engine=engine, max_steps=10, reset_when_done=rows == "slices"
        )
        dims = env_dims(env)
        agent = RecurrentAgent(dims.n_agents, dims.observation_dim, dims.n_actions)
        policy = make_policy(agent, EpsilonGreedyAction(0.5, 0.5, 0, seed=0))
        found = make_collector(
            with_memory(env, agent), policy, rows=rows, steps=10, n_batches=4, collector=collector
        )
        batches = torch.stack([batch.clone() for batch in found])
        return batches, found.how

    (stock, _), (steps, how) = batches_of("tensors", "stock"), batches_of("tensors", "fused")
    assert how == Chosen(
        "step loop", {CPP_LOOP: "the environment's step is not compiled for the CPU"}
    )
    compared = [steps]
    if HAS_COMPILER:
        loop, how = batches_of("kernel", "auto")
        assert how == Chosen(CPP_LOOP)
        compared.append(loop)
    assert stock[next_key(DONE)].any()
    assert stock[next_key(REWARD)].any()
    for batches in compared:
        for key in (OBSERVATION, STATE, IS_INIT, ACTION, MASK):
            assert torch.equal(batches[key], stock[key]), key
        for key in (OBSERVATION, STATE, REWARD, AGENT_REWARD, TERMINATED, TRUNCATED, DONE):
            assert torch.equal(batches[next_key(key)], stock[next_key(key)]), key
        for key in (ACTION_VALUE, HIDDEN):  # sums in another order, of float32
            torch.testing.assert_close(batches[key], stock[key], rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- settings


def test_names_hold_sight_field_players_foods_and_cooperation():
    assert foraging_task("2s-8x10-3p-4f-coop", {}) == ForagingTask(
        n_rows=8, n_columns=10, n_players=3, n_foods=4, sight=2, force_coop=True
    )
    assert foraging_task("15x12-2p-1f", {"penalty": 1}) == ForagingTask(
        n_rows=15, n_columns=12, n_players=2, n_foods=1, sight=15, force_coop=False, penalty=1
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "8x8",
        "8x8-2p",
        "8x8-2p-2f-v3",
        "Foraging-8x8-2p-2f-coop-v3",
        "8x8-2p-2f-coop-2s",
        "8x8-0p-2f",
        "08x8-2p-2f",
        "8x8-2p-2f-coop ",
        "8x8-2p-2f\n",
        "100x8-2p-2f",
        "8x8-2p-2f-ind",
        "8X8-2p-2f",
        "²x8-2p-2f",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"^env\.scenario: expected a foraging task \[Ns-\]XxY"):
        make_env(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "2x8-1p-1f"}, r"^env\.scenario: expected a field of at least 3x3.*got 2x8$"),
        ({"scenario": "3x3-10p-1f"}, r"expected at most 9 players in 3x3, got 10$"),
        (
            {"scenario": "3x3-5p-1f", "scenario_kwargs": {"rules": "v1"}},
            r"expected at most 4 players in 3x3, got 5$",
        ),
        ({"scenario_kwargs": {"sigt": 2}}, r"kwargs\.sigt: unknown to foraging; it takes: rules"),
        ({"scenario_kwargs": {"penalti": 2}}, r"did you mean 'penalty'\?"),
        ({"scenario_kwargs": {"rules": "v4"}}, r"rules: expected one of v1, v2, v3, got 'v4'$"),
        ({"scenario_kwargs": {"penalty": -1}}, r"penalty: expected a number of at least 0, got -1"),
        ({"scenario_kwargs": {"penalty": True}}, r"penalty: expected a number"),
        ({"scenario_kwargs": {"penalty": float("nan")}}, r"penalty: expected a number"),
        ({"scenario_kwargs": {"normalize_reward": 1}}, r"expected true or false, got 1$"),
        ({"scenario_kwargs": {"max_player_level": 0}}, r"whole number from 1 to 99, got 0$"),
        ({"scenario_kwargs": {"max_player_level": None}}, r"from 1 to 99, got None$"),
        ({"scenario_kwargs": {"max_food_level": 2.0}}, r"from 1 to 99 or null, got 2\.0$"),
        (
            {"scenario_kwargs": {"min_player_level": 3}},
            r"min_player_level \(3\) is above the highest level \(2\) of a player$",
        ),
        (
            {"scenario": "8x8-2p-2f", "scenario_kwargs": {"min_food_level": 3}},
            r"min_food_level \(3\) is above the highest level \(2\) of a food$",
        ),
        (
            {"scenario_kwargs": {"min_food_level": 1}},
            r"min_food_level: expected none with -coop, where every food has the highest level$",
        ),
        (
            {"scenario_kwargs": {"rules": "v2", "max_food_level": 2}},
            r"max_food_level: expected none with rules v2; rules: v3 has it$",
        ),
        ({"state": "global"}, r"^env\.state: expected one of world, observations, got 'global'$"),
        ({"engine": "fast"}, r"^env\.engine: expected one of auto, kernel, tensors, got 'fast'$"),
        ({"n_envs": 0}, r"^env\.n_envs: expected at least 1, got 0$"),
        ({"max_steps": 0}, r"^env\.max_steps: expected at least 1, got 0$"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_run_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_env(**settings)


def test_every_option_is_named_where_it_is_checked():
    # A new option falls into none of the kinds of _check_option.
    assert set(OPTIONS) == {
        "rules",
        "min_player_level",
        "max_player_level",
        "min_food_level",
        "max_food_level",
        "penalty",
        "normalize_reward",
        "scale_observations",
    }


def test_foraging_does_not_import_vmas():
    played = (
        "import sys; import qmix_trl.envs.foraging as f; "
        "f.make_env(scenario='8x8-2p-2f', n_envs=1, max_steps=2, state='world', seed=0)"
        ".rollout(2); sys.exit('vmas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", played], check=True, timeout=120)
