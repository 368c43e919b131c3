"""The GRU's ways through time: each beside torch's own cell, step by step."""

import pytest
import torch
from test_loss import make_loss, random_batch, some_ends
from torch import nn

from qmix_trl.agents import gru, gru_kernel, gru_triton
from qmix_trl.agents.layers import per_agent
from qmix_trl.native import build

needs_library = pytest.mark.skipif(
    gru_kernel.why_not(torch.device("cpu"), torch.float32) is not None,
    reason="there is no C++ compiler",
)
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


def inputs(*, shape=(5, 7, 3), width=10, dtype=torch.float64, resets=0.3, hidden=True):
    """Return gates [B, T, N, 3H], resets [B, T, 1] and a first hidden state [B, N, H] or None."""
    generator = torch.Generator().manual_seed(0)
    n_rows, n_steps, n_agents = shape
    to = {"generator": generator, "dtype": dtype}
    gates = torch.randn(n_rows, n_steps, n_agents, 3 * width, **to).requires_grad_()
    first = torch.randn(n_rows, n_agents, width, **to).requires_grad_() if hidden else None
    is_init = torch.rand(n_rows, n_steps, 1, generator=generator) < resets
    return gates, is_init, first


def weights(width, dtype, *, own=None):
    """Return a GRU cell's recurrent weight and bias, shared or each agent's own."""
    torch.manual_seed(1)
    cell = per_agent(lambda: nn.GRUCell(width, width, dtype=dtype), own)
    return cell.weight_hh, cell.bias_hh


def results(way, gates, is_init, first, weight, bias):
    """Return hidden states and the gradients of a weighted sum of theirs."""
    hiddens = way(gates, is_init, first, weight, bias)
    wanted = torch.linspace(-1, 1, hiddens.numel(), dtype=gates.dtype).view(hiddens.shape)
    asked = [x for x in (gates, first, weight, bias) if x is not None]
    return [hiddens, *torch.autograd.grad((wanted * hiddens).sum(), asked)]


def test_the_equations_are_those_of_torch():
    gates, is_init, first = inputs(resets=0)
    weight, bias = weights(10, torch.float64)
    cell = nn.GRUCell(30, 10, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.eye(30))
        cell.bias_ih.zero_()
        cell.weight_hh.copy_(weight)
        cell.bias_hh.copy_(bias)
    hiddens = gru.unroll_by_steps(gates, is_init, first, weight, bias)
    hidden = first.flatten(0, 1)
    for t in range(7):
        hidden = cell(gates[:, t].flatten(0, 1), hidden)
        torch.testing.assert_close(hiddens[:, t].flatten(0, 1), hidden, rtol=1e-13, atol=1e-13)


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("own", [None, 3])
@pytest.mark.parametrize(
    ("shape", "width", "settings"),
    [
        ((5, 7, 3), 10, {}),
        ((5, 7, 3), 64, {"hidden": False}),
        ((1, 1, 3), 1, {}),
        ((50, 4, 3), 17, {"resets": 0}),  # rows of several blocks
        ((4, 101, 3), 16, {"resets": 0.02}),
    ],
)
def test_the_kernel_is_the_steps(shape, width, settings, own, dtype):
    arguments = (*inputs(shape=shape, width=width, dtype=dtype, **settings),)
    arguments += weights(width, dtype, own=own)
    expected = results(gru.unroll_by_steps, *arguments)
    for one, other in zip(results(gru_kernel.unroll, *arguments), expected, strict=True):
        assert (one - other).norm() <= TOLERANCES[dtype] * other.norm().clamp(min=1)


@needs_library
def test_gradients_are_those_of_small_differences():
    gates, is_init, first = inputs(shape=(2, 3, 2), width=3)
    weight, bias = weights(3, torch.float64)
    assert torch.autograd.gradcheck(
        lambda g, h, w, b: gru_kernel.unroll(g, is_init, h, w, b), (gates, first, weight, bias)
    )


@needs_library
def test_threads_change_nothing():
    arguments = (*inputs(shape=(40, 6, 3), width=20), *weights(20, torch.float64))
    expected = results(gru_kernel.unroll, *arguments)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = results(gru_kernel.unroll, *arguments)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@needs_library
def test_without_gradients_the_numbers_are_the_same():
    arguments = (*inputs(), *weights(10, torch.float64))
    expected = gru_kernel.unroll(*arguments)
    with torch.no_grad():
        assert torch.equal(gru_kernel.unroll(*arguments), expected)


@needs_library
def test_what_is_not_contiguous_is_read_right():
    gates, is_init, first = inputs()
    weight, bias = weights(10, torch.float64)
    expected = gru_kernel.unroll(gates, is_init, first, weight, bias)
    apart = gates.transpose(0, 1).contiguous().transpose(0, 1)
    found = gru_kernel.unroll(apart, is_init.expand(-1, -1, 2)[..., :1], first, weight, bias)
    assert torch.equal(found, expected)


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("interior", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_path(dtype, interior, monkeypatch):
    loss = make_loss("recurrent", td_lambda=0.8).to(dtype)
    ends = some_ends(6, 20) if interior else {}
    batch = random_batch(6, 20, **({"ends": ends} if interior else {}))
    batch = batch.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def both():
        value = loss(batch)["loss"]
        return value, torch.autograd.grad(value, list(loss.parameters()))

    value, gradients = both()
    monkeypatch.setattr(gru_kernel, "why_not", lambda *_: "as asked for")
    plain, plain_gradients = both()
    close = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    torch.testing.assert_close(value, plain, **close)
    norm = torch.stack([g.norm() for g in plain_gradients]).norm()
    for one, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one / norm, other / norm, **close)


@pytest.mark.parametrize("error", [build.NoCompiler("install one"), build.BuildFailed("no room")])
def test_without_a_library_torch_takes_the_steps(error, monkeypatch):
    def refuse(dtype):
        raise error

    monkeypatch.setattr(gru_kernel, "library", refuse)
    gru_kernel.why_not.cache_clear()
    try:
        assert gru_kernel.why_not(torch.device("cpu"), torch.float32) == str(error)
        rnn = nn.GRUCell(4, 4)
        x, is_init = torch.randn(2, 3, 1, 4), torch.zeros(2, 3, 1, dtype=torch.bool)
        found = gru.unroll(x, is_init, None, rnn)
    finally:
        gru_kernel.why_not.cache_clear()
    hidden = torch.zeros(2, 4)
    for t in range(3):
        hidden = rnn(x[:, t, 0], hidden)
        torch.testing.assert_close(found[:, t, 0], hidden)


def test_other_numbers_have_no_library():
    reason = gru_kernel.why_not(torch.device("cpu"), torch.bfloat16)
    assert reason == "there is none for torch.bfloat16 on cpu"


@pytest.mark.parametrize("hidden", [True, False])
def test_rows_for_torchrls_kernel(hidden, monkeypatch):
    """TorchRL's kernel, whose rows are [R, T, H], is given ours and gives them back."""

    def by_cells(x, states, w_ih, w_hh, b_ih, b_hh, is_init, *, input_precision):
        assert input_precision == "ieee"
        state, out = states[:, 0], []
        for t in range(x.shape[1]):
            state = torch.where(is_init[:, t, None], states[:, t], state)
            state = torch.gru_cell(x[:, t], state, w_ih, w_hh, b_ih, b_hh)
            out.append(state)
        return torch.stack(out, 1), state

    monkeypatch.setattr(gru_triton._rnn_triton, "gru_triton", by_cells)
    rnn = nn.GRUCell(10, 10, dtype=torch.float64)
    x = torch.randn(5, 7, 3, 10, dtype=torch.float64)
    _, is_init, first = inputs(hidden=hidden)
    is_init[0, 0] = True
    is_init[1, 0] = False
    expected = gru.unroll(x, is_init, first, rnn)
    torch.testing.assert_close(gru_triton.unroll(x, is_init, first, rnn), expected)
