"""The QMIX loss in plain NumPy, written without the package: the oracle of its tests.

Weights and data are closed-form, so that the loss of every setting is a number one can store. The
data: 3 episodes of 5, 3 and 4 steps, the first cut off by the time limit, the others terminated.
"""

import numpy as np

N_ROWS, N_STEPS, N_AGENTS, OBSERVATION_DIM, N_ACTIONS = 3, 5, 2, 3, 4
STATE_DIM, HIDDEN_DIM, EMBED_DIM, HYPERNET_DIM = 6, 5, 4, 7
GAMMA = 0.99
LENGTHS = np.array([5, 3, 4])
INPUT_DIM = OBSERVATION_DIM + N_ACTIONS + N_AGENTS  # observation, last action, agent id

AGENT = {
    "fc1.weight": (HIDDEN_DIM, INPUT_DIM),
    "fc1.bias": (HIDDEN_DIM,),
    "rnn.weight_ih": (3 * HIDDEN_DIM, HIDDEN_DIM),
    "rnn.weight_hh": (3 * HIDDEN_DIM, HIDDEN_DIM),
    "rnn.bias_ih": (3 * HIDDEN_DIM,),
    "rnn.bias_hh": (3 * HIDDEN_DIM,),
    "fc2.weight": (N_ACTIONS, HIDDEN_DIM),
    "fc2.bias": (N_ACTIONS,),
}
BIASES = {
    "hyper_b_1.weight": (EMBED_DIM, STATE_DIM),
    "hyper_b_1.bias": (EMBED_DIM,),
    "V.0.weight": (EMBED_DIM, STATE_DIM),
    "V.0.bias": (EMBED_DIM,),
    "V.2.weight": (1, EMBED_DIM),
    "V.2.bias": (1,),
}
MIXER = {
    1: {
        "hyper_w_1.weight": (EMBED_DIM * N_AGENTS, STATE_DIM),
        "hyper_w_1.bias": (EMBED_DIM * N_AGENTS,),
        "hyper_w_final.weight": (EMBED_DIM, STATE_DIM),
        "hyper_w_final.bias": (EMBED_DIM,),
        **BIASES,
    },
    2: {
        "hyper_w_1.0.weight": (HYPERNET_DIM, STATE_DIM),
        "hyper_w_1.0.bias": (HYPERNET_DIM,),
        "hyper_w_1.2.weight": (EMBED_DIM * N_AGENTS, HYPERNET_DIM),
        "hyper_w_1.2.bias": (EMBED_DIM * N_AGENTS,),
        "hyper_w_final.0.weight": (HYPERNET_DIM, STATE_DIM),
        "hyper_w_final.0.bias": (HYPERNET_DIM,),
        "hyper_w_final.2.weight": (EMBED_DIM, HYPERNET_DIM),
        "hyper_w_final.2.bias": (EMBED_DIM,),
        **BIASES,
    },
}
ONLINE, TARGET = {"agent": 0, "mixer": 100}, {"agent": 50, "mixer": 200}  # offsets of ``weights``


def weights(spec, offset):
    """Return an array for each name, of numbers in (-0.8, 0.8) without a pattern."""

    def fill(shape, i):
        places = (np.arange(np.prod(shape)) + 1) ** 2
        phases = (places * 0.6180339887498949 + i * 0.7548776662466927) % 1.0
        return (0.8 * (2 * phases - 1)).reshape(shape)

    return {name: fill(shape, i + offset) for i, (name, shape) in enumerate(spec.items())}


def data(padding=0.0):
    """Return observations, states and masks of T + 1 steps, actions, rewards and ends of T."""
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


def utilities(p, observation, action):
    """Return Q_a(.) of T + 1 steps, one step after the other."""
    n_rows, n_steps = observation.shape[:2]
    h, values = np.zeros((n_rows, N_AGENTS, HIDDEN_DIM)), []
    identity = np.broadcast_to(np.eye(N_AGENTS), (n_rows, N_AGENTS, N_AGENTS))
    for t in range(n_steps):
        last = np.eye(N_ACTIONS)[action[:, t - 1]]
        last = last if t else np.zeros_like(last)
        x = np.concatenate([observation[:, t], last, identity], -1)
        h = gru(np.maximum(x @ p["fc1.weight"].T + p["fc1.bias"], 0), h, p)
        values.append(h @ p["fc2.weight"].T + p["fc2.bias"])
    return np.stack(values, 1)


def mix(p, q, state, layers):
    """Return Q_tot of utilities [.., N] and states."""

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def hypernet(name):
        if layers == 1:
            return linear(name, state)
        return linear(f"{name}.2", np.maximum(linear(f"{name}.0", state), 0))

    w1 = np.abs(hypernet("hyper_w_1")).reshape(*q.shape, EMBED_DIM)
    hidden = np.einsum("...n,...ne->...e", q, w1) + linear("hyper_b_1", state)
    hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
    value = linear("V.2", np.maximum(linear("V.0", state), 0))[..., 0]
    return (hidden * np.abs(hypernet("hyper_w_final"))).sum(-1) + value


def loss(mixer, layers, double_q, padding=0.0):
    """Return the one-step loss of the data by the weights ONLINE and TARGET."""
    observation, state, available, action, reward, terminated = data(padding)
    q, target_q = (
        utilities(weights(AGENT, offset["agent"]), observation, action)
        for offset in (ONLINE, TARGET)
    )
    mask = np.arange(N_STEPS)[None] < LENGTHS[:, None]
    chosen = np.take_along_axis(q[:, :-1], action[:, :-1, :, None], -1)[..., 0]
    chooser = np.where(available, q if double_q else target_q, -np.inf)[:, 1:]
    greedy = chooser.argmax(-1)[..., None]
    following = np.take_along_axis(target_q[:, 1:], greedy, -1)[..., 0]
    if mixer == "vdn":
        total, total_tp1 = chosen.sum(-1), following.sum(-1)
    else:
        online, target = (weights(MIXER[layers], o["mixer"]) for o in (ONLINE, TARGET))
        total = mix(online, chosen, state[:, :-1], layers)
        total_tp1 = mix(target, following, state[:, 1:], layers)
    error = total - (reward + GAMMA * (1 - terminated) * total_tp1)
    return (error[mask] ** 2).sum() / mask.sum()
