"""Fields of level-based foraging, random steps, exact starts, and the package's environments."""

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import torch
from scipy.stats import chisquare

from qmix_trl import make_env as make_env_of
from qmix_trl.envs.foraging_rules import Fields, ForagingRules
from qmix_trl.foraging_task import foraging_task
from qmix_trl.keys import ACTION

NOTHING, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
# A task for each option and each case of the rules: sights, fields that are not square, players
# that share a cell, penalties, ranges of levels, foods without room.
TASKS = {
    "8x8-2p-2f-coop": {},
    "2s-8x8-2p-2f-coop": {"rules": "v2"},
    "10x10-3p-3f": {"rules": "v1"},
    "1s-4x6-4p-4f": {"penalty": 0.1, "normalize_reward": False, "max_player_level": 3},
    "3s-5x5-5p-3f": {
        "penalty": 0.25,
        "min_player_level": 2,
        "max_player_level": 4,
        "min_food_level": 2,
        "max_food_level": 9,
    },
    "2s-6x9-3p-2f-coop": {"max_food_level": 4},
    "3x3-2p-1f": {},
}


def make_env(scenario="8x8-2p-2f-coop", scenario_kwargs=None, **settings):
    """Return a small environment; ``settings`` override its own."""
    settings = {"n_envs": 4, "max_steps": 20, "state": "observations", "seed": 0, **settings}
    return make_env_of("foraging", scenario=scenario, scenario_kwargs=scenario_kwargs, **settings)


def rules_of(scenario, **options):
    """Return the rules of a task on the CPU."""
    return ForagingRules(foraging_task(scenario, options), torch.device("cpu"))


def field(foods, players):
    """Return one field with these rows, columns and levels."""
    units = torch.tensor([[*foods, *players]], dtype=torch.float32)
    return Fields(units, units[:, : len(foods), 2].sum(1))


def random_actions(env, generator):
    """Return actions [E, N], every second of which loads or tries to."""
    shape = (*env.batch_size, env.task.n_players)
    action = torch.randint(6, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.4, LOAD, action)


def steps_of(env, n_steps, seed=0):
    """Yield fields before the step, step and next observation of random steps with resets."""
    data, generator = env.reset(), torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        before = Fields(*(env.run_state()[name] for name in Fields._fields))
        data.set(ACTION, random_actions(env, generator).to(env.device))
        step, data = env.step_and_maybe_reset(data)
        yield before, step


def exact_starts(n_rows, n_columns):
    """Return the probability of (player, foods) for one player and two foods, by enumeration."""
    cells = list(product(range(n_rows), range(n_columns)))
    inner = [(r, c) for r, c in cells if 0 < r < n_rows - 1 and 0 < c < n_columns - 1]

    def is_free(cell, foods):
        for r, c in foods:
            rows, columns = abs(cell[0] - r), abs(cell[1] - c)
            if max(rows, columns) <= 1 or (rows, columns) in ((0, 2), (2, 0)):
                return False
        return True

    found = Counter()

    def put(player, foods, chance):
        free = [cell for cell in inner if cell != player and is_free(cell, foods)]
        if len(foods) == 2 or not free:
            found[player, tuple(sorted(foods))] += chance
            return
        for cell in free:
            put(player, [*foods, cell], chance / len(free))

    for player in cells:
        put(player, [], Fraction(1, len(cells)))
    return found


def p_value(counts, expected):
    """Return the probability of counts as far from expected probabilities as these, or farther."""
    assert counts.keys() <= expected.keys()
    n = sum(counts.values())
    return chisquare([counts[x] for x in expected], [n * float(p) for p in expected.values()])[1]


def cells_of(units, n_foods):
    """Return the player's cell and the foods' cells of one field of one player."""
    *foods, player = [(int(r), int(c)) for r, c, _ in units]
    return player, tuple(sorted(food for food in foods[:n_foods] if food != (-1, -1)))


def package_env(task, max_steps):
    """Return the package's environment of a task, not yet reset."""
    from lbforaging.foraging.environment import ForagingEnv

    return ForagingEnv(
        players=task.n_players,
        min_player_level=task.min_player_level,
        max_player_level=task.max_player_level,
        min_food_level=task.min_food_level,
        max_food_level=task.max_food_level,
        field_size=(task.n_rows, task.n_columns),
        max_num_food=task.n_foods,
        sight=task.sight,
        max_episode_steps=max_steps,
        force_coop=task.force_coop,
        normalize_reward=task.normalize_reward,
        penalty=task.penalty,
    )


def put(package, units, spawned):
    """Let the package's environment begin an episode in a state of ours."""
    n_foods = package.max_num_food
    package.field = np.zeros(package.field_size, np.int32)
    for row, column, level in units[:n_foods].int().tolist():
        if level:
            package.field[row, column] = level
    for player, (row, column, level) in zip(
        package.players, units[n_foods:].int().tolist(), strict=True
    ):
        player.setup((row, column), level, package.field_size)
    package._food_spawned = float(spawned)
    package.current_step = 0
    package._game_over = False
    package._gen_valid_moves()
