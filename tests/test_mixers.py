"""Mixers: shapes, monotonicity, names, and equality with TorchRL's."""

import pytest
import torch
from mixer_tools import UnconstrainedMixer
from torchrl.modules import QMixer as TorchRLQMixer
from torchrl.modules import VDNMixer as TorchRLVDNMixer

from qmix_trl import MIXERS, QMixer, VDNMixer


@pytest.mark.parametrize("hypernet_layers", [1, 2])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("state_shape", [6, [6], (2, 3), torch.Size([1, 2, 3])])
def test_qmixer_takes_any_leading_dimensions_and_state_shapes(
    state_shape, leading, hypernet_layers
):
    mixer = QMixer(3, state_shape, hypernet_layers=hypernet_layers)
    shape = (state_shape,) if isinstance(state_shape, int) else tuple(state_shape)
    assert mixer(torch.randn(*leading, 3, 1), torch.randn(*leading, *shape)).shape == (*leading, 1)


def test_qmixer_takes_states_that_are_not_contiguous():
    mixer = QMixer(2, (3, 4))
    chosen, state = torch.randn(5, 2, 1), torch.randn(4, 3, 5).permute(2, 1, 0)
    assert not state.is_contiguous()
    torch.testing.assert_close(mixer(chosen, state), mixer(chosen, state.contiguous()))


@pytest.mark.parametrize("n_agents", [1, 4])
def test_qmixer_equals_torchrls_on_its_weights(n_agents):
    arguments = {"state_shape": (2, 5), "mixing_embed_dim": 8, "n_agents": n_agents}
    ours = QMixer(**arguments, device="cpu")
    theirs = TorchRLQMixer(**arguments, device="cpu")
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    chosen, state = torch.randn(6, 7, n_agents, 1, requires_grad=True), torch.randn(6, 7, 2, 5)
    values = [mixer(chosen, state) for mixer in (ours, theirs)]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
    gradients = [
        torch.autograd.grad(value.square().sum(), [chosen, *mixer.parameters()])
        for value, mixer in zip(values, (ours, theirs), strict=True)
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_parameters_have_the_authors_names():
    biases = ["hyper_b_1.weight", "hyper_b_1.bias"]
    value = ["V.0.weight", "V.0.bias", "V.2.weight", "V.2.bias"]
    one = [f"hyper_w_{w}.{p}" for w in ("1", "final") for p in ("weight", "bias")]
    two = [
        f"hyper_w_{w}.{i}.{p}" for w in ("1", "final") for i in (0, 2) for p in ("weight", "bias")
    ]
    assert set(QMixer(2, 3, hypernet_layers=1).state_dict()) == {*one, *biases, *value}
    assert set(QMixer(2, 3, hypernet_layers=2).state_dict()) == {*two, *biases, *value}


def least_derivative(mixer):
    """Return the least dQ_tot / dQ_a over 1,000 draws of magnitudes up to 1e3."""
    scale = 10 ** (6 * torch.rand(1000, 1, 1) - 3)
    chosen = (torch.randn(1000, 3, 1) * scale).requires_grad_()
    state = torch.randn(1000, 4) * scale[:, 0]
    (gradient,) = torch.autograd.grad(mixer(chosen, state).sum(), chosen)
    return gradient.min()


# The arguments that each mixer is tested with: none if it is not listed, and no test for None.
MONOTONE = {
    "qmix": [{"hypernet_layers": 1}, {"hypernet_layers": 2}],
    "qfix": None,
    "qplex": None,
}


@pytest.mark.parametrize("name", [name for name in MIXERS if MONOTONE.get(name, ()) is not None])
def test_mixers_are_monotone(name):
    torch.manual_seed(0)
    for arguments in MONOTONE.get(name, [{}]):
        mixer = MIXERS[name](n_agents=3, state_shape=4, **arguments)
        assert least_derivative(mixer) >= 0, arguments


@pytest.mark.parametrize("layers", [1, 2])
def test_a_mixer_that_is_not_monotone_is_seen(layers):
    torch.manual_seed(0)
    assert least_derivative(UnconstrainedMixer(3, 4, hypernet_layers=layers)) < 0
    assert least_derivative(VDNMixer()) == 1


def test_vdn_is_the_sum_of_utilities_and_equals_torchrls():
    chosen = torch.randn(4, 5, 3, 1)
    mixed = VDNMixer()(chosen, torch.randn(4, 5, 2))
    torch.testing.assert_close(mixed, TorchRLVDNMixer(3, "cpu")(chosen))
    assert mixed[0, 0].item() == pytest.approx(chosen[0, 0].sum().item())


def test_vdn_equals_a_qmixer_with_unit_weights():
    # ELU is the identity above zero: a large bias before it, subtracted by V after it.
    mixer = QMixer(3, 2, mixing_embed_dim=1)
    state_dict = {name: torch.zeros_like(p) for name, p in mixer.state_dict().items()}
    state_dict["hyper_w_1.bias"] += 1
    state_dict["hyper_w_final.bias"] += 1
    state_dict["hyper_b_1.bias"] += 100
    state_dict["V.2.bias"] -= 100
    mixer.load_state_dict(state_dict)
    chosen, state = torch.randn(50, 3, 1), torch.randn(50, 2)
    torch.testing.assert_close(mixer(chosen, state), VDNMixer()(chosen), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_agents": 0},
        {"state_shape": (3, 0)},
        {"mixing_embed_dim": 0},
        {"hypernet_layers": 3},
        {"hypernet_layers": 2, "hypernet_embed_dim": 0},
    ],
)
def test_qmixer_refuses_bad_sizes(arguments):
    with pytest.raises(ValueError, match=r"QMixer: expected .* got"):
        QMixer(**{"n_agents": 2, "state_shape": 3, **arguments})


def test_qmixer_refuses_shapes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"chosen_action_value of shape \[7, 2, 1\], got \[7, 4, 1\]"
    ):
        QMixer(2, 3)(torch.randn(7, 4, 1), torch.randn(7, 3))


@pytest.mark.parametrize(
    ("n_agents", "shape", "expected"),
    [
        (None, (32, 3), r"\[\*B, N, 1\], got \[32, 3\]"),
        (None, (3,), r"\[\*B, N, 1\], got \[3\]"),
        (3, (32, 4, 1), r"\[\*B, 3, 1\], got \[32, 4, 1\]"),
        (3, (32, 3, 2), r"\[\*B, 3, 1\], got \[32, 3, 2\]"),
    ],
)
def test_vdn_refuses_shapes_that_do_not_fit(n_agents, shape, expected):
    with pytest.raises(ValueError, match=f"chosen_action_value of shape {expected}"):
        VDNMixer(n_agents)(torch.randn(shape))


def test_dtype_reaches_every_parameter():
    assert {p.dtype for p in QMixer(2, 3, dtype=torch.float64).parameters()} == {torch.float64}
