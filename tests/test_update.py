"""The update step and the periods of target networks."""

import pytest
import torch
from test_loss import make_loss, random_batch

from qmix_trl import Update, make_hard_updater, make_soft_updater


def weight(params):
    """Return one weight of a set of agent parameters, detached and copied."""
    return params["fc1", "weight"].detach().clone()


@pytest.mark.parametrize("period", [1, 2, 5])
def test_hard_updater_copies_at_every_nth_step(period):
    loss = make_loss()
    updater = make_hard_updater(loss, period_updates=period)
    copied = []
    for step in range(1, 4 * period + 1):
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(1.0)
        updater.step()
        agents = torch.equal(weight(loss.target_agent_params), weight(loss.agent_params))
        mixers = loss.target_mixer_params["module", "V", "2", "bias"].equal(
            loss.mixer_params["module", "V", "2", "bias"].data
        )
        assert agents == mixers
        if agents:
            copied.append(step)
    assert copied == [period * n for n in (1, 2, 3, 4)]


def test_soft_updater_moves_by_tau():
    loss = make_loss()
    updater = make_soft_updater(loss, tau=0.25)
    before = weight(loss.target_agent_params)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(1.0)
    updater.step()
    expected = 0.75 * before + 0.25 * weight(loss.agent_params)
    torch.testing.assert_close(weight(loss.target_agent_params), expected)


@pytest.mark.parametrize("max_grad_norm", [0.01, 1e6])
def test_update_clips_agent_and_mixer_together_and_steps(max_grad_norm):
    loss, batch = make_loss(), random_batch(3, 4)
    updater = make_hard_updater(loss, period_updates=100)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    before = [p.detach().clone() for p in loss.parameters()]
    value = loss(batch)["loss"]
    gradients = torch.autograd.grad(value, list(loss.parameters()))
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    outputs = Update(loss, optimizer, updater, max_grad_norm=max_grad_norm)(batch)
    torch.testing.assert_close(outputs["grad_norm"], norm)
    torch.testing.assert_close(outputs["loss"], value.detach())
    assert not outputs["loss"].requires_grad
    factor = min(1.0, max_grad_norm / norm.item())
    for old, new, gradient in zip(before, loss.parameters(), gradients, strict=True):
        torch.testing.assert_close(new.detach(), old - factor * gradient, rtol=1e-4, atol=1e-7)


def test_updates_fit_a_batch():
    loss, batch = make_loss(), random_batch(8, 5)
    updater = make_soft_updater(loss, tau=0.01)
    update = Update(loss, torch.optim.Adam(loss.parameters(), lr=1e-2), updater, max_grad_norm=10)
    losses = [update(batch)["loss"].item() for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (make_hard_updater, {"period_updates": 0}),
        (make_soft_updater, {"tau": 0.0}),
        (make_soft_updater, {"tau": 1.5}),
    ],
)
def test_periods_out_of_range_are_refused(make, arguments):
    with pytest.raises(ValueError, match="expected"):
        make(make_loss(), **arguments)
