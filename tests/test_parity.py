"""The loss against outside implementations on random sizes and data, and what mixers must be.

The oracle of the first part is reference.py: plain NumPy, one episode after the other.
"""

from typing import NamedTuple

import numpy as np
import pytest
import reference
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from test_mixers import UnconstrainedMixer
from torchrl.data import Categorical
from torchrl.modules import QValueModule
from torchrl.objectives import QMixerLoss, ValueEstimators

from qmix_trl import FeedforwardAgent, QMixer, QMixLoss, RecurrentAgent, VDNMixer
from qmix_trl.functional import greedy_action, value_of
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    AGENT_REWARD,
    CHOSEN_ACTION_VALUE,
    DONE,
    IS_INIT,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TOTAL_VALUE,
    next_key,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

MIXINGS = [("none", 1), ("vdn", 1), ("qmix", 1), ("qmix", 2)]  # and hypernetwork layers


class Sizes(NamedTuple):
    """What a random draw is made of."""

    agents: int
    actions: int
    observation: int
    state: int
    hidden: int
    embed: int
    hypernet: int


def random_sizes(rng):
    """Return random sizes: 1 to 5 agents, 2 to 7 actions."""
    return Sizes(*(int(rng.integers(*bounds)) for bounds in ((1, 6), (2, 8), *[(1, 6)] * 5)))


def random_episodes(rng, sizes, lengths, *, agent_rewards=False):
    """Return an episode of each length, terminated or cut off, with masks and legal actions."""
    n, a = sizes.agents, sizes.actions
    episodes = []
    for length in lengths:
        available = rng.random((length + 1, n, a)) < 0.5
        np.put_along_axis(available, rng.integers(a, size=(length + 1, n, 1)), True, -1)
        episodes.append(
            reference.Episode(
                observation=rng.normal(size=(length + 1, n, sizes.observation)),
                state=rng.normal(size=(length + 1, sizes.state)),
                available=available,
                action=(rng.random(available.shape) * available).argmax(-1)[:-1],
                reward=rng.normal(size=(length, n if agent_rewards else 1)),
                terminated=bool(rng.random() < 0.5),
            )
        )
    return episodes


def padded(arrays, n_steps, garbage):
    """Return arrays [L, ..] of several lengths as one tensor [B, T, ..], garbage behind each."""
    rows = []
    for array in arrays:
        fill = {"f": garbage, "i": -5, "b": True}[array.dtype.kind]
        behind = np.full((n_steps - len(array), *array.shape[1:]), fill, array.dtype)
        rows.append(np.concatenate([array, behind]))
    return torch.as_tensor(np.stack(rows))


def as_batch(episodes, n_steps, garbage=float("nan")):
    """Return episodes as rows [B, T] in TorchRL's layout, with garbage in all of their padding."""
    batch = TensorDict({}, [len(episodes), n_steps])
    for key, name in ((OBSERVATION, "observation"), (STATE, "state"), (ACTION_MASK, "available")):
        sequences = [getattr(episode, name) for episode in episodes]
        batch[key] = padded([x[:-1] for x in sequences], n_steps, garbage)
        batch[next_key(key)] = padded([x[1:] for x in sequences], n_steps, garbage)
    rewards = padded([episode.reward for episode in episodes], n_steps, garbage)
    batch[next_key(AGENT_REWARD)] = rewards.unsqueeze(-1)
    batch[next_key(REWARD)] = rewards[..., :1]  # not read where agents have their own
    lengths = [len(episode.action) for episode in episodes]
    batch[ACTION] = padded([episode.action for episode in episodes], n_steps, garbage)
    for key, at_the_end in (
        (next_key(TERMINATED), lambda episode: episode.terminated),
        (next_key(DONE), lambda _: True),
    ):
        flags = [np.zeros((length, 1), bool) for length in lengths]
        for flag, episode in zip(flags, episodes, strict=True):
            flag[-1] = at_the_end(episode)
        batch[key] = padded(flags, n_steps, garbage)
    begins = [np.arange(length)[:, None] == 0 for length in lengths]
    batch[IS_INIT] = padded(begins, n_steps, garbage)
    batch[MASK] = torch.arange(n_steps) < torch.tensor(lengths).unsqueeze(-1)
    return batch


def random_weights(rng, sizes, layers):
    """Return weights of agent and mixer by name."""
    specs = {
        "agent": reference.agent_spec(sizes.agents, sizes.observation, sizes.actions, sizes.hidden),
        "mixer": reference.mixer_spec(
            sizes.agents, sizes.state, sizes.embed, layers, sizes.hypernet
        ),
    }
    return {
        part: {name: rng.uniform(-0.8, 0.8, shape) for name, shape in spec.items()}
        for part, spec in specs.items()
    }


def make_mixer(mixer, sizes, layers):
    """Return our mixer of that name in float64, None for none."""
    if mixer == "none":
        return None
    if mixer == "vdn":
        return VDNMixer()
    return QMixer(
        sizes.agents, sizes.state, sizes.embed, layers, sizes.hypernet, dtype=torch.float64
    )


def load(module, arrays):
    """Copy arrays into a module's parameters of the same names."""
    if module is not None and list(module.parameters()):
        module.load_state_dict({name: torch.as_tensor(array) for name, array in arrays.items()})


class Case(NamedTuple):
    """One random draw: our loss, the oracle's arguments, and the online parameters by name."""

    loss: QMixLoss
    episodes: list
    online: dict
    target: dict
    settings: dict  # of both losses
    parameters: dict  # {"agent": {name: Parameter}, "mixer": {name: Parameter}}


def random_case(seed, lengths=None, **fixed):
    """Return a draw; seeds take turns with mixers, layers, double-Q and one-step targets."""
    rng = np.random.default_rng(seed)
    mixer, layers = fixed.pop("mixing", MIXINGS[seed % 4])
    sizes = random_sizes(rng)
    n_rows, n_steps = rng.integers(1, 9, size=2)
    lengths = rng.integers(1, n_steps + 1, size=n_rows) if lengths is None else lengths
    episodes = random_episodes(rng, sizes, lengths, agent_rewards=mixer == "none")
    online, target = (random_weights(rng, sizes, layers) for _ in range(2))
    settings = {
        "double_q": bool(seed // 4 % 2),
        "gamma": rng.uniform(0.5, 1),
        "td_lambda": rng.uniform() if seed // 8 % 2 else 0.0,
        "reward_scale": 10 ** rng.uniform(-1, 1),
        **fixed,
    }
    agent = RecurrentAgent(
        sizes.agents,
        sizes.observation,
        sizes.actions,
        hidden_dim=sizes.hidden,
        dtype=torch.float64,
    )
    mixing = make_mixer(mixer, sizes, layers)
    load(agent, target["agent"])
    load(mixing, target["mixer"])
    loss = QMixLoss(agent, mixing, **settings)  # its targets are copies of the weights it finds
    load(agent, online["agent"])
    load(mixing, online["mixer"])
    parameters = {
        part: dict(module.named_parameters() if module is not None else ())
        for part, module in (("agent", agent), ("mixer", mixing))
    }
    return Case(loss, episodes, online, target, {"mixer": mixer, **settings}, parameters)
