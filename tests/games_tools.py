"""Small games and random play, for the tests of games."""

from itertools import product

import torch

from qmix_trl import RandomPolicy, env_dims
from qmix_trl import make_env as make_env_of
from qmix_trl.envs.game_tables import Game
from qmix_trl.keys import ACTION, OBSERVATION

EXAMPLES = {
    "matrix": {"payoff": [[1, 2, 3], [4, 5, 6]]},
    "memory": {"delay": 2, "n_agents": 3, "n_cues": 2},
    "random_matrix": {"n_games": 3},
    "two_step": {},
}


def make_env(scenario="two_step", scenario_kwargs=None, **settings):
    """Return a small environment; ``settings`` override its own."""
    settings = {"n_envs": 4, "max_steps": 20, "state": "world", "seed": 0, **settings}
    return make_env_of("games", scenario=scenario, scenario_kwargs=scenario_kwargs, **settings)


def rollout(env, steps, *, seed=0):
    """Return random steps [E, T] that continue after the end of an episode."""
    policy = RandomPolicy(env_dims(env).n_actions, seed=seed)
    return env.rollout(steps, policy, break_when_any_done=False)


def play(env, actions):
    """Return the steps [E, T] by joint actions, each int64 [E, N], or [N] for all environments."""
    data, taken = env.reset(), []
    shape = data[OBSERVATION].shape[:-1]
    for action in actions:
        data.set(ACTION, torch.as_tensor(action).expand(shape).clone())
        step, data = env.step_and_maybe_reset(data)
        taken.append(step)
    return torch.stack(taken, 1)


def corridor(starts=(0,)):
    """Return a game on the places 0 to 4; episodes end at place 4.

    The first agent's action 1 moves one place forward; the second agent's action 1 earns the
    number of the place. The first agent observes the place, the second one its negative.
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
