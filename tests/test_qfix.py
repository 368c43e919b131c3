"""QFIX and QPLEX: IGM by brute force, the base's value, gradients, and an independent form."""

from itertools import product

import numpy as np
import pytest
import torch

from qmix_trl import QFixMixer, QMixer, QPlexMixer, VDNMixer
from qmix_trl.functional import greedy_action, value_of
from qmix_trl.native.networks import dense as kernel
from qmix_trl.native.networks import library as networks

N, A, S = 3, 4, 5
JOINT = torch.tensor(list(product(range(A), repeat=N)))  # [A^N, N]
KINDS = {"qfix": QFixMixer, "qplex": QPlexMixer}
BASES = {"vdn": VDNMixer, "qmix": QMixer}


def make_base(base, dtype=torch.float64):
    """Return a base mixer of the table."""
    return VDNMixer(N) if base == "vdn" else QMixer(N, S, 8, dtype=dtype)


def make_mixer(kind, base="vdn", *, spread=1.0, seed=0):
    """Return a mixer in float64 whose weights are normal numbers of a spread."""
    torch.manual_seed(seed)
    mixer = KINDS[kind](N, S, A, base=make_base(base), dtype=torch.float64)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, spread)
    return mixer


def tables(mixer, utilities, state, available):
    """Return Q_tot of all joint actions [B, A^N] of utilities [B, N, A]."""
    n = len(utilities)
    values = utilities.unsqueeze(1).expand(n, len(JOINT), N, A)
    joint = JOINT.expand(n, -1, -1)
    mask = available.unsqueeze(1).expand_as(values)
    greedy = value_of(values, greedy_action(values, mask))
    state = state.unsqueeze(1).expand(n, len(JOINT), S)
    return mixer(value_of(values, joint), greedy, joint, state)[..., 0]


def draw(n=1000, seed=1):
    """Return utilities [n, N, A] of sizes from 1e-2 to 1e2, states [n, S] and masks [n, N, A]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scale = 10 ** (4 * torch.rand(n, 1, 1, generator=generator, dtype=torch.float64) - 2)
    available = torch.rand(n, N, A, generator=generator) < 0.6
    available[..., 1] |= ~available.any(-1)  # each agent has an action
    return scale * normal(n, N, A), 3 * normal(n, S), available


both = pytest.mark.parametrize("kind", KINDS)
every_base = pytest.mark.parametrize("base", BASES)


@both
@every_base
def test_the_greedy_actions_are_the_greedy_joint_action_under_masks(kind, base):
    utilities, state, available = draw()
    mixer = make_mixer(kind, base)
    with torch.no_grad():
        table = tables(mixer, utilities, state, available)
    allowed = available[:, torch.arange(N), JOINT].all(-1)  # [B, A^N]
    best = table.masked_fill(~allowed, -torch.inf).amax(-1)
    greedy = greedy_action(utilities, available)  # [B, N]
    place = (greedy * torch.tensor([A**2, A, 1])).sum(-1)
    at_greedy = table.gather(-1, place.unsqueeze(-1))[:, 0]
    if (kind, base) != ("qplex", "vdn"):
        assert torch.equal(at_greedy, best)
    else:  # where lambda underflows, all joint actions have one value but for rounding
        assert (at_greedy >= best - 1e-12 * utilities.abs().amax((1, 2))).all()
    # Q_tot is not monotone: raising the utility of one action lowers it in some states.
    assert (allowed.sum(-1) > 1).float().mean() > 0.9


@both
@every_base
def test_the_value_of_the_greedy_joint_action_is_the_bases_exactly(kind, base):
    utilities, state, available = draw()
    mixer = make_mixer(kind, base)
    greedy = greedy_action(utilities, available)
    chosen = value_of(utilities, greedy)
    total = mixer(chosen, chosen, greedy, state)
    assert torch.equal(total, mixer.base(chosen, state))
    worse = mixer(chosen - 1, chosen, greedy, state)
    assert (worse <= total + 1e-12 * total.abs()).all()
    assert (worse < total).float().mean() > 0.5  # elsewhere softplus has underflown


def test_qplex_over_vdn_represents_small_losses_of_large_utilities():
    """lambda_a is any positive number (QPLEX, section 3.2), not one above 1.

    Utilities are 1 and 0 for all three agents; at the worse joint action VDN has 0, QPLEX any value
    below 3: here 3 less the lambdas, each at most 10 times 0.01.
    """
    mixer = make_mixer("qplex")
    with torch.no_grad():
        mixer.g.weight.zero_()
        mixer.g.bias.fill_(0.01)
    chosen, greedy = torch.zeros(1, N, 1).double(), torch.ones(1, N, 1).double()
    total = mixer(chosen, greedy, torch.ones(1, N, dtype=torch.int64), torch.zeros(1, S).double())
    assert 2.7 < total.item() < 3


@both
def test_a_table_that_no_monotone_mixer_represents_is_represented(kind):
    """The climbing game: 8 for (0, 0), and -12 if one agent alone takes action 0."""
    payoff = torch.tensor([[8.0, -12, -12], [-12, 0, 0], [-12, 0, 0]], dtype=torch.float64)
    joint = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    # Utilities of the right order: Q_a(0) = 4, the others 3 and 2.
    utilities = torch.tensor([4.0, 3, 2], dtype=torch.float64).expand(9, 2, 3)
    torch.manual_seed(0)
    mixer = KINDS[kind](2, 1, 3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(mixer.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    entries = value_of(utilities, joint), utilities.amax(-1, keepdim=True), joint

    def errors():
        return mixer(*entries, torch.ones(9, 1, dtype=torch.float64))[:, 0] - payoff.flatten()

    def step():
        optimizer.zero_grad()
        error = errors().square().sum()
        error.backward()
        return error

    optimizer.step(step)
    assert errors().abs().max() < 1e-3


@both
@every_base
def test_no_gradient_passes_through_the_advantages(kind, base):
    utilities, state, available = draw(50)
    mixer = make_mixer(kind, base)
    action = greedy_action(-utilities, available)  # the worst ones
    chosen = value_of(utilities, action).requires_grad_()
    greedy = value_of(utilities, greedy_action(utilities, available)).requires_grad_()
    total = mixer(chosen, greedy, action, state)
    through_base = torch.autograd.grad(mixer.base(chosen, state).sum(), chosen)[0]
    got, of_greedy = torch.autograd.grad(total.sum(), [chosen, greedy], allow_unused=True)
    assert of_greedy is None
    assert torch.equal(got, through_base)
    assert all((p != 0).any() for p in torch.autograd.grad(
        mixer(chosen, greedy, action, state).sum(), list(mixer.parameters())
    ))  # fmt: skip


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow_value(mixer, chosen, greedy, action, state):
    """Return Q_tot of one sample, an array operation for each term of the docstrings."""
    w = {name: p.detach().numpy() for name, p in mixer.named_parameters()}
    joint = np.concatenate([state, *(np.eye(A)[u] for u in action)])
    if isinstance(mixer, QFixMixer):
        hidden = np.maximum(w["f.0.weight"] @ joint + w["f.0.bias"], 0)
        factors = [np.log1p(np.exp(w["f.2.weight"] @ hidden + w["f.2.bias"]))[0]] * N
    else:
        g = np.abs(w["g.weight"] @ state + w["g.bias"])
        h = sigmoid(w["h.weight"] @ state + w["h.bias"])
        f = sigmoid(w["f.weight"] @ joint + w["f.bias"])
        factors = g @ (h * f).reshape(len(g), N) - isinstance(mixer.base, VDNMixer)
    if isinstance(mixer.base, VDNMixer):
        base = chosen.sum()
    else:
        w1 = np.abs(w["base.hyper_w_1.weight"] @ state + w["base.hyper_w_1.bias"]).reshape(N, -1)
        b1 = w["base.hyper_b_1.weight"] @ state + w["base.hyper_b_1.bias"]
        w2 = np.abs(w["base.hyper_w_final.weight"] @ state + w["base.hyper_w_final.bias"])
        v = np.maximum(w["base.V.0.weight"] @ state + w["base.V.0.bias"], 0)
        x = chosen @ w1 + b1
        base = np.where(x > 0, x, np.expm1(np.minimum(x, 0))) @ w2
        base += (w["base.V.2.weight"] @ v + w["base.V.2.bias"])[0]
    return base + sum(factors[a] * (chosen[a] - greedy[a]) for a in range(N))


@both
@every_base
def test_values_and_gradients_equal_an_independent_form(kind, base):
    """Gradients of parameters by central differences of the form in NumPy, along one direction."""
    utilities, state, available = draw(20, seed=3)
    utilities, state = utilities.clamp(-3, 3), state / 3
    mixer = make_mixer(kind, base, spread=0.4)
    action = greedy_action(-utilities, available)
    entries = value_of(utilities, action), value_of(utilities, greedy_action(utilities, available))
    inputs = [*(x[..., 0].numpy() for x in entries), action.numpy(), state.numpy()]

    def slow():
        return np.array([slow_value(mixer, *sample) for sample in zip(*inputs, strict=True)])

    total = mixer(*entries, action, state)
    np.testing.assert_allclose(total[:, 0].detach().numpy(), slow(), rtol=1e-9, atol=1e-9)
    total.square().mean().backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        found = []
        for step in (1e-6, -2e-6, 1e-6):  # to one side, to the other, and back
            parameter.data += step * direction
            found.append(np.square(slow()).mean())
        slope = (found[0] - found[1]) / 2e-6
        assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-6, abs=1e-8)


@both
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("state_shape", [6, (2, 3)])
def test_leading_dimensions_and_state_shapes(kind, leading, state_shape):
    mixer = KINDS[kind](N, state_shape, A)
    shape = (state_shape,) if isinstance(state_shape, int) else state_shape
    chosen = torch.randn(*leading, N, 1)
    action = torch.randint(A, (*leading, N))
    total = mixer(chosen, chosen + 1, action, torch.randn(*leading, *shape))
    assert total.shape == (*leading, 1)


@both
@pytest.mark.parametrize("wrong", ["n_agents", "state_shape", "n_actions"])
def test_bad_sizes_are_refused(kind, wrong):
    sizes = {"n_agents": N, "state_shape": S, "n_actions": A, wrong: 0}
    with pytest.raises(ValueError, match=f"{KINDS[kind].__name__}: expected .* at least 1, got"):
        KINDS[kind](**sizes)


@pytest.mark.parametrize(("kind", "width"), [("qfix", "embed_dim"), ("qplex", "n_heads")])
def test_a_width_of_zero_is_refused(kind, width):
    with pytest.raises(
        ValueError, match=f"at least 1, got state_shape=.*, n_agents=3, .*{width}=0"
    ):
        KINDS[kind](N, S, A, **{width: 0})


@both
def test_shapes_that_do_not_fit_are_refused(kind):
    mixer = KINDS[kind](N, S, A)
    chosen, action = torch.randn(7, N, 1), torch.zeros(7, N, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"state of shape \[7, 5\], got \[7, 4\]$"):
        mixer(chosen, chosen, action, torch.randn(7, 4))
    with pytest.raises(ValueError, match=r"greedy_action_value of shape \[7, 3, 1\], got \[7, 3\]"):
        mixer(chosen, chosen[..., 0], action, torch.randn(7, S))


def test_the_hidden_layer_of_qfix_runs_in_cpp():
    mixer = make_mixer("qfix")
    assert kernel.library in mixer.libraries
    assert networks.why_not(list(mixer.parameters()), mixer) is None
