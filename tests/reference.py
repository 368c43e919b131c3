"""The QMIX loss in plain NumPy, written without the package, as a reference for its tests.

It is slow but simple: it takes one episode at a time, of its own length, so that there is no
padding to mask, and computes TD(lambda) as a weighted sum of n-step returns. Sizes are those of
the weights and the data.

The golden case below has closed-form weights and data, so that the loss of every setting is a
number that can be stored: 3 episodes of 5, 3 and 4 steps. The first is truncated, the others
terminate.
"""

from typing import NamedTuple

import numpy as np


class Episode(NamedTuple):
    """An episode of L steps from a zero hidden state; only the last step can end it."""

    observation: np.ndarray  # [L+1, N, O]
    state: np.ndarray  # [L+1, S]
    available: np.ndarray  # [L+1, N, A] bool
    action: np.ndarray  # [L, N] int
    reward: np.ndarray  # [L, 1] of the team, or [L, N] of the agents
    terminated: bool  # by the last step, else truncated there


def agent_spec(n_agents, observation_dim, n_actions, hidden_dim):
    """Return the shapes of the agent's weights by name."""
    input_dim = observation_dim + n_actions + n_agents  # observation, last action, agent id
    return {
        "fc1.weight": (hidden_dim, input_dim),
        "fc1.bias": (hidden_dim,),
        "rnn.weight_ih": (3 * hidden_dim, hidden_dim),
        "rnn.weight_hh": (3 * hidden_dim, hidden_dim),
        "rnn.bias_ih": (3 * hidden_dim,),
        "rnn.bias_hh": (3 * hidden_dim,),
        "fc2.weight": (n_actions, hidden_dim),
        "fc2.bias": (n_actions,),
    }


def mixer_spec(n_agents, state_dim, embed_dim, layers, hypernet_dim):
    """Return the shapes of the mixer's weights by name."""

    def linear(name, n_in, n_out):
        return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}

    def hypernet(name, n_out):
        if layers == 1:
            return linear(name, state_dim, n_out)
        first = linear(f"{name}.0", state_dim, hypernet_dim)
        return {**first, **linear(f"{name}.2", hypernet_dim, n_out)}

    return {
        **hypernet("hyper_w_1", embed_dim * n_agents),
        **hypernet("hyper_w_final", embed_dim),
        **linear("hyper_b_1", state_dim, embed_dim),
        **linear("V.0", state_dim, embed_dim),
        **linear("V.2", embed_dim, 1),
    }


def sigmoid(x):
    """Return the logistic function."""
    return 1 / (1 + np.exp(-x))


def gru(x, h, p):
    """Return the next hidden state of a GRU cell."""
    gates_x = x @ p["rnn.weight_ih"].T + p["rnn.bias_ih"]
    gates_h = h @ p["rnn.weight_hh"].T + p["rnn.bias_hh"]
    reset_x, update_x, new_x = np.split(gates_x, 3, -1)
    reset_h, update_h, new_h = np.split(gates_h, 3, -1)
    update = sigmoid(update_x + update_h)
    new = np.tanh(new_x + sigmoid(reset_x + reset_h) * new_h)
    return (1 - update) * new + update * h


def utilities(p, episode):
    """Return Q_a(.) [L+1, N, A], computed step by step."""
    n_agents, n_actions = episode.available.shape[1:]
    h, values = np.zeros((n_agents, p["rnn.weight_hh"].shape[1])), []
    for t, observation in enumerate(episode.observation):
        last = np.zeros((n_agents, n_actions))
        if t > 0:
            last[np.arange(n_agents), episode.action[t - 1]] = 1
        x = np.concatenate([observation, last, np.eye(n_agents)], -1)
        h = gru(np.maximum(x @ p["fc1.weight"].T + p["fc1.bias"], 0), h, p)
        values.append(h @ p["fc2.weight"].T + p["fc2.bias"])
    return np.stack(values)


def mix(p, q, state):
    """Return Q_tot of one step, given its utilities [N] and state [S]."""

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def hypernet(name):
        if f"{name}.weight" in p:
            return linear(name, state)
        return linear(f"{name}.2", np.maximum(linear(f"{name}.0", state), 0))

    w1 = np.abs(hypernet("hyper_w_1")).reshape(len(q), -1)
    hidden = q @ w1 + linear("hyper_b_1", state)
    hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
    value = linear("V.2", np.maximum(linear("V.0", state), 0))[0]
    return hidden @ np.abs(hypernet("hyper_w_final")) + value


def learned(mixer, p, q, states):
    """Return the learned values: Q_tot [L, 1] of utilities [L, N], or these without a mixer."""
    if mixer == "none":
        return q
    if mixer == "vdn":
        return q.sum(-1, keepdims=True)
    return np.array([[mix(p, *step)] for step in zip(q, states, strict=True)])


def forward_view(reward, value_tp1, terminated, gamma, td_lambda):
    """Return TD(lambda) targets [L, M]: weighted sums of the n-step returns up to the end.

    The n-step return has the weight (1 - lambda) lambda^(n-1), the longest one the rest to 1.
    """
    n_steps, targets = len(reward), np.zeros_like(reward)
    for t in range(n_steps):
        left = 1.0
        for n in range(1, n_steps - t + 1):
            last = t + n == n_steps
            n_step = sum(gamma**k * reward[t + k] for k in range(n))
            if not (last and terminated):
                n_step = n_step + gamma**n * value_tp1[t + n - 1]
            weight = left if last else (1 - td_lambda) * td_lambda ** (n - 1)
            left -= weight
            targets[t] += weight * n_step
    return targets


def interval(episodes, gamma, reward_scale):
    """Return the least and the greatest endless discounted sum of the rewards of all episodes."""
    rewards = [reward_scale * r for episode in episodes for r in episode.reward.flat]
    if any(episode.terminated for episode in episodes):
        rewards.append(0.0)
    return min(rewards) / (1 - gamma), max(rewards) / (1 - gamma)


def loss(
    episodes,
    online,
    target,
    *,
    mixer,
    double_q,
    gamma,
    td_lambda=0.0,
    reward_scale=1.0,
    bounded_targets=False,
):
    """Return the mean squared TD error of all steps of all episodes.

    Args:
        episodes: a list of ``Episode``.
        online: {"agent": weights, "mixer": weights}.
        target: the same of the target networks.
        mixer: "qmix", "vdn" or "none".
        double_q: whether the online network chooses the next actions.
        gamma: the discount.
        td_lambda: lambda of TD(lambda).
        reward_scale: a factor of all rewards.
        bounded_targets: whether next values are clamped to the ``interval``.
    """
    errors = []
    low, high = interval(episodes, gamma, reward_scale) if bounded_targets else (-np.inf, np.inf)
    for episode in episodes:
        q, target_q = (utilities(p["agent"], episode) for p in (online, target))
        chooser = np.where(episode.available, q if double_q else target_q, -np.inf)[1:]
        greedy = chooser.argmax(-1)[..., None]
        chosen = np.take_along_axis(q[:-1], episode.action[..., None], -1)[..., 0]
        chosen_tp1 = np.take_along_axis(target_q[1:], greedy, -1)[..., 0]
        total = learned(mixer, online["mixer"], chosen, episode.state[:-1])
        total_tp1 = learned(mixer, target["mixer"], chosen_tp1, episode.state[1:])
        total_tp1 = np.clip(total_tp1, low, high)
        reward = reward_scale * episode.reward
        y = forward_view(reward, total_tp1, episode.terminated, gamma, td_lambda)
        errors.append((total - y) ** 2)
    return np.concatenate(errors).mean()


# The golden case.

N_ROWS, N_STEPS, N_AGENTS, OBSERVATION_DIM, N_ACTIONS = 3, 5, 2, 3, 4
STATE_DIM, HIDDEN_DIM, EMBED_DIM, HYPERNET_DIM = 6, 5, 4, 7
GAMMA = 0.99
LENGTHS = np.array([5, 3, 4])
AGENT = agent_spec(N_AGENTS, OBSERVATION_DIM, N_ACTIONS, HIDDEN_DIM)
MIXER = {n: mixer_spec(N_AGENTS, STATE_DIM, EMBED_DIM, n, HYPERNET_DIM) for n in (1, 2)}
ONLINE, TARGET = {"agent": 0, "mixer": 100}, {"agent": 50, "mixer": 200}  # offsets of ``weights``


def weights(spec, offset):
    """Return weights in (-0.8, 0.8) without a pattern, by name."""

    def fill(shape, i):
        places = (np.arange(np.prod(shape)) + 1) ** 2
        phases = (places * 0.6180339887498949 + i * 0.7548776662466927) % 1.0
        return (0.8 * (2 * phases - 1)).reshape(shape)

    return {name: fill(shape, i + offset) for i, (name, shape) in enumerate(spec.items())}


def data(padding=0.0):
    """Return observations, states and masks of T + 1 steps, and actions, rewards and ends of T."""
    b, t, n = N_ROWS, N_STEPS, N_AGENTS
    observation = np.cos(0.21 * np.arange(b * (t + 1) * n * OBSERVATION_DIM))
    observation = observation.reshape(b, t + 1, n, OBSERVATION_DIM)
    state = np.cos(0.13 * np.arange(b * (t + 1) * STATE_DIM) + 1).reshape(b, t + 1, STATE_DIM)
    count = np.arange(b * (t + 1) * n).reshape(b, t + 1, n)
    available = np.ones((b, t + 1, n, N_ACTIONS), bool)
    available[..., 3] = count % 3 != 0
    action = count * 7 % N_ACTIONS
    action = np.where(np.take_along_axis(available, action[..., None], -1)[..., 0], action, 0)
    reward = np.sin(np.arange(b * t) * 0.9).reshape(b, t)
    terminated = np.zeros((b, t), bool)
    terminated[1, 2] = terminated[2, 3] = True
    for row, length in enumerate(LENGTHS):
        observation[row, length + 1 :] = padding
        state[row, length + 1 :] = padding
        reward[row, length:] = padding
        available[row, length + 1 :] = False
        action[row, length:] = 0
    return observation, state, available, action, reward, terminated


def golden_loss(mixer, layers, double_q, padding=0.0):
    """Return the one-step loss of the data with the weights ONLINE and TARGET."""
    observation, state, available, action, reward, terminated = data(padding)
    episodes = [
        Episode(
            observation[row, : length + 1],
            state[row, : length + 1],
            available[row, : length + 1],
            action[row, :length],
            reward[row, :length, None],
            terminated[row].any(),
        )
        for row, length in enumerate(LENGTHS)
    ]
    online, target = (
        {"agent": weights(AGENT, o["agent"]), "mixer": weights(MIXER[layers], o["mixer"])}
        for o in (ONLINE, TARGET)
    )
    return loss(episodes, online, target, mixer=mixer, double_q=double_q, gamma=GAMMA)
