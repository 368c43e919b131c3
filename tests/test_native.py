"""Layers in C++ against torch's: the GRU over sequences, linear layers, the mixer."""

import ctypes

import pytest
import torch
from loss_tools import make_loss, random_batch, some_ends
from torch import nn

from qmix_trl import FeedforwardAgent, QMixer, RecurrentAgent, VDNMixer
from qmix_trl.agents import gru, gru_op, gru_triton
from qmix_trl.agents.layers import per_agent
from qmix_trl.dense import dense, dense_by_layers
from qmix_trl.fused import policy_kernel
from qmix_trl.native import build, store
from qmix_trl.native.networks import dense as dense_kernel
from qmix_trl.native.networks import gru as gru_kernel
from qmix_trl.native.networks import layers as native_layers
from qmix_trl.native.networks import library as networks
from qmix_trl.native.networks import mixer as mixer_kernel

needs_library = pytest.mark.skipif(
    networks.missing(gru_kernel.library, torch.float32) is not None,
    reason="there is no C++ compiler",
)
KERNELS = (dense_kernel, gru_kernel, mixer_kernel)
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


def assert_near(found, expected, dtype):
    """Assert that tensors differ by little, relative to their norm."""
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= TOLERANCES[dtype] * other.norm().clamp(min=1)


def use_torch(monkeypatch):
    """Compute all layers by torch's operations from now on."""
    monkeypatch.setattr(networks, "serves", lambda *_: False)


@pytest.fixture
def threads():
    """Return a function that sets the number of threads for the rest of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ------------------------------------------------------------------------ the GRU


def inputs(*, shape=(5, 7, 3), width=10, dtype=torch.float64, resets=0.3, hidden=True):
    """Return gates [B, T, N, 3H], resets [B, T, 1] and a first hidden state [B, N, H] or None."""
    generator = torch.Generator().manual_seed(0)
    n_sequences, n_steps, n_agents = shape
    to = {"generator": generator, "dtype": dtype}
    gates = torch.randn(n_sequences, n_steps, n_agents, 3 * width, **to).requires_grad_()
    first = torch.randn(n_sequences, n_agents, width, **to).requires_grad_() if hidden else None
    is_init = torch.rand(n_sequences, n_steps, 1, generator=generator) < resets
    return gates, is_init, first


def weights(width, dtype, *, own=None):
    """Return a GRU cell's recurrent weight and bias, shared or of ``own`` agents."""
    torch.manual_seed(1)
    cell = per_agent(lambda: nn.GRUCell(width, width, dtype=dtype), own)
    return cell.weight_hh, cell.bias_hh


def results(way, gates, is_init, first, weight, bias):
    """Return hidden states and the gradients of a weighted sum of them."""
    hiddens = way(gates, is_init, first, weight, bias)
    wanted = torch.linspace(0, 1, hiddens.numel(), dtype=gates.dtype).view(hiddens.shape)
    asked = [x for x in (gates, first, weight, bias) if x is not None]
    return [hiddens, *torch.autograd.grad((wanted * hiddens).sum(), asked)]


def test_the_grus_equations_equal_torchs():
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
        ((50, 4, 3), 17, {"resets": 0}),  # several blocks of samples
        ((4, 101, 3), 16, {"resets": 0.02}),
    ],
)
def test_the_gru_kernel_equals_the_steps(shape, width, settings, own, dtype):
    arguments = (*inputs(shape=shape, width=width, dtype=dtype, **settings),)
    arguments += weights(width, dtype, own=own)
    expected = results(gru.unroll_by_steps, *arguments)
    assert_near(results(gru._unroll, *arguments), expected, dtype)


@needs_library
def test_gradients_of_the_gru_equal_finite_differences():
    # Small, as second derivatives take a call for each pair of numbers.
    gates, is_init, first = inputs(shape=(1, 3, 2), width=2)
    assert is_init.any()
    assert not is_init.all()
    arguments = (gates, first, *weights(2, torch.float64))

    def unroll(gates, first, weight, bias):
        return gru._unroll(gates, is_init, first, weight, bias)

    assert torch.autograd.gradcheck(unroll, arguments)
    assert torch.autograd.gradgradcheck(unroll, arguments)


@needs_library
@pytest.mark.parametrize("n_threads", [2, 3, 7])
def test_threads_change_no_bit_of_the_gru(n_threads, threads):
    arguments = (*inputs(shape=(40, 6, 3), width=20), *weights(20, torch.float64))
    threads(1)
    expected = results(gru._unroll, *arguments)
    threads(n_threads)
    assert all(map(torch.equal, results(gru._unroll, *arguments), expected))


@needs_library
def test_hidden_states_do_not_depend_on_whether_gradients_are_computed():
    arguments = (*inputs(), *weights(10, torch.float64))
    expected = gru._unroll(*arguments)
    with torch.no_grad():
        assert torch.equal(gru._unroll(*arguments), expected)


@needs_library
def test_the_gru_reads_tensors_that_are_not_contiguous():
    gates, is_init, first = inputs()
    weight, bias = weights(10, torch.float64)
    expected = gru._unroll(gates, is_init, first, weight, bias)
    apart = gates.transpose(0, 1).contiguous().transpose(0, 1)
    found = gru._unroll(apart, is_init.expand(-1, -1, 2)[..., :1], first, weight.t().t(), bias)
    assert torch.equal(found, expected)


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("own", [None, 3])
@pytest.mark.parametrize("hidden", [True, False])
def test_the_operation_for_torch_compile_equals_the_kernel(hidden, own, dtype):
    """By torch's own checks of an operation; its gradients are those of eager, bit for bit."""
    arguments = (*inputs(dtype=dtype, hidden=hidden), *weights(10, dtype, own=own))
    for keep in (True, False):
        given = [x if keep or x is None else x.detach() for x in arguments]
        torch.library.opcheck(gru_op._forward, (*given, keep))
    found = results(gru_op.unroll, *arguments)
    assert all(map(torch.equal, found, results(gru._unroll, *arguments)))


@needs_library
def test_a_compiled_gru_is_one_graph():
    arguments = (*inputs(), *weights(10, torch.float64))
    expected = results(gru._unroll, *arguments)
    sizes = []

    def counting(graph, _):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(gru._unroll, backend=counting, fullgraph=True)
    assert all(map(torch.equal, results(compiled, *arguments), expected))
    assert sizes[0] < 15, "the steps are unrolled"
    with torch.no_grad():
        assert torch.equal(compiled(*arguments), expected[0])


def test_a_gru_that_has_no_kernel_on_a_gpu_is_told(monkeypatch):
    monkeypatch.setattr(gru_triton, "is_installed", lambda: True)
    assert gru_triton.why_not(nn.GRUCell(3, 128)) is None
    reason = "expected hidden states of at most 128, got 129"
    assert gru_triton.why_not(nn.GRUCell(3, 129)) == reason
    reason = "expected float32, got torch.float64"
    assert gru_triton.why_not(nn.GRUCell(3, 4, dtype=torch.float64)) == reason
    monkeypatch.setattr(gru_triton, "is_installed", lambda: False)
    assert gru_triton.why_not(nn.GRUCell(3, 4)) == "Triton is not installed"


# ------------------------------------------------------------------------ linear layers


def layers_of(sizes, dtype, *, own=None):
    """Return weight and bias of layers, shared or of ``own`` agents."""
    torch.manual_seed(1)
    made = [per_agent(lambda a=a, b=b: nn.Linear(a, b, dtype=dtype), own) for a, b in sizes]
    return [(layer.weight, layer.bias) for layer in made]


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("own", [None, 3])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((50, 3), [(21, 64), (64, 64), (64, 5)]),
        ((2, 4, 3), [(7, 5)]),
        ((1, 3), [(1, 1), (1, 1)]),
        ((33, 9, 3), [(18, 17), (17, 40), (40, 2)]),  # several blocks of samples
        ((97, 3), [(16, 48), (48, 192)]),
    ],
)
@pytest.mark.parametrize("of_input", [True, False])
def test_layers_in_one_call_equal_torchs(shape, sizes, own, dtype, of_input, monkeypatch):
    layers = layers_of(sizes, dtype, own=own)
    x = torch.randn(*shape, sizes[0][0], dtype=dtype, requires_grad=of_input)
    asked = [*([x] if of_input else []), *(y for layer in layers for y in layer)]

    def found():
        y = dense(x, layers)
        wanted = torch.linspace(0, 1, y.numel(), dtype=dtype).view(y.shape)
        return [y, *torch.autograd.grad((wanted * y).sum(), asked)]

    by_kernel = found()
    with torch.no_grad():
        assert torch.equal(dense(x, layers), by_kernel[0])
    use_torch(monkeypatch)
    assert_near(by_kernel, found(), dtype)


def norms_of(sizes, dtype, *, own=None):
    """Return scale and shift of a layer norm for each layer but the last, all drawn."""
    lead = () if own is None else (own,)
    return [tuple(drawn(*lead, b, dtype=dtype) for _ in range(2)) for _, b in sizes[:-1]]


def drawn(*shape, dtype):
    """Return normally distributed numbers that have gradients."""
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@needs_library
@pytest.mark.parametrize("own", [None, 3])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((50, 3), [(21, 64), (64, 64), (64, 5)]),
        ((1, 3), [(1, 1), (1, 1)]),  # a norm of one number: its shift
        ((33, 9, 3), [(18, 17), (17, 40), (40, 2)]),  # several blocks of samples
        ((97, 3), [(16, 48), (48, 192)]),
    ],
)
@pytest.mark.parametrize("of_input", [True, False])
def test_layer_norms_equal_torchs(shape, sizes, own, of_input, monkeypatch):
    """Gradients in float64 alone: in float32 rounding may switch a ReLU."""
    layers, norms = (
        layers_of(sizes, torch.float64, own=own),
        norms_of(sizes, torch.float64, own=own),
    )
    x = torch.randn(*shape, sizes[0][0], dtype=torch.float64, requires_grad=of_input)
    asked = [*([x] if of_input else []), *(y for pair in (*layers, *norms) for y in pair)]

    def found():
        y = dense(x, layers, norms)
        wanted = torch.linspace(0, 1, y.numel(), dtype=y.dtype).view(y.shape)
        return [y, *torch.autograd.grad((wanted * y).sum(), asked)]

    def in_float32():
        pairs = [[tuple(y.float() for y in pair) for pair in of] for of in (layers, norms)]
        with torch.no_grad():
            return dense(x.float(), *pairs)

    by_kernel, rounded = found(), in_float32()
    with torch.no_grad():
        assert torch.equal(dense(x, layers, norms), by_kernel[0])
    use_torch(monkeypatch)
    for ours, theirs in zip(by_kernel, found(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rounded, in_float32(), rtol=1e-5, atol=1e-5)


@needs_library
def test_layer_norms_keep_numbers_that_are_not_finite():
    layers, ((scale, shift),) = (
        layers_of([(2, 3), (3, 1)], torch.float32),
        norms_of([(2, 3)] * 2, torch.float32),
    )
    with torch.no_grad():
        assert dense(torch.tensor([[[1.0, float("nan")]]]), layers, [(scale, shift)]).isnan().all()


@needs_library
def test_gradients_of_layer_norms_equal_finite_differences():
    sizes = [(3, 4), (4, 2)]
    layers, norms = layers_of(sizes, torch.float64), norms_of(sizes, torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def apply(x, *tensors):
        return dense(x, [tensors[:2], tensors[2:4]], [tensors[4:]])

    arguments = (x, *(y for pair in (*layers, *norms) for y in pair))
    assert torch.autograd.gradcheck(apply, arguments)
    assert torch.autograd.gradgradcheck(apply, arguments)


@needs_library
@pytest.mark.parametrize("make", [RecurrentAgent, FeedforwardAgent])
def test_an_agent_with_layer_norms_has_layers_in_cpp(make, monkeypatch):
    torch.manual_seed(0)
    agent = make(2, 3, 4, layer_norm=True, dtype=torch.float64)
    assert networks.why_not(list(agent.parameters()), agent) is None
    inputs = torch.randn(5, 7, 2, 3).double(), torch.zeros(5, 7, 2, 4).double()
    is_init = torch.rand(5, 7, 1) < 0.3

    def found():
        value = agent.unroll(*inputs, is_init, None)[0]
        return [value, *torch.autograd.grad(value.square().sum(), list(agent.parameters()))]

    by_kernel = found()
    use_torch(monkeypatch)
    for ours, theirs in zip(by_kernel, found(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@needs_library
def test_gradients_of_layers_equal_finite_differences():
    layers = layers_of([(3, 4), (4, 2)], torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def apply(x, *parameters):
        return dense(x, list(zip(parameters[::2], parameters[1::2], strict=True)))

    arguments = (x, *(y for layer in layers for y in layer))
    assert torch.autograd.gradcheck(apply, arguments)
    assert torch.autograd.gradgradcheck(apply, arguments)


@needs_library
@pytest.mark.parametrize("n_threads", [2, 3, 7])
def test_threads_change_no_bit_of_layers(n_threads, threads):
    layers = layers_of([(5, 20), (20, 3)], torch.float64)
    parameters = [y for layer in layers for y in layer]
    x = torch.randn(500, 1, 5, dtype=torch.float64)

    def found():
        return [dense(x, layers), *torch.autograd.grad(dense(x, layers).sum(), parameters)]

    threads(1)
    expected = found()
    threads(n_threads)
    assert all(map(torch.equal, found(), expected))


# ------------------------------------------------------------------------ the mixer


def mixed(mixer, chosen, state, asked):
    """Return joint values and the gradients of a weighted sum of them."""
    total = mixer(chosen, state)
    wanted = torch.linspace(0, 1, total.numel(), dtype=chosen.dtype).view(total.shape)
    return [total, *torch.autograd.grad((wanted * total).sum(), asked)]


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize(
    ("shape", "n_agents", "state_dim", "embed"),
    [((4, 9), 3, 54, 32), ((130,), 2, 5, 7), ((97,), 4, 16, 33), ((1,), 1, 1, 1)],
)
def test_the_mixer_in_one_call_equals_torchs(
    shape, n_agents, state_dim, embed, n_layers, dtype, monkeypatch
):
    torch.manual_seed(0)
    mixer = QMixer(n_agents, state_dim, embed, n_layers, 24, dtype=dtype)
    chosen = torch.randn(*shape, n_agents, 1, dtype=dtype, requires_grad=True)
    state = torch.randn(*shape, state_dim, dtype=dtype)
    asked = [chosen, *mixer.parameters()]
    by_kernel = mixed(mixer, chosen, state, asked)
    with torch.no_grad():
        assert torch.equal(mixer(chosen, state), by_kernel[0])
    use_torch(monkeypatch)
    assert_near(by_kernel, mixed(mixer, chosen, state, asked), dtype)


@needs_library
def test_torch_mixes_a_state_that_needs_a_gradient(monkeypatch):
    mixer = QMixer(2, 3, 4, dtype=torch.float64)
    chosen = torch.randn(6, 2, 1, dtype=torch.float64, requires_grad=True)
    state = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    found = mixed(mixer, chosen, state, [chosen, state])
    use_torch(monkeypatch)
    assert_near(found, mixed(mixer, chosen, state, [chosen, state]), torch.float64)


@needs_library
@pytest.mark.parametrize("n_layers", [1, 2])
def test_gradients_of_the_mixer_equal_finite_differences(n_layers):
    mixer = QMixer(2, 2, 2, n_layers, 2, dtype=torch.float64)
    chosen = torch.randn(2, 2, 1, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, dtype=torch.float64)
    names = list(dict(mixer.named_parameters()))

    def mix(chosen, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(mixer, named, (chosen, state))

    arguments = (chosen, *mixer.parameters())
    assert torch.autograd.gradcheck(mix, arguments)
    assert torch.autograd.gradgradcheck(mix, arguments)


@needs_library
@pytest.mark.parametrize("n_threads", [2, 3, 7])
def test_threads_change_no_bit_of_the_mixer(n_threads, threads):
    mixer = QMixer(3, 5, 8, 2, dtype=torch.float64)
    chosen = torch.randn(300, 3, 1, dtype=torch.float64, requires_grad=True)
    state, asked = torch.randn(300, 5, dtype=torch.float64), [chosen, *mixer.parameters()]
    threads(1)
    expected = mixed(mixer, chosen, state, asked)
    threads(n_threads)
    assert all(map(torch.equal, mixed(mixer, chosen, state, asked), expected))


@needs_library
def test_kernels_take_empty_batches():
    layers = layers_of([(3, 4), (4, 2)], torch.float64)
    assert dense(torch.empty(0, 2, 3, dtype=torch.float64), layers).shape == (0, 2, 2)
    mixer = QMixer(2, 3, 4, dtype=torch.float64)
    total = mixer(torch.empty(0, 2, 1).double(), torch.empty(0, 3).double())
    assert total.shape == (0, 1)
    total.sum().backward()
    assert all((p.grad == 0).all() for p in mixer.parameters())
    gates, is_init, first = inputs(shape=(0, 4, 3))
    assert gru._unroll(gates, is_init, first, *weights(10, torch.float64)).shape == (0, 4, 3, 10)


# ------------------------------------------------------------------------ when kernels serve


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
@pytest.mark.parametrize("interior", [False, True])
def test_loss_and_gradients_equal_torchs(kind, dtype, interior, monkeypatch):
    loss = make_loss(kind, td_lambda=0.8).to(dtype)
    batch = random_batch(6, 20, ends=some_ends(6, 20) if interior else None)
    batch = batch.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def both():
        value = loss(batch)["loss"]
        return value, *torch.autograd.grad(value, list(loss.parameters()))

    value, *gradients = both()
    use_torch(monkeypatch)
    by_torch, *torch_gradients = both()
    torch.testing.assert_close(value, by_torch, rtol=TOLERANCES[dtype], atol=0)
    norm = torch.stack([g.norm() for g in torch_gradients]).norm()
    difference = [(a - b).norm() for a, b in zip(gradients, torch_gradients, strict=True)]
    assert torch.stack(difference).norm() <= TOLERANCES[dtype] * norm


def forbid_kernels(monkeypatch):
    """Let every call of a kernel fail from now on."""

    def called(*args, **kwargs):
        raise AssertionError("a kernel was called")

    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "forward", called)


@needs_library
def test_torch_computes_mapped_tensors(monkeypatch):
    mixer = QMixer(2, 3, 4)
    chosen, state = torch.randn(5, 7, 2, 1), torch.randn(5, 7, 3)
    expected = mixer(chosen, state)
    forbid_kernels(monkeypatch)
    torch.testing.assert_close(torch.vmap(mixer)(chosen, state), expected)


@needs_library
def test_torch_computes_under_autocast(monkeypatch):
    forbid_kernels(monkeypatch)
    layers = layers_of([(3, 4)], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert dense(torch.randn(5, 2, 3), layers).dtype == torch.bfloat16


@needs_library
def test_torch_computes_other_dtypes(monkeypatch):
    forbid_kernels(monkeypatch)
    layers = layers_of([(3, 4)], torch.bfloat16)
    x = torch.randn(5, 2, 3).bfloat16()
    assert torch.equal(dense(x, layers), dense_by_layers(x, layers[0]))


@needs_library
def test_forbidden_kernels_are_seen(monkeypatch):
    forbid_kernels(monkeypatch)
    with pytest.raises(AssertionError, match="a kernel was called"):
        dense(torch.randn(5, 2, 3), layers_of([(3, 4)], torch.float32))


@needs_library
def test_torch_refuses_shapes_that_do_not_fit():
    shared, own = layers_of([(3, 4)], torch.float32), layers_of([(3, 4)], torch.float32, own=2)
    for layers, shape in ((shared, (5, 2, 7)), (own, (5, 2, 7)), (own, (5, 4, 3))):
        with pytest.raises(RuntimeError):
            dense(torch.randn(*shape), layers)
    gates, is_init, first = inputs()
    for wrong in (
        (gates, is_init, first[:, :, :-1], *weights(10, torch.float64)),
        (gates, is_init, first[:-1], *weights(10, torch.float64)),
        (gates, is_init[:-1], first, *weights(10, torch.float64)),
        (gates, is_init, first, *weights(9, torch.float64)),
        (gates, is_init, first, *weights(10, torch.float64, own=2)),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            gru._unroll(*wrong)


@pytest.mark.filterwarnings("ignore:torch's operations serve")
@pytest.mark.parametrize("error", [build.NoCompiler("install one"), build.BuildFailed("no room")])
def test_without_a_library_torch_computes(error, monkeypatch):
    def refuse(dtype):
        raise error

    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "library", refuse)
    assert networks.missing(refuse, torch.float32) == str(error)
    loss = make_loss("recurrent").float()
    batch = random_batch(2, 3).apply(lambda x: x.float() if x.is_floating_point() else x)
    found = loss(batch)["loss"]
    use_torch(monkeypatch)
    assert torch.equal(loss(batch)["loss"], found)


def test_a_build_that_fails_is_warned_of():
    def refuse(dtype):
        raise build.BuildFailed("g++: no room")

    with pytest.warns(UserWarning, match=r"not layers in C\+\+: g\+\+: no room"):
        assert networks.missing(refuse, torch.float32) == "g++: no room"


def float_parameters(*modules):
    """Return all parameters of modules."""
    return [p for module in modules for p in module.parameters()]


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (torch.float32, None),
        (torch.float64, None),
        (torch.bfloat16, "the parameters are torch.bfloat16, not float32 or float64"),
    ],
)
def test_why_not_names_a_dtype_that_no_kernel_has(dtype, reason, monkeypatch):
    monkeypatch.setattr(networks, "missing", lambda *_: None)
    agent, mixer = RecurrentAgent(2, 3, 4, dtype=dtype), QMixer(2, 5, dtype=dtype)
    assert networks.why_not(float_parameters(agent, mixer), agent, mixer) == reason


def test_why_not_names_another_device():
    agent = RecurrentAgent(2, 3, 4, device="meta")
    assert networks.why_not(float_parameters(agent), agent) == "the parameters are on meta"


@pytest.mark.filterwarnings("ignore:torch's operations serve")
def test_why_not_names_a_missing_compiler(monkeypatch):
    def refuse(dtype):
        raise build.NoCompiler("install one")

    agent = FeedforwardAgent(2, 3, 4)
    monkeypatch.setattr(FeedforwardAgent, "libraries", (refuse,))
    assert networks.why_not(float_parameters(agent), agent) == "install one"


@pytest.mark.parametrize("broken", KERNELS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_why_not_names_a_failed_build_where_it_is_needed(broken, dtype, monkeypatch):
    """Of the libraries that the modules need, in the dtype of their parameters."""
    failed = {(broken.library, dtype): "g++: no room"}
    monkeypatch.setattr(networks, "missing", lambda *asked: failed.get(asked))
    recurrent, feedforward = (
        make(2, 3, 4, dtype=dtype) for make in (RecurrentAgent, FeedforwardAgent)
    )
    mixer = QMixer(2, 5, dtype=dtype)
    for modules, needed in (
        ((recurrent, mixer), KERNELS),
        ((recurrent, VDNMixer()), (dense_kernel, gru_kernel)),
        ((feedforward, None), (dense_kernel,)),
    ):
        parameters = float_parameters(*filter(None, modules))
        reason = networks.why_not(parameters, *modules)
        assert (reason == "g++: no room") == (broken in needed)
        (other,) = set(TOLERANCES) - {dtype}
        assert networks.why_not([p.to(other) for p in parameters], *modules) is None


def test_why_not_asks_for_all_libraries_of_a_loss(monkeypatch):
    asked = []
    monkeypatch.setattr(networks, "missing", lambda *library: asked.append(library))
    loss = make_loss("recurrent")
    assert networks.why_not(list(loss.parameters()), loss.agent, loss.mixer) is None
    assert set(asked) == {(kernel.library, torch.float64) for kernel in KERNELS}


def test_modules_without_kernels_have_no_layers_in_cpp():
    reason = "no agent or mixer has layers in C++"
    assert networks.why_not([torch.zeros(1)], nn.Linear(2, 3), VDNMixer()) == reason


# ------------------------------------------------------------------------ structures

STRUCTURES = {
    "dense": ("qmix_trl.native.networks", dense_kernel.Dense),
    "gru": ("qmix_trl.native.networks", gru_kernel.Sequences),
    "mixer": ("qmix_trl.native.networks", mixer_kernel.Mixer),
    "policy": ("qmix_trl.fused", policy_kernel.Acting),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_c_defines_no_structure_of_arguments_but_the_printed_one(name):
    """So that two swapped fields are swapped on both sides."""
    package, arguments = STRUCTURES[name]
    for structure in (arguments, native_layers.Layer, native_layers.Linear, native_layers.Norm):
        definition = f"struct {structure.__name__} {{"
        headers = store.header(package, f"{name}.h") + store.header(
            networks.__package__, "networks.h"
        )
        assert definition not in headers
        source = networks.network_source(package, name, arguments, torch.float32)
        assert source.count(definition) == 1


@pytest.mark.slow
@needs_library
def test_swapped_fields_change_no_number(monkeypatch):
    """A kernel whose arguments have another order, and so another layout; slow to build."""
    swapped = type(
        "Dense", (ctypes.Structure,), {"_fields_": list(reversed(dense_kernel.Dense._fields_))}
    )
    layers, x = layers_of([(5, 20), (20, 3)], torch.float32), torch.randn(30, 2, 5)
    expected = dense(x, layers)
    monkeypatch.setattr(dense_kernel, "Dense", swapped)
    monkeypatch.setattr(dense_kernel, "library", networks.loader("dense", swapped))
    assert torch.equal(dense(x, layers), expected)


def test_sources_differ_by_all_that_they_are_built_from():
    """The text is the key on disk: a dtype, an order of fields or a header changes it."""
    package, arguments = STRUCTURES["dense"]
    swapped = type("Dense", (ctypes.Structure,), {"_fields_": arguments._fields_[::-1]})
    sources = {
        networks.network_source(package, "dense", structure, dtype)
        for structure in (arguments, swapped)
        for dtype in TOLERANCES
    }
    assert len(sources) == 4
    for header in ("simd.h", "networks/networks.h", "networks/dense.h"):
        text = store.header("qmix_trl.native", header)
        assert all(text in source for source in sources)
    assert not any(store.header(package, "gru.h") in source for source in sources)
