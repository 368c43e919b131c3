"""The loss against outside implementations on random sizes and data, and what mixers must be.

The oracle of the first part is reference.py: plain NumPy, one episode after the other.
"""

from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import reference
import torch
from mixer_tools import UnconstrainedMixer
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
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
    CUT_STEPS,
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
# Entries that a batch may lack, and the number of its cut steps (None: it does not carry them);
# rows of one episode have no cuts.
READINGS = [
    ((), None),
    ((), 0),
    ((IS_INIT,), 0),
    ((IS_INIT,), None),
    ((next_key(DONE),), 1),
    ((IS_INIT, next_key(DONE)), 0),
]


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
    batch[ACTION] = padded([episode.action for episode in episodes], n_steps, garbage)
    lengths = [len(episode.action) for episode in episodes]
    steps = [np.arange(length)[:, None] for length in lengths]
    ends = [step == len(step) - 1 for step in steps]
    terminated = [end & episode.terminated for end, episode in zip(ends, episodes, strict=True)]
    batch[next_key(DONE)] = padded(ends, n_steps, garbage)
    batch[next_key(TERMINATED)] = padded(terminated, n_steps, garbage)
    batch[IS_INIT] = padded([step == 0 for step in steps], n_steps, garbage)
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
    """One random draw."""

    loss: QMixLoss
    episodes: list  # of reference.Episode
    n_steps: int  # T, of the longest and maybe longer
    online: dict  # {"agent": {name: array}, "mixer": {name: array}}
    target: dict
    settings: dict  # of the oracle
    parameters: dict  # the online ones as tensors, as ``online``


def random_case(seed, *, mixing=None, **fixed):
    """Return a draw; seeds take turns with mixers, layers, double-Q and one-step targets."""
    rng = np.random.default_rng(seed)
    mixer, layers = mixing or MIXINGS[seed % 4]
    sizes = random_sizes(rng)
    n_rows, n_steps = rng.integers(1, 9, size=2)
    lengths = rng.integers(1, n_steps + 1, size=n_rows)
    episodes = random_episodes(rng, sizes, lengths, agent_rewards=mixer == "none")
    online, target = (random_weights(rng, sizes, layers) for _ in range(2))
    settings = {
        "double_q": bool(seed // 4 % 2),
        "gamma": rng.uniform(0.5, 1),
        "td_lambda": rng.uniform() if seed // 8 % 2 else 0.0,
        "reward_scale": 10 ** rng.uniform(-1, 1),
        "bounded_targets": bool(seed // 16 % 2),
        **fixed,
    }
    n, o, a = sizes.agents, sizes.observation, sizes.actions
    agent = RecurrentAgent(n, o, a, hidden_dim=sizes.hidden, dtype=torch.float64)
    mixing = make_mixer(mixer, sizes, layers)
    load(agent, target["agent"])
    load(mixing, target["mixer"])
    # Its targets are copies of the weights it finds.
    loss = QMixLoss(agent, mixing, **settings)
    load(agent, online["agent"])
    load(mixing, online["mixer"])
    parameters = {
        part: dict(module.named_parameters() if module is not None else ())
        for part, module in (("agent", agent), ("mixer", mixing))
    }
    settings["mixer"] = mixer
    return Case(loss, episodes, int(n_steps), online, target, settings, parameters)


@pytest.mark.parametrize("seed", range(100))
def test_loss_equals_the_oracle(seed):
    absent, n_cut_steps = READINGS[seed % len(READINGS)]
    case = random_case(seed)
    garbage = (float("nan"), 1e30)[seed % 2]
    batch = as_batch(case.episodes, case.n_steps, garbage).exclude(*absent)
    if n_cut_steps is not None:
        batch[CUT_STEPS] = torch.zeros(*batch.shape, n_cut_steps, dtype=torch.int64)
    value = case.loss(batch)["loss"]
    expected = reference.loss(case.episodes, case.online, case.target, **case.settings)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(32))
def test_loss_of_one_row_of_all_episodes_equals_the_oracle(seed):
    case = random_case(seed)
    row = torch.cat([as_batch([episode], len(episode.action)) for episode in case.episodes], 1)
    if seed % 3 == 0:
        lengths = torch.tensor([len(episode.action) for episode in case.episodes])
        truncated = torch.tensor([not episode.terminated for episode in case.episodes[:-1]]).bool()
        cuts = (lengths.cumsum(0) - 1)[:-1][truncated]  # [K]
        row[CUT_STEPS] = cuts - torch.arange(row.shape[1])[None, :, None]
    absent = ((), (MASK,), (IS_INIT,))[seed % 3]
    expected = reference.loss(case.episodes, case.online, case.target, **case.settings)
    assert case.loss(row.exclude(*absent))["loss"].item() == pytest.approx(
        expected, rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("seed", range(100))
def test_gradient_equals_the_oracles_finite_difference(seed):
    """Along one random direction of all online parameters at once; the targets stand still.

    A central difference of step 1e-6 is wrong by about 1e-12 times third derivatives and 1e-16 /
    1e-6 times the loss: on these draws by at most 2e-9 of the gradient's norm. A kink inside the
    step (ReLU, |w|, an argmax of double-Q that flips) would make it wrong by far more: no draw has
    one.
    """
    case = random_case(seed)
    value = case.loss(as_batch(case.episodes, case.n_steps))["loss"]
    value.backward()
    rng = np.random.default_rng(1000 + seed)
    direction, slope, square = {}, 0.0, 0.0
    for part, parameters in case.parameters.items():
        for name, parameter in parameters.items():
            gradient = parameter.grad.numpy()
            direction[part, name] = rng.normal(size=gradient.shape)
            slope += (gradient * direction[part, name]).sum()
            square += (gradient**2).sum()

    def loss_at(step):
        moved = {
            part: {name: x + step * direction.get((part, name), 0) for name, x in arrays.items()}
            for part, arrays in case.online.items()
        }
        return reference.loss(case.episodes, moved, case.target, **case.settings)

    expected = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    assert abs(slope - expected) < 1e-7 * square**0.5


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mixing", [("vdn", 1), ("qmix", 1), ("qmix", 2)])
def test_the_loss_of_a_padded_batch_is_the_mean_of_its_rows_weighted_by_steps(mixing, seed):
    case = random_case(seed, mixing=mixing, td_lambda=0.7)
    together = case.loss(as_batch(case.episodes, case.n_steps))["loss"]
    lengths = [len(episode.action) for episode in case.episodes]
    alone = [
        case.loss(as_batch([episode], length).exclude(MASK))["loss"]
        for episode, length in zip(case.episodes, lengths, strict=True)
    ]
    expected = sum(length * value for length, value in zip(lengths, alone, strict=True))
    torch.testing.assert_close(together, expected / sum(lengths), rtol=1e-12, atol=1e-12)


def torchrl_loss(agent, mixer, gamma, action_mask_key):
    """Return TorchRL's loss of our networks; its targets are copies of the weights it finds."""
    choice = QValueModule(
        action_value_key=ACTION_VALUE,
        action_mask_key=action_mask_key,
        out_keys=[ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE],
        action_space="categorical",
    )
    loss = QMixerLoss(
        TensorDictSequential(agent, choice),
        TensorDictModule(mixer, in_keys=list(mixer.in_keys), out_keys=[TOTAL_VALUE]),
        delay_value=True,
        action_space="categorical",
    )
    loss.set_keys(
        action=ACTION, action_value=ACTION_VALUE, local_value=CHOSEN_ACTION_VALUE,
        global_value=TOTAL_VALUE,
    )  # fmt: skip
    loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
    return loss


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("mixing", "layers"), MIXINGS[1:])
def test_loss_and_gradients_equal_torchrls_where_it_defines_them(mixing, layers, masked, seed):
    """Its loss has no memory, double-Q, TD(lambda) or padding; its QValueModule has the masks."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sizes = random_sizes(rng)
    gamma = rng.integers(1, 16) / 16  # exact in the float32 that TorchRL keeps it in
    episodes = random_episodes(rng, sizes, [3] * 12)
    # One row of all: each but the last ends inside it, some terminated and some cut off.
    batch = as_batch(episodes, 3).reshape(1, -1)
    assert len({episode.terminated for episode in episodes[:-1]}) == 2
    if not masked:
        batch = batch.exclude(ACTION_MASK, next_key(ACTION_MASK))
    agent = FeedforwardAgent(
        sizes.agents, sizes.observation, sizes.actions, hidden_dims=(9,), dtype=torch.float64
    )
    mixer = make_mixer(mixing, sizes, layers)
    ours = QMixLoss(agent, mixer, gamma=gamma, double_q=False)
    theirs = torchrl_loss(agent, mixer, gamma, ACTION_MASK if masked else None)
    # Both hold copies as targets by now, and both train these very parameters: give them others.
    online = [*agent.parameters(), *mixer.parameters()]
    with torch.no_grad():
        for parameter in online:
            parameter.copy_(torch.as_tensor(rng.uniform(-0.8, 0.8, parameter.shape)))
    values = ours(batch)["loss"], theirs(batch.reshape(-1))["loss"]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(value, online) for value in values)
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


STATE_DIM = 3


def small_qmixer(n_agents, layers, make=QMixer):
    """Return a QMixer, or one without its constraint, in float64."""
    torch.manual_seed(n_agents)
    return make(n_agents, STATE_DIM, 8, layers, 8, dtype=torch.float64)


MONOTONE = {
    "vdn": lambda n_agents: VDNMixer(),
    "qmix, 1 layer": lambda n_agents: small_qmixer(n_agents, 1),
    "qmix, 2 layers": lambda n_agents: small_qmixer(n_agents, 2),
}


def excess_of_the_joint_maximum(mixer, n_agents, n_actions):
    """Return by how much the best joint action beats the tuple of greedy ones, in 100 draws.

    By brute force over all available joint actions; relative to the largest value of any.
    """
    generator = torch.Generator().manual_seed(n_actions)

    def rand(*shape):
        return torch.rand(100, *shape, generator=generator, dtype=torch.float64)

    values = (2 * rand(n_agents, n_actions) - 1) * 10 ** (4 * rand(1, 1) - 2)  # 0.01 to 100
    one = torch.nn.functional.one_hot(rand(n_agents, n_actions).argmax(-1), n_actions)
    mask = (rand(n_agents, n_actions) < 0.5) | one.bool()
    state = 4 * rand(STATE_DIM) - 2
    joint = torch.cartesian_prod(*[torch.arange(n_actions)] * n_agents).reshape(-1, n_agents)
    n_joint, joint = len(joint), joint.T.expand(100, -1, -1)  # [100, N, A^N]
    chosen = values.gather(-1, joint).mT.unsqueeze(-1)  # [100, A^N, N, 1]
    total = mixer(chosen, state.unsqueeze(1).expand(-1, n_joint, -1))[..., 0]  # [100, A^N]
    available = mask.gather(-1, joint).all(1)
    best = total.masked_fill(~available, -torch.inf).amax(1)
    greedy = mixer(value_of(values, greedy_action(values, mask)), state)[:, 0]
    return (best - greedy) / total.abs().amax(1)


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("n_agents", [1, 2, 3, 4])
@pytest.mark.parametrize("n_actions", [2, 3, 4, 5])
def test_the_tuple_of_greedy_actions_is_the_greedy_joint_action(name, n_agents, n_actions):
    """IGM: of equal value, neither below (a better tuple exists) nor above (not available)."""
    excess = excess_of_the_joint_maximum(MONOTONE[name](n_agents), n_agents, n_actions)
    assert excess.abs().max() < 1e-12


@pytest.mark.parametrize("layers", [1, 2])
def test_without_monotonicity_another_joint_action_is_better(layers):
    mixer = small_qmixer(3, layers, UnconstrainedMixer)
    assert excess_of_the_joint_maximum(mixer, 3, 4).max() > 0.1


def permuted(mixer, layers, order):
    """Return a mixer that knows agents by another order: its agent i is the old order[i].

    The state is a block for each agent, and so are what reads it and what hyper_w_1 writes.
    """
    first, last = ("", "") if layers == 1 else (".0", ".2")
    other, n = deepcopy(mixer), mixer.n_agents
    arrays = other.state_dict()
    for name in (f"hyper_w_1{first}", f"hyper_w_final{first}", "hyper_b_1", "V.0"):
        columns = arrays[f"{name}.weight"].unflatten(1, (n, -1))  # [.., N, S / N]
        arrays[f"{name}.weight"] = columns[:, order].flatten(1)
    for name in (f"hyper_w_1{last}.weight", f"hyper_w_1{last}.bias"):
        arrays[name] = arrays[name].unflatten(0, (n, -1))[order].flatten(0, 1)  # [N E, ..]
    other.load_state_dict(arrays)
    return other


@pytest.mark.parametrize("layers", [1, 2])
def test_qmix_is_equivariant_to_the_order_of_agents(layers):
    torch.manual_seed(0)
    n, order = 4, [2, 0, 3, 1]
    mixer = QMixer(n, n * 3, 6, layers, 5, dtype=torch.float64)
    chosen, state = torch.randn(50, n, 1).double(), torch.randn(50, n, 3).double()
    expected = mixer(chosen, state.flatten(1))
    both = permuted(mixer, layers, order)(chosen[:, order], state[:, order].flatten(1))
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-12)
    # Each agent has weights of its own: utilities alone must not change places.
    alone = mixer(chosen[:, order], state.flatten(1))
    assert (alone - expected).abs().min() > 1e-6


def test_vdn_is_invariant_to_the_order_of_agents():
    chosen = torch.randn(50, 4, 1, generator=torch.Generator().manual_seed(0)).double()
    mixed = VDNMixer()(chosen[:, [2, 0, 3, 1]])
    torch.testing.assert_close(mixed, VDNMixer()(chosen), rtol=0, atol=1e-12)


def increasing_differences(mixer, n_agents):
    """Return Q(q + a e_i + b e_j) - Q(q + a e_i) - Q(q + b e_j) + Q(q) of 1,000 draws, a, b > 0.

    Relative to the largest of the four.
    """
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(1000, *shape, generator=generator, dtype=torch.float64)

    values = (4 * rand(n_agents, 1) - 2) * 10 ** (2 * rand(1, 1) - 1)
    state = 4 * rand(STATE_DIM) - 2
    i, j = rand(n_agents).argsort(1)[:, :2].unbind(1)  # two different agents
    a, b = (10 ** (4 * rand(1) - 3) for _ in range(2))  # 0.001 to 10
    step_i, step_j = (
        (step * torch.nn.functional.one_hot(agent, n_agents)).unsqueeze(-1)
        for step, agent in ((a, i), (b, j))
    )
    total = [mixer(values + step, state)[:, 0] for step in (step_i + step_j, step_i, step_j, 0)]
    scale = torch.stack(total).abs().amax(0)
    return (total[0] - total[1] - total[2] + total[3]) / scale


@pytest.mark.parametrize("layers", [1, 2])
def test_qmix_is_supermodular(layers):
    """ELU is convex and no weight is negative: a step of one agent never devalues another's.

    So a QMixer cannot show diminishing returns, as where one agent of two is enough.
    """
    differences = increasing_differences(small_qmixer(3, layers), 3)
    assert differences.min() > -1e-12
    assert differences.max() > 0.01
    assert increasing_differences(VDNMixer(), 3).abs().max() < 1e-12
    assert increasing_differences(small_qmixer(3, layers, UnconstrainedMixer), 3).min() < -0.01
