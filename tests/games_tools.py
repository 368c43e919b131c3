"""Small games and random play, for the tests of games."""

from itertools import product

import torch
from games import learned_table
from tensordict import TensorDict
from torch.nn.functional import one_hot

from qmix_trl import (
    FeedforwardAgent,
    QMixLoss,
    RandomPolicy,
    Update,
    env_dims,
    make_hard_updater,
)
from qmix_trl import make_env as make_env_of
from qmix_trl.envs.game_tables import Game
from qmix_trl.keys import ACTION, OBSERVATION, PRIORITY_WEIGHT, REWARD, STATE, TERMINATED, next_key

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


def every_joint_action(game):
    """Return a batch [S A^N, 1] of one step: each joint action of each state that is no end, once.

    Episodes end after it: the batch is that of a one-step game under uniform actions, without the
    noise of draws.
    """
    places = torch.arange(game.n_states)[~game.ends]
    actions = [torch.arange(game.n_actions)] * game.n_agents
    rows = torch.cartesian_prod(places, *actions)  # [R, 1 + N]
    place, action = rows[:, 0], rows[:, 1:]
    batch = TensorDict({}, [len(rows), 1])
    for key in (OBSERVATION, next_key(OBSERVATION)):
        batch[key] = game.observation[place].unsqueeze(1)
    for key in (STATE, next_key(STATE)):
        batch[key] = one_hot(place, game.n_states).float().unsqueeze(1)
    batch[ACTION] = action.unsqueeze(1)
    batch[next_key(REWARD)] = game.reward[tuple(rows.T)].reshape(-1, 1, 1)
    batch[next_key(TERMINATED)] = torch.ones(len(rows), 1, 1, dtype=torch.bool)
    return batch


def fitted(game, mixer, *, steps, lr, seed=0, epsilon=1.0, reward_scale=1.0, **arguments):
    """Return the table [S, A, .., A] and the utilities [S, N, A] of a loss trained on a game.

    The game is one of one step. Joint actions are weighted by their probabilities when agents
    explore by epsilon. Utilities are linear in the observations; the step size falls to zero.

    Args:
        game: as in ``every_joint_action``.
        mixer: a function that returns a mixer.
        steps: gradient steps.
        lr: the first step size.
        seed: of the weights.
        epsilon: of the agents' exploration; 1 is uniform play.
        reward_scale: of the loss; the table is divided by it.
        **arguments: of the loss.
    """
    torch.manual_seed(seed)
    n_agents, observation_dim = game.observation.shape[1:]
    agent = FeedforwardAgent(
        n_agents, observation_dim, game.n_actions, hidden_dims=(), use_agent_id=False,
        share_parameters=False,
    )  # fmt: skip
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, 0, 0.01)  # no order of actions is far ahead at the start
    loss = QMixLoss(agent, mixer(), gamma=0.99, reward_scale=reward_scale, **arguments)
    updater = make_hard_updater(loss, period_updates=20)
    update = Update(loss, torch.optim.Adam(loss.parameters(), lr=lr), updater, max_grad_norm=10)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(update.optimizer, steps)
    batch = every_joint_action(game)
    for _ in range(steps):
        if epsilon < 1:
            greedy = agent.step(batch[OBSERVATION], None, None)[0].argmax(-1)  # [R, 1, N]
            chances = epsilon / game.n_actions + (1 - epsilon) * (greedy == batch[ACTION])
            batch[PRIORITY_WEIGHT] = chances.prod(-1, keepdim=True)
        update(batch)
        schedule.step()
    agent, mixing = (loss.get_stateful_net(name) for name in ("agent", "mixer"))
    utilities, _ = agent.step(game.observation, None, None)
    table = learned_table(game, agent, mixing.module)
    return table / reward_scale, utilities.detach()
