"""Agents: one step against a sequence, names, sharing, and equality with torch's GRU."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from qmix_trl import FeedforwardAgent, RecurrentAgent
from qmix_trl.keys import (
    ACTION_VALUE,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    OBSERVATION,
    next_key,
)

B, T, N, O, A, H = 3, 7, 2, 5, 4, 6  # noqa: E741


def make_agent(**arguments):
    """Return a recurrent agent in float64."""
    return RecurrentAgent(N, O, A, hidden_dim=H, dtype=torch.float64, **arguments)


def make_sequence(seed=0):
    """Return observations, last actions, ``is_init`` with resets inside, and a hidden state."""
    generator = torch.Generator().manual_seed(seed)
    is_init = torch.rand(B, T, 1, generator=generator) < 0.3
    taken = torch.randint(A, (B, T, N), generator=generator)
    last_action = nn.functional.one_hot(taken, A).double() * ~is_init.unsqueeze(-1)
    observation = torch.randn(B, T, N, O, generator=generator, dtype=torch.float64)
    hidden = torch.randn(B, N, H, generator=generator, dtype=torch.float64)
    return observation, last_action, is_init, hidden


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("share_parameters", [True, False])
def test_a_sequence_equals_single_steps_through_the_tensordict(share_parameters, layer_norm):
    agent = drawn_norms(make_agent(share_parameters=share_parameters, layer_norm=layer_norm))
    observation, last_action, is_init, hidden = make_sequence()
    values, hiddens = agent.unroll(observation, last_action, is_init, hidden)
    for t in range(T):
        step = TensorDict({}, [B])
        step[OBSERVATION], step[IS_INIT] = observation[:, t], is_init[:, t]
        step[HIDDEN] = hidden
        # The last action that is carried over a reset must not matter.
        step[LAST_ACTION] = torch.where(is_init[:, t, :, None], 7.0, last_action[:, t])
        agent(step)
        torch.testing.assert_close(values[:, t], step[ACTION_VALUE], rtol=0, atol=1e-14)
        hidden = step[next_key(HIDDEN)]
        torch.testing.assert_close(hiddens[:, t], hidden, rtol=0, atol=1e-14)


def test_a_sequence_equals_chunks_that_carry_the_hidden_state():
    agent = make_agent()
    *sequence, hidden = make_sequence()
    whole, _ = agent.unroll(*sequence, hidden)
    parts = []
    for start, end in ((0, 2), (2, 3), (3, T)):
        part, hiddens = agent.unroll(*(x[:, start:end] for x in sequence), hidden)
        parts.append(part)
        hidden = hiddens[:, -1]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-14)


def test_a_sequence_with_a_reset_equals_two_sequences():
    agent = make_agent()
    observation, last_action, _, hidden = make_sequence()
    is_init = torch.zeros(B, T, 1, dtype=torch.bool)
    is_init[:, 4] = True
    last_action[:, 4] = 0
    whole, _ = agent.unroll(observation, last_action, is_init, hidden)
    first, _ = agent.unroll(observation[:, :4], last_action[:, :4], is_init[:, :4], hidden)
    second, _ = agent.unroll(observation[:, 4:], last_action[:, 4:], is_init[:, 4:], None)
    torch.testing.assert_close(whole, torch.cat([first, second], 1), rtol=0, atol=1e-14)


def test_unroll_equals_torchs_gru():
    agent = make_agent()
    observation, last_action, _, hidden = make_sequence()
    is_init = torch.zeros(B, T, 1, dtype=torch.bool)
    values, _ = agent.unroll(observation, last_action, is_init, hidden)
    gru = nn.GRU(H, H, batch_first=True, dtype=torch.float64)
    gru.load_state_dict({f"{name}_l0": p for name, p in agent.rnn.state_dict().items()})
    identity = torch.eye(N, dtype=torch.float64)
    for n in range(N):
        ids = identity[n].expand(B, T, N)
        x = torch.cat([observation[:, :, n], last_action[:, :, n], ids], -1)
        out, _ = gru(torch.relu(agent.fc1(x)), hidden[:, n].unsqueeze(0).contiguous())
        torch.testing.assert_close(values[:, :, n], agent.fc2(out), rtol=0, atol=1e-13)


def test_parameters_have_the_authors_names():
    rnn = {f"rnn.{kind}_{part}" for kind in ("weight", "bias") for part in ("ih", "hh")}
    linear = {f"{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")}
    assert set(make_agent().state_dict()) == rnn | linear
    assert make_agent().state_dict()["fc1.weight"].shape == (H, O + A + N)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
def test_networks_that_are_not_shared_equal_separate_agents(kind, layer_norm):
    def make(**arguments):
        arguments["layer_norm"] = layer_norm
        if kind == "recurrent":
            return make_agent(**arguments)
        return FeedforwardAgent(N, O, A, use_last_action=True, dtype=torch.float64, **arguments)

    own, shared = drawn_norms(make(share_parameters=False)), make(share_parameters=True)
    *sequence, hidden = make_sequence()
    hidden = hidden if kind == "recurrent" else None
    values, _ = own.unroll(*sequence, hidden)
    for n in range(N):
        shared.load_state_dict({name: p[n] for name, p in own.state_dict().items()})
        expected, _ = shared.unroll(*sequence, hidden)
        torch.testing.assert_close(values[:, :, n], expected[:, :, n], rtol=0, atol=1e-13)
    first, second = own.state_dict()[next(iter(own.state_dict()))]
    assert not torch.equal(first, second)


def test_feedforward_equals_a_perceptron():
    agent = FeedforwardAgent(N, O, A, hidden_dims=(8, 9), dtype=torch.float64)
    observation, last_action, is_init, _ = make_sequence()
    values, hidden = agent.unroll(observation, last_action, is_init, None)
    assert hidden is None
    one, two, three = agent.layers
    identity = torch.eye(N, dtype=torch.float64).expand(B, T, N, N)
    x = torch.cat([observation, identity], -1)
    expected = three(torch.relu(two(torch.relu(one(x)))))
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-14)
    step = TensorDict({IS_INIT: is_init[:, 3]}, [B])
    step[OBSERVATION] = observation[:, 3]
    torch.testing.assert_close(agent(step)[ACTION_VALUE], expected[:, 3], rtol=0, atol=1e-14)


def normalised(layer, norm, x):
    """Return a hidden layer of PQN's authors: linear, layer norm, ReLU; the norm by its formula."""
    z = layer(x)
    centred = z - z.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return torch.relu(centred / (variance + 1e-5).sqrt() * norm.weight + norm.bias)


def drawn_norms(agent):
    """Return an agent whose layer norms scale and shift, unlike at first."""
    for name, parameter in agent.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(-1, 2)
    return agent


def test_layer_norm_stands_between_each_hidden_layer_and_its_relu():
    observation, last_action, is_init, _ = make_sequence()
    identity = torch.eye(N, dtype=torch.float64).expand(B, T, N, N)
    agent = FeedforwardAgent(N, O, A, hidden_dims=(8, 9), layer_norm=True, dtype=torch.float64)
    one, two, three = drawn_norms(agent).layers
    x = torch.cat([observation, identity], -1)
    x = normalised(two, agent.norms[1], normalised(one, agent.norms[0], x))
    values, _ = agent.unroll(observation, last_action, is_init, None)
    torch.testing.assert_close(values, three(x), rtol=0, atol=1e-13)

    agent = drawn_norms(make_agent(layer_norm=True))
    values, hiddens = agent.unroll(observation, last_action, is_init, None)
    gates = agent.rnn  # step by step, by torch's cell
    hidden = torch.zeros(B, N, H, dtype=torch.float64)
    for t in range(T):
        x = torch.cat([observation[:, t], last_action[:, t], identity[:, t]], -1)
        x = normalised(agent.fc1, agent.norm, x)
        hidden = torch.where(is_init[:, t, :, None], 0.0, hidden)
        hidden = gates(x.flatten(0, 1), hidden.flatten(0, 1)).view(B, N, H)
        torch.testing.assert_close(hiddens[:, t], hidden, rtol=0, atol=1e-13)
    torch.testing.assert_close(values[:, -1], agent.fc2(hidden), rtol=0, atol=1e-13)


@pytest.mark.parametrize("make", [RecurrentAgent, FeedforwardAgent])
def test_without_layer_norm_the_weights_are_those_of_before(make):
    """Also with it, as norms draw no random numbers: runs with and without begin alike."""
    torch.manual_seed(0)
    plain = make(N, O, A).state_dict()
    assert not any("norm" in name for name in plain)
    torch.manual_seed(0)
    normed = make(N, O, A, layer_norm=True).state_dict()
    assert all(torch.equal(normed[name], plain[name]) for name in plain)
    assert len(normed) == len(plain) + 2 * (1 if make is RecurrentAgent else 2)


@pytest.mark.parametrize("use_last_action", [True, False])
@pytest.mark.parametrize("use_agent_id", [True, False])
def test_only_inputs_that_are_switched_on_matter(use_last_action, use_agent_id):
    agent = make_agent(use_last_action=use_last_action, use_agent_id=use_agent_id)
    observation, last_action, is_init, hidden = make_sequence()
    observation[:, :, 1], hidden[:, 1] = observation[:, :, 0], hidden[:, 0]
    same = last_action[:, :, :1].expand_as(last_action)
    values, _ = agent.unroll(observation, same, is_init, hidden)
    other, _ = agent.unroll(observation, 1 - same, is_init, hidden)
    assert torch.equal(values, other) == (not use_last_action)
    assert torch.allclose(values[:, :, 0], values[:, :, 1]) == (not use_agent_id)


@pytest.mark.parametrize("given", [{}, {"is_init": torch.zeros(4, 1, dtype=torch.bool)}])
@pytest.mark.parametrize("make", [RecurrentAgent, partial(FeedforwardAgent, use_last_action=True)])
def test_an_agent_without_its_memory_says_how_to_act(make, given):
    agent = make(2, 3, 5)
    seen = TensorDict({"agents": {"observation": torch.rand(4, 2, 3)}, **given}, [4])
    missing = "last_action" if given else "is_init"
    with pytest.raises(KeyError, match=rf"memory .*{missing}.*, got .*; act in with_memory\("):
        agent(seen)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
@pytest.mark.parametrize("make", [RecurrentAgent, FeedforwardAgent])
def test_agents_refuse_bad_sizes(make, sizes):
    with pytest.raises(ValueError, match="of at least 1, got"):
        make(*sizes)


@pytest.mark.parametrize("kind", [RecurrentAgent, FeedforwardAgent])
@pytest.mark.parametrize("team", [(N + 1, O), (N, O + 1)])
def test_observations_of_another_team_are_refused(kind, team):
    agent = kind(N, O, A, use_agent_id=True)
    seen = TensorDict({OBSERVATION: torch.zeros(B, *team), IS_INIT: torch.ones(B, 1).bool()}, [B])
    for key, size in ((HIDDEN, (N, 64)), (LAST_ACTION, (N, A))):
        seen[key] = torch.zeros(B, *size)
    got = rf"expected observations \[.., {N}, {O}\], got \[{B}, {team[0]}, {team[1]}\]; make the"
    with pytest.raises(ValueError, match=got):
        agent(seen)


def test_agents_refuse_bad_widths():
    with pytest.raises(ValueError, match="hidden_dim of at least 1, got 0"):
        RecurrentAgent(1, 1, 1, hidden_dim=0)
    with pytest.raises(ValueError, match=r"hidden_dims of at least 1, got \(3, 0\)"):
        FeedforwardAgent(1, 1, 1, hidden_dims=(3, 0))


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("share_parameters", [True, False])
@pytest.mark.parametrize("make", [RecurrentAgent, FeedforwardAgent])
def test_network_layers_are_all_layers_in_their_order(make, share_parameters, layer_norm):
    agent = make(N, O, A, share_parameters=share_parameters, layer_norm=layer_norm)
    below, rnn, head, norms = agent.network_layers()
    layers = [*below, *([] if rnn is None else [rnn]), head]
    assert len(norms) == (len(below) if layer_norm else 0)
    names = {id(p): name for name, p in agent.named_parameters()}
    found = [names.pop(id(p)) for layer in layers for p in layer.parameters()]
    assert found == [n for n, _ in agent.named_parameters() if "norm" not in n]
    assert set(names) == {id(p) for norm in norms for p in norm.parameters()}
    assert (rnn is None) == (make is FeedforwardAgent)
