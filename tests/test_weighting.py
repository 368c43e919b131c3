"""Weighted QMIX: its weights, its targets, and QMIX where all weights are 1."""

import pytest
import torch
from games_tools import every_joint_action
from loss_tools import A, N, O, S, random_batch, some_ends

from qmix_trl import CentralMixer, FeedforwardAgent, QMixer, QMixLoss, RecurrentAgent, Weighting
from qmix_trl.envs.game_tables import matrix
from qmix_trl.functional import greedy_action, lambda_returns, value_of
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    next_key,
)
from qmix_trl.weighting import central_weights, optimistic_weights

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
KINDS = ("central", "optimistic")


def make_agent(kind="feedforward"):
    """Return an agent in float64."""
    if kind == "recurrent":
        return RecurrentAgent(N, O, A, hidden_dim=6, dtype=torch.float64)
    return FeedforwardAgent(N, O, A, use_last_action=True, dtype=torch.float64)


def make_loss(kind, alpha=0.1, *, agent="feedforward", seed=0, **arguments):
    """Return a loss in float64, unweighted for None, whose targets differ from its networks."""
    torch.manual_seed(seed)
    acting, mixer = make_agent(agent), QMixer(N, S, 4, dtype=torch.float64)
    weighting = None
    if kind is not None:
        central = CentralMixer(N, S, 8, dtype=torch.float64)
        weighting = Weighting(kind=kind, alpha=alpha, agent=make_agent(agent), mixer=central)
    loss = QMixLoss(acting, mixer, **{"gamma": 0.9, "weighting": weighting, **arguments})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loss.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return loss


def test_weights_worked_by_hand():
    error = torch.tensor([-2.0, 0.0, 3.0])  # Q_tot below, at and above its target
    assert optimistic_weights(error, 0.25).tolist() == [1, 0.25, 0.25]
    is_greedy = torch.tensor([True, False, False, False])
    target, greedy_value = torch.tensor([0.0, 4.0, 5.0, 6.0]), torch.full((4,), 5.0)
    assert central_weights(is_greedy, target, greedy_value, 0.25).tolist() == [1, 0.25, 0.25, 1]


def test_the_central_networks_are_others_than_those_of_q_tot():
    agent, mixer = FeedforwardAgent(2, 2, 3), CentralMixer(2, 2)
    for own_agent, own_mixer in ((agent, QMixer(2, 2, 8)), (FeedforwardAgent(2, 2, 3), mixer)):
        weighting = Weighting(kind="central", alpha=0.5, agent=own_agent, mixer=own_mixer)
        with pytest.raises(ValueError, match="a central agent and mixer of their own"):
            QMixLoss(agent, mixer, gamma=0.9, weighting=weighting)


@pytest.mark.parametrize("kind", KINDS)
def test_with_alpha_1_one_step_games_give_the_gradients_of_qmix_bit_for_bit(kind):
    """Targets of a step that terminates are rewards, so that the central value has no part."""
    game = matrix(payoff=[[8, -12, -12], [-12, 0, 0], [-12, 0, 0]])
    batch = every_joint_action(game)

    def gradients(weighting):
        torch.manual_seed(0)
        agent, mixer = FeedforwardAgent(2, 2, 3), QMixer(2, 2, 8)
        made = None
        if weighting:
            central = FeedforwardAgent(2, 2, 3), CentralMixer(2, 2)
            made = Weighting(kind=kind, alpha=1.0, agent=central[0], mixer=central[1])
        loss = QMixLoss(agent, mixer, gamma=0.99, weighting=made)
        loss(batch)["loss"].backward()
        return [p.grad for net in (loss.agent_params, loss.mixer_params) for p in net.parameters()]

    with_weights, without = gradients(True), gradients(False)
    assert len(without) > 4
    assert all(map(torch.equal, with_weights, without))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("td_lambda", [0.0, 0.7])
def test_the_loss_equals_a_form_written_out(kind, td_lambda):
    """One row without resets or padding, by feed-forward agents that are called step by step."""
    loss = make_loss(kind, td_lambda=td_lambda, reward_scale=2.0)
    batch = random_batch(6, 7)
    batch[next_key(TERMINATED)][:3, -1] = True
    action, mask, next_mask = batch[ACTION], batch[ACTION_MASK], batch[next_key(ACTION_MASK)]

    def values(name, next_step):
        agent, params = getattr(loss, name.removeprefix("target_")), getattr(loss, f"{name}_params")
        observation = batch[next_key(OBSERVATION) if next_step else OBSERVATION]
        taken = torch.nn.functional.one_hot(action, A).double()
        last = taken if next_step else torch.cat([0 * taken[:, :1], taken[:, :-1]], 1)
        with params.to_module(agent):
            return agent.step(observation, last, None)[0]

    def mixed(name, value, joint, state):
        mixer, params = getattr(loss, name.removeprefix("target_")), getattr(loss, f"{name}_params")
        with params.to_module(mixer):
            return mixer.module(value_of(value, joint), state)

    with torch.no_grad():
        q, central = values("agent", False), values("central_agent", False)
        best = greedy_action(values("agent", True), next_mask)
        after = mixed(
            "target_central_mixer",
            values("target_central_agent", True),
            best,
            batch[next_key(STATE)],
        )
        last = torch.zeros(6, 7, 1, dtype=torch.bool)
        last[:, -1] = True
        target = lambda_returns(
            2.0 * batch[next_key(REWARD)], after, batch[next_key(TERMINATED)], last,
            gamma=0.9, td_lambda=td_lambda,
        )  # fmt: skip
        total = mixed("mixer", q, action, batch[STATE])
        of_central = mixed("central_mixer", central, action, batch[STATE])
        greedy = greedy_action(q, mask)
        of_greedy = mixed("central_mixer", central, greedy, batch[STATE])
        is_greedy = (greedy == action).all(-1, keepdim=True)
        one = total < target if kind == "optimistic" else is_greedy | (target > of_greedy)
        weight = torch.where(one, torch.ones_like(total), 0.1)
        expected = (weight * (total - target) ** 2 + (of_central - target) ** 2).mean()
    assert 0.1 < one.double().mean() < 0.9
    outputs = loss(batch)
    torch.testing.assert_close(outputs["loss"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outputs["target_value"], target.mean())
    torch.testing.assert_close(outputs["total_value"], total.mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("agent", ["recurrent", "feedforward"])
def test_gradients_reach_all_networks_and_no_target(kind, agent):
    loss = make_loss(kind, agent=agent, td_lambda=0.5)
    loss(random_batch(4, 9, ends=some_ends(4, 9)))["loss"].backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in loss.parameters())
    names = {name.split(".")[0] for name in loss.state_dict()}
    both = {f"{t}{part}_params" for part in ("agent", "mixer") for t in ("", "target_")}
    central = {f"{t}central_{part}_params" for part in ("agent", "mixer") for t in ("", "target_")}
    assert names == both | central


@pytest.mark.parametrize("kind", KINDS)
def test_the_central_value_does_not_teach_the_agents(kind):
    """No gradient of the central error reaches agent or mixer: it is that of the weighted one."""
    loss = make_loss(kind, td_lambda=0.5)
    batch = random_batch(4, 9)
    loss(batch)["loss"].backward()
    before = [p.grad.clone() for p in loss.agent_params.parameters()]
    loss.zero_grad()
    with torch.no_grad():
        for parameter in loss.central_mixer_params.parameters():
            parameter.mul_(1 + 1e-9)  # too little to change a weight
    loss(batch)["loss"].backward()
    assert all(map(torch.equal, before, (p.grad for p in loss.agent_params.parameters())))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_neither_loss_nor_gradient(kind):
    loss = make_loss(kind, agent="recurrent", td_lambda=0.5)
    batch = random_batch(3, 5)
    padded = random_batch(3, 9)
    for key in batch.keys(True, True):
        padded[key][:, :5] = batch[key]
        if padded[key].is_floating_point():
            padded[key][:, 5:] = torch.nan
    padded["collector", "mask"] = torch.arange(9).expand(3, 9) < 5
    torch.testing.assert_close(loss(padded)["loss"], loss(batch)["loss"], rtol=1e-12, atol=1e-12)


def test_a_weighting_without_a_mixer_or_double_q_is_refused():
    central = {"agent": make_agent(), "mixer": CentralMixer(N, S)}
    weighting = Weighting(kind="central", alpha=0.1, **central)
    for arguments in ((None, True), (QMixer(N, S), False)):
        mixer, double_q = arguments
        with pytest.raises(ValueError, match="expected a mixer and double_q with a weighting"):
            QMixLoss(make_agent(), mixer, gamma=0.9, double_q=double_q, weighting=weighting)
    with pytest.raises(ValueError, match=r"expected alpha in \(0, 1\], got 0"):
        Weighting(kind="central", alpha=0, **central)
    with pytest.raises(ValueError, match="expected kind of central, optimistic, got 'cw'"):
        Weighting(kind="cw", alpha=0.1, **central)


def test_the_central_mixer_takes_leading_dimensions_and_refuses_other_shapes():
    mixer = CentralMixer(3, (2, 3))
    for leading in ((), (5,), (2, 3)):
        assert mixer(torch.randn(*leading, 3, 1), torch.randn(*leading, 2, 3)).shape == (
            *leading,
            1,
        )
    with pytest.raises(ValueError, match=r"of shape \[7, 3, 1\], got \[7, 4, 1\]"):
        mixer(torch.randn(7, 4, 1), torch.randn(7, 2, 3))
    with pytest.raises(ValueError, match=r"got .*n_agents=3, embed_dim=0"):
        CentralMixer(3, 2, 0)
