"""Level-based foraging beside the package ``lbforaging``, from equal states, number for number."""

from collections import Counter

import numpy as np
import pytest
from foraging_tools import (
    TASKS,
    cells_of,
    exact_starts,
    make_env,
    p_value,
    package_env,
    put,
    steps_of,
)

from qmix_trl.foraging_task import foraging_task
from qmix_trl.keys import AGENT_REWARD, DONE, IS_INIT, OBSERVATION, TERMINATED, TRUNCATED, next_key

pytest.importorskip("lbforaging")
MAX_STEPS = 30


def check_steps(name, *, n_envs, n_steps):
    """Compare random steps of both sides; the package's begin where ours begin. Count events."""
    env = make_env(name, TASKS[name], n_envs=n_envs, max_steps=MAX_STEPS)
    packages = [package_env(env.task, MAX_STEPS) for _ in range(n_envs)]
    seen = Counter()
    for before, step in steps_of(env, n_steps):
        for e, package in enumerate(packages):
            if step[IS_INIT][e]:
                put(package, before.units[e], before.spawned[e])
            assert np.array_equal(package._make_gym_obs(), step[OBSERVATION][e])
            observation, reward, done, *_ = package.step(step["agents", "action"][e].tolist())
            ours = {key: step[next_key(key)][e] for key in (OBSERVATION, TERMINATED, TRUNCATED)}
            assert np.array_equal(observation, ours[OBSERVATION])
            assert np.array_equal(np.float32(reward), step[next_key(AGENT_REWARD)][e, :, 0])
            assert done == step[next_key(DONE)][e]
            assert ours[TERMINATED] == (package.field.sum() == 0)
            assert ours[TRUNCATED] == (package.current_step >= MAX_STEPS)
            places = [player.position for player in package.players]
            seen["shared cell"] += len(set(places)) < len(places)
            seen["loaded"] += max(reward) > 0
            seen["penalty"] += min(reward) < 0
            seen["terminated"] += bool(ours[TERMINATED])
            seen["truncated"] += bool(ours[TRUNCATED])
    return seen


def test_steps_equal_the_packages():
    seen = Counter()
    for name in TASKS:
        seen += check_steps(name, n_envs=6, n_steps=40)
    assert len(seen) == 5
    assert min(seen.values()) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_many_steps_equal_the_packages(name):
    assert check_steps(name, n_envs=50, n_steps=250)["loaded"] > 10


def package_starts(name, n):
    """Yield rows, columns and levels of foods and players of new environments of the package."""
    package = package_env(foraging_task(name, {}), MAX_STEPS)
    package.reset(seed=0)
    for _ in range(n):
        for player in package.players:
            player.position = None  # old cells would stay occupied
        package.reset()
        foods = [(r, c, package.field[r, c]) for r, c in np.argwhere(package.field)]
        yield foods, [(*player.position, player.level) for player in package.players]


def test_the_packages_starts_have_the_probabilities_that_ours_have():
    # Ours are compared with the same probabilities in test_foraging.py.
    # Places in a window: the package refuses its own observations of whole fields of this shape.
    starts = package_starts("1s-4x5-1p-2f", 2500)
    counts = Counter(cells_of([*foods, *players], len(foods)) for foods, players in starts)
    assert p_value(counts, exact_starts(4, 5)) > 0.001


def test_the_packages_levels_have_the_probabilities_that_ours_have():
    counts, players_of_1, n = {}, 0, 2000
    for foods, players in package_starts("9x9-4p-3f", n):
        levels = sorted(level for *_, level in players)
        players_of_1 += levels.count(1)
        for *_, level in foods:
            counts.setdefault(sum(levels[:3]), Counter())[int(level)] += 1
    assert abs(players_of_1 - 2 * n) < 4 * n**0.5  # of 4 n levels, each 1 or 2
    for highest, drawn in counts.items():
        assert p_value(drawn, dict.fromkeys(range(1, highest + 1), 1 / highest)) > 0.001
