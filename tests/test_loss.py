"""The loss: golden numbers, padding, resets and truncations inside rows, and every switch."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import reference
import torch
from loss_tools import A, N, O, S, cut, make_loss, random_batch, some_ends
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.nn.utils import get_total_norm
from torchrl.modules import QMixer as TorchRLQMixer
from torchrl.modules import VDNMixer as TorchRLVDNMixer

from qmix_trl import FeedforwardAgent, QMixer, QMixLoss, RecurrentAgent, VDNMixer
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    CHOSEN_ACTION_VALUE,
    CUT_STEPS,
    DONE,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    MASK,
    OBSERVATION,
    PRIORITY_WEIGHT,
    REWARD,
    STATE,
    TERMINATED,
    TOTAL_VALUE,
    next_key,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def golden_batch(padding=0.0):
    """Return the reference's data as a batch [B, T] in TorchRL's layout."""
    observation, state, available, action, reward, terminated = map(
        torch.as_tensor, reference.data(padding)
    )
    batch = TensorDict({}, [reference.N_ROWS, reference.N_STEPS])
    for key, sequence in ((OBSERVATION, observation), (STATE, state), (ACTION_MASK, available)):
        batch[key], batch[next_key(key)] = sequence[:, :-1], sequence[:, 1:]
    batch[ACTION] = action[:, :-1]
    batch[next_key(REWARD)] = reward.unsqueeze(-1)
    batch[next_key(TERMINATED)] = terminated.unsqueeze(-1)
    lengths = torch.as_tensor(reference.LENGTHS)
    batch[MASK] = torch.arange(reference.N_STEPS) < lengths.unsqueeze(-1)
    return batch


def golden_loss(mixer, layers, double_q):
    """Return agent, mixer and loss with the reference's online and target weights."""

    def load(module, spec, offset):
        arrays = reference.weights(spec, offset)
        module.load_state_dict({name: torch.as_tensor(array) for name, array in arrays.items()})

    agent = RecurrentAgent(
        reference.N_AGENTS,
        reference.OBSERVATION_DIM,
        reference.N_ACTIONS,
        hidden_dim=reference.HIDDEN_DIM,
        dtype=torch.float64,
    )
    mixing = VDNMixer()
    if mixer == "qmix":
        mixing = QMixer(
            reference.N_AGENTS,
            reference.STATE_DIM,
            reference.EMBED_DIM,
            layers,
            reference.HYPERNET_DIM,
            dtype=torch.float64,
        )
    # Targets are copies made by the loss: load theirs first, the online ones after.
    for offsets in (reference.TARGET, reference.ONLINE):
        load(agent, reference.AGENT, offsets["agent"])
        if mixer == "qmix":
            load(mixing, reference.MIXER[layers], offsets["mixer"])
        if offsets is reference.TARGET:
            loss = QMixLoss(agent, mixing, gamma=reference.GAMMA, double_q=double_q)
    return agent, mixing, loss


# Losses of an independent NumPy implementation (reference.py), gradient norms of the authors' own
# learner on the same data.
GOLDEN = [
    ("qmix", 1, True, 18.2010520491, 53.2545656),
    ("qmix", 1, False, 13.1747094949, 44.3555718),
    ("qmix", 2, True, 10.8184321051, 45.6670849),
    ("qmix", 2, False, 5.4413481806, 30.1807788),
    ("vdn", 2, True, 0.8421841575, 0.9474114),
    ("vdn", 2, False, 0.9687829724, 1.0719233),
]


@pytest.mark.parametrize(("mixer", "layers", "double_q", "expected", "norm"), GOLDEN)
@pytest.mark.parametrize("padding", [0.0, 7.0, float("nan")])
def test_golden_loss_with_any_padding(mixer, layers, double_q, expected, norm, padding):
    agent, mixing, loss = golden_loss(mixer, layers, double_q)
    value = loss(golden_batch(padding))["loss"]
    assert value.item() == pytest.approx(expected, abs=1e-9)
    assert value.item() == pytest.approx(reference.golden_loss(mixer, layers, double_q), abs=1e-12)
    value.backward()
    gradients = [p.grad for p in (*agent.parameters(), *mixing.parameters())]
    assert get_total_norm(gradients).item() == pytest.approx(norm, abs=2e-7)


def test_padding_changes_neither_outputs_nor_gradients():
    agent, _, loss = golden_loss("qmix", 2, True)
    outputs, gradients = [], []
    for garbage in (0.0, 1e30):
        batch = golden_batch(garbage)
        padding = ~batch[MASK]
        batch[ACTION][padding] = -5 if garbage else 0
        batch[IS_INIT] = torch.zeros(*batch.shape, 1, dtype=torch.bool)
        batch[IS_INIT][:, 0] = True
        if garbage:
            batch[IS_INIT][padding] = True
            batch[next_key(TERMINATED)][padding] = True
        output = loss(batch)
        agent.zero_grad()
        output["loss"].backward()
        outputs.append(output.detach())
        gradients.append([p.grad.clone() for p in agent.parameters()])
    assert (outputs[0] == outputs[1]).all()
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
@pytest.mark.parametrize("mixer", ["qmix", "vdn", "none"])
@pytest.mark.parametrize("td_lambda", [0.0, 0.7])
@pytest.mark.parametrize("double_q", [True, False])
def test_a_row_of_several_episodes_has_the_sum_of_their_losses(kind, mixer, td_lambda, double_q):
    """Also with resets and truncations inside the row."""
    ends = some_ends(4, 12)
    batch = random_batch(4, 12, ends=ends)
    loss = make_loss(kind, mixer, td_lambda=td_lambda, double_q=double_q, reduction="sum")
    together = loss(batch)["loss"]
    apart = torch.zeros((), dtype=torch.float64)
    truncated_inside = 0
    for row in range(4):
        bounds = [0, *(ends[row, :-1].nonzero()[:, 0] + 1).tolist(), 12]
        for start, end in pairwise(bounds):
            episode = cut(batch, row, start, end)
            apart = apart + loss(episode)["loss"]
            truncated_inside += end < 12 and not episode[next_key(TERMINATED)][0, -1].item()
    assert truncated_inside > 3
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(value, list(loss.parameters()), retain_graph=True)
        for value in (together, apart)
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


def with_cut_steps(batch, n_steps, is_cut):
    """Return a batch [B, T] with ``n_steps`` steps of each row that hold its cuts first."""
    steps = is_cut.int().topk(n_steps, 1).indices.unsqueeze(1)
    return batch.clone().set(CUT_STEPS, steps - torch.arange(batch.shape[1]).unsqueeze(1))


def test_cut_steps_give_the_exact_loss_if_they_hold_all_cuts():
    ends = torch.zeros(4, 12, dtype=torch.bool)
    ends[0, 3] = ends[1, 5] = ends[3, 0] = ends[3, 10] = True
    batch = random_batch(4, 12, ends=ends)
    batch[next_key(TERMINATED)][:] = False
    exact, two, none = (
        make_loss()(shown)["loss"].item()
        for shown in (batch, with_cut_steps(batch, 2, ends), with_cut_steps(batch, 0, ends))
    )
    assert two == pytest.approx(exact, abs=1e-12)
    assert abs(none - exact) > 1e-5


@pytest.mark.parametrize("steps", [slice(2, None), slice(6, None), slice(0, 5), slice(5, 8)])
def test_a_range_of_steps_has_the_same_loss_with_and_without_cut_steps(steps):
    """Cuts before the range, inside it and behind it."""
    ends = torch.zeros(4, 12, dtype=torch.bool)
    ends[0, 3] = ends[1, 5] = ends[3, 0] = ends[3, 10] = True
    batch = random_batch(4, 12, ends=ends)
    batch[next_key(TERMINATED)][:] = False
    carried = with_cut_steps(batch, 2, ends)
    loss = make_loss(td_lambda=0.5)
    exact = loss(batch[:, steps])["loss"]
    torch.testing.assert_close(loss(carried[:, steps])["loss"], exact, rtol=0, atol=1e-12)


def test_padding_before_a_reset_is_no_cut():
    """As in the first row of a buffer with burn-in: padding, then the first episode."""
    ends = torch.zeros(2, 8, dtype=torch.bool)
    ends[:, 5] = True
    batch = random_batch(2, 8, ends=ends)
    batch[next_key(TERMINATED)][:] = False
    batch[IS_INIT][:, 2] = True
    batch[MASK] = torch.arange(8).expand(2, 8) >= 2
    exact, one = (make_loss()(b)["loss"] for b in (batch, with_cut_steps(batch, 1, ends)))
    torch.testing.assert_close(one, exact, rtol=0, atol=1e-12)


def test_the_last_step_before_padding_bootstraps_from_its_own_next_observation():
    """As TorchRL pads trajectories: zeros at the root behind the end, the true end under "next"."""
    batch = random_batch(2, 6)
    padded = batch.clone()
    padded[MASK] = torch.ones(2, 6, dtype=torch.bool)
    padded[MASK][:, 4:] = False
    for key in (OBSERVATION, STATE, ACTION_MASK):
        padded[key][:, 4:] = 0
        padded[next_key(key)][:, 4:] = 0
    loss = make_loss(td_lambda=0.5)
    expected = loss(batch[:, :4])["loss"]
    torch.testing.assert_close(loss(padded)["loss"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", ["qmix", "none"])
def test_one_step_loss_equals_a_slow_loop(mixer):
    batch = random_batch(3, 5)
    loss = make_loss("feedforward", mixer, reward_scale=0.5)
    expected = []
    for row in range(3):
        for t in range(5):
            step = batch[row, t]
            last = batch[ACTION][row, t - 1] if t else None

            def q(params, observation, last_action):
                shown = torch.zeros(N, A, dtype=torch.float64)
                if last_action is not None:
                    shown[torch.arange(N), last_action] = 1
                with params.to_module(loss.agent, preserve_module_state=False):
                    return loss.agent.step(observation, shown, None)[0]

            def total(params, chosen, state):
                if mixer == "none":
                    return chosen[:, 0]
                with params.to_module(loss.mixer, preserve_module_state=False):
                    return loss.mixer.module(chosen, state)

            agents = torch.arange(N)
            chosen = q(loss.agent_params, step[OBSERVATION], last)[agents, step[ACTION]]
            following = (step[next_key(OBSERVATION)], step[ACTION])
            online = q(loss.agent_params, *following)
            online[~step[next_key(ACTION_MASK)]] = -torch.inf
            best = q(loss.target_agent_params, *following)[agents, online.argmax(-1)]
            v = total(loss.target_mixer_params, best.unsqueeze(-1), step[next_key(STATE)])
            reward = step[next_key(AGENT_REWARD)][:, 0]
            reward = reward if mixer == "none" else step[next_key(REWARD)]
            target = 0.5 * reward + 0.9 * v
            value = total(loss.mixer_params, chosen.unsqueeze(-1), step[STATE])
            expected.append((value - target) ** 2)
    expected = torch.stack(expected).mean()
    torch.testing.assert_close(loss(batch)["loss"], expected, rtol=1e-12, atol=1e-12)


def test_terminated_instead_of_truncated_changes_the_target_by_the_discounted_value():
    batch = random_batch(1, 1)
    loss = make_loss(reduction="none")
    truncated = loss(batch)
    batch[next_key(TERMINATED)][:] = True
    terminated = loss(batch)
    difference = truncated["target_value"] - terminated["target_value"]
    # gamma Q_tot^-(s_T); the target of a terminated step is its reward alone.
    assert terminated["target_value"].item() == pytest.approx(batch[next_key(REWARD)].item())
    with loss.target_agent_params.to_module(loss.agent, preserve_module_state=False):
        last = torch.nn.functional.one_hot(batch[ACTION], A).double()
        observations = torch.cat([batch[OBSERVATION], batch[next_key(OBSERVATION)]], 1)
        shown = torch.cat([torch.zeros_like(last), last], 1)
        resets = torch.tensor([True, False]).reshape(1, 2, 1)
        target, _ = loss.agent.unroll(observations, shown, resets, None)
    with loss.agent_params.to_module(loss.agent, preserve_module_state=False):
        online, _ = loss.agent.unroll(observations, shown, resets, None)
    online = online[:, 1].masked_fill(~batch[next_key(ACTION_MASK)][:, 0], -torch.inf)
    chosen = target[:, 1].gather(-1, online.argmax(-1, keepdim=True))
    with loss.target_mixer_params.to_module(loss.mixer, preserve_module_state=False):
        value = loss.mixer.module(chosen, batch[next_key(STATE)][:, 0])
    assert difference.item() == pytest.approx(0.9 * value.item(), abs=1e-12)


def test_no_gradient_reaches_the_targets():
    loss = make_loss()
    loss(random_batch(2, 4))["loss"].backward()
    assert not any(p.requires_grad for p in loss.target_agent_params.values(True, True))
    assert not any(p.requires_grad for p in loss.target_mixer_params.values(True, True))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_the_batch_is_not_written_to():
    batch = random_batch(2, 4, ends=some_ends(2, 4))
    before = batch.clone()
    make_loss()(batch.lock_())
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_a_row_inside_an_episode_starts_from_its_stored_memory():
    batch = random_batch(3, 8)
    loss = make_loss(reduction="none")
    with loss.agent_params.to_module(loss.agent, preserve_module_state=False):
        shown = torch.nn.functional.one_hot(batch[ACTION][:, :-1], A).double()
        shown = torch.cat([torch.zeros_like(shown[:, :1]), shown], 1)
        _, hidden = loss.agent.unroll(batch[OBSERVATION], shown, batch[IS_INIT], None)
    tail = batch[:, 5:].clone()
    tail[HIDDEN] = hidden[:, 4].unsqueeze(1).expand(-1, 3, -1, -1)
    tail[LAST_ACTION] = shown[:, 5:]
    # Targets start from the stored state, too: the same networks make both the same.
    loss.target_agent_params.update_(loss.agent_params.data)
    whole, part = loss(batch)["loss"][:, 5:], loss(tail)["loss"]
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    tail[IS_INIT][:, 0] = True  # as TorchRL's SliceSampler marks it
    assert torch.equal(loss(tail)["loss"], part)
    without = loss(tail.exclude(HIDDEN, LAST_ACTION))["loss"]
    assert not torch.allclose(without, whole)


def test_without_is_init_an_episode_begins_after_each_done():
    batch = random_batch(4, 9, ends=some_ends(4, 9))
    loss = make_loss()
    expected = loss(batch)["loss"]
    torch.testing.assert_close(loss(batch.exclude(IS_INIT))["loss"], expected, rtol=0, atol=0)


def test_burn_in_leaves_steps_out_and_stops_their_gradient():
    batch = random_batch(3, 8)
    burnt, whole = make_loss(burn_in=3, reduction="none"), make_loss(reduction="none")
    out, all_steps = burnt(batch)["loss"], whole(batch)["loss"]
    torch.testing.assert_close(out[:, 3:], all_steps[:, 3:], rtol=0, atol=1e-12)
    assert (out[:, :3] == 0).all()
    assert (all_steps[:, :3] != 0).any()
    # The gradient that goes through the first three steps is missing.
    mine = torch.autograd.grad(out.sum(), burnt.agent_params["rnn", "weight_hh"])[0]
    other = torch.autograd.grad(all_steps[:, 3:].sum(), whole.agent_params["rnn", "weight_hh"])[0]
    assert not torch.allclose(mine, other)


def test_reductions_and_importance_weights():
    batch = random_batch(3, 4)
    batch[MASK] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    none, total, mean = (
        make_loss(reduction=reduction)(batch)["loss"] for reduction in ("none", "sum", "mean")
    )
    assert none.shape == (3, 4, 1)
    assert (none[~batch[MASK]] == 0).all()
    torch.testing.assert_close(none.sum(), total)
    torch.testing.assert_close(total / 7, mean)  # 7 valid steps
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    expected = (none * weight[:, None, None]).sum() / 7
    for shape in ((3, 1), (3, 4), (3, 4, 1)):
        row = weight.reshape(3, *[1] * (len(shape) - 1)).expand(shape)
        batch[PRIORITY_WEIGHT] = row if len(shape) > 2 or shape[1] == 4 else row.expand(3, 4)
        torch.testing.assert_close(make_loss()(batch)["loss"], expected)


def test_reported_values():
    batch = random_batch(3, 4)
    batch[MASK] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    output = make_loss(reduction="none")(batch)
    error = output["loss"].sqrt()[..., 0]  # [B, T]
    torch.testing.assert_close(output["td_error"], error.sum() / 6)
    # R2D2: .9 of the largest and .1 of the mean absolute error of the row.
    expected = [0.9 * e.max() + 0.1 * e.mean() for e in (error[0], error[1, :2])]
    expected = torch.stack([*expected, torch.zeros_like(expected[0])])
    torch.testing.assert_close(output["priority"], expected)
    assert not output["priority"].requires_grad
    difference = output["total_value"] - output["target_value"]
    assert abs(difference) <= output["td_error"] + 1e-12


def test_a_batch_without_valid_steps_has_zero_loss():
    batch = random_batch(2, 3)
    batch[MASK] = torch.zeros(2, 3, dtype=torch.bool)
    loss = make_loss()
    value = loss(batch)["loss"]
    value.backward()
    assert value == 0
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_a_fully_masked_agent_gives_finite_values():
    batch = random_batch(2, 3)
    batch[next_key(ACTION_MASK)][:, 1, 0] = False
    assert loss_is_moderate(make_loss()(batch)["loss"])
    assert loss_is_moderate(make_loss(double_q=False)(batch)["loss"])


def loss_is_moderate(value):
    """Return whether no -inf or dtype's minimum got into a loss."""
    return bool(value.isfinite()) and value < 1e3


def test_one_row_one_step_one_agent():
    agent = RecurrentAgent(1, O, A, dtype=torch.float64)
    loss = QMixLoss(agent, QMixer(1, S, dtype=torch.float64), gamma=0.9)
    batch = random_batch(1, 1)
    for key in (OBSERVATION, ACTION_MASK):
        batch[key], batch[next_key(key)] = batch[key][:, :, :1], batch[next_key(key)][:, :, :1]
    batch[ACTION] = batch[ACTION][:, :, :1]
    assert loss(batch.exclude(("next", "agents", "reward")))["loss"].isfinite()


@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
def test_torchrls_mixers_give_the_same_loss(mixer):
    ours = QMixer(N, S, 8) if mixer == "qmix" else VDNMixer()
    theirs = TorchRLVDNMixer(N, "cpu")
    if mixer == "qmix":
        theirs = TorchRLQMixer((S,), 8, N, "cpu")
        theirs.load_state_dict(ours.state_dict())
    in_keys = [CHOSEN_ACTION_VALUE, STATE] if mixer == "qmix" else [CHOSEN_ACTION_VALUE]
    agent = RecurrentAgent(N, O, A)
    batch = random_batch(3, 5).apply(lambda x: x.float() if x.is_floating_point() else x)
    values = [
        QMixLoss(agent, module, gamma=0.9)(batch)["loss"]
        for module in (ours, TensorDictModule(theirs, in_keys=in_keys, out_keys=[TOTAL_VALUE]))
    ]
    torch.testing.assert_close(*values)


def test_other_keys_can_be_set():
    batch = random_batch(3, 5)
    loss = make_loss()
    expected = loss(batch)["loss"]
    renamed = batch.clone()
    for old, new in ((REWARD, "team_reward"), (STATE, "world")):
        renamed.rename_key_(next_key(old), next_key(new))
    renamed.rename_key_(STATE, "world")
    other = make_loss()
    mixing = TensorDictModule(
        other.mixer.module, in_keys=[CHOSEN_ACTION_VALUE, "world"], out_keys=[TOTAL_VALUE]
    )
    other.mixer = mixing
    other.set_keys(reward="team_reward", state="world")
    torch.testing.assert_close(other(renamed)["loss"], expected)


def test_state_dict_holds_weights_and_targets():
    first, second = make_loss(seed=0), make_loss(seed=1)
    batch = random_batch(2, 3)
    assert first(batch)["loss"] != second(batch)["loss"]
    second.load_state_dict(first.state_dict())
    assert first(batch)["loss"] == second(batch)["loss"]


def test_weights_trained_in_the_loss_are_those_of_the_modules():
    agent, mixer = RecurrentAgent(N, O, A), QMixer(N, S)
    loss = QMixLoss(agent, mixer, gamma=0.9)
    ours = {id(p) for p in (*agent.parameters(), *mixer.parameters())}
    assert ours == {id(p) for p in loss.parameters()}


@pytest.mark.slow
def test_eager_equals_compiled():
    loss = make_loss("feedforward", td_lambda=0.5, bounded_targets=True)
    batch = random_batch(2, 3)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch)["loss"], loss(batch)["loss"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.5}, r"gamma in \[0, 1\], got 1.5"),
        ({"td_lambda": -0.1}, r"td_lambda in \[0, 1\], got -0.1"),
        ({"reduction": "median"}, "mean, sum, none, got 'median'"),
        ({"burn_in": -1}, "burn_in of at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_loss(**arguments)


def test_rewards_of_another_number_than_values_are_refused():
    batch = random_batch(2, 3)
    mixed, alone = make_loss(), make_loss(mixer="none")
    mixed.set_keys(reward=AGENT_REWARD)
    alone.set_keys(agent_reward=REWARD)
    with pytest.raises(ValueError, match="with 1 rewards a step, got 2: a mixer learns"):
        mixed(batch)
    with pytest.raises(ValueError, match="with 2 rewards a step, got 1"):
        alone(batch)


def test_burn_in_must_leave_a_step():
    for burn_in in (3, 4, 50):
        with pytest.raises(ValueError, match=f"longer than burn_in {burn_in}, got 3"):
            make_loss(burn_in=burn_in)(random_batch(2, 3))


def test_a_mixer_without_in_keys_is_refused():
    with pytest.raises(TypeError, match="wrap it: TensorDictModule"):
        QMixLoss(RecurrentAgent(N, O, A), torch.nn.Linear(2, 1), gamma=0.9)


def test_a_missing_entry_and_a_flat_batch_are_refused():
    with pytest.raises(KeyError, match="state"):
        make_loss()(random_batch(2, 3).exclude(STATE))
    with pytest.raises(ValueError, match=r"\[B, T\], got \[6\].*give batch\.unsqueeze\(1\)"):
        make_loss()(random_batch(2, 3).reshape(-1))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (ACTION, lambda x: x.double(), r"'action'\) of integers, got torch\.float64"),
        (ACTION, lambda x: x[..., :1], r"of shape \[2, 3, 1, 'O'\], .* got \[2, 3, 2, 3\]"),
        (ACTION_MASK, lambda x: x[:, :, 0], r"of shape \[2, 3, 2, 'A'\], got \[2, 3, 4\]"),
    ],
)
def test_entries_of_another_shape_or_kind_are_refused(key, change, message):
    batch = random_batch(2, 3)
    batch[key] = change(batch[key])
    with pytest.raises(ValueError, match=message):
        make_loss()(batch)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_masks_of_numbers_and_short_integers_count_as_their_values(dtype):
    batch = random_batch(2, 3)
    other = batch.clone()
    for key in (ACTION_MASK, next_key(ACTION_MASK)):
        other[key] = batch[key].to(dtype)
    other[ACTION] = batch[ACTION].to(torch.uint8)
    loss = make_loss()
    assert loss(other)["loss"] == loss(batch)["loss"]
    assert loss(batch.exclude(ACTION_MASK, next_key(ACTION_MASK)))["loss"] != loss(batch)["loss"]


class Short(FeedforwardAgent):
    """An agent that unrolls the first T observations of T + 1."""

    def unroll(self, observation, last_action, is_init, hidden):
        last_action = None if last_action is None else last_action[:, :-1]
        return super().unroll(observation[:, :-1], last_action, is_init[:, :-1], hidden)


class Alone(FeedforwardAgent):
    """An agent whose unroll returns action values alone."""

    def unroll(self, *sequence):
        return super().unroll(*sequence)[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Short, r"Short\.unroll: expected action values \[2, 4, 2, 4\], .* got \[2, 3, 2, 4\]"),
        (Alone, r"Alone\.unroll: expected action values \[2, 4, 2, 4\], .* got Tensor"),
    ],
)
def test_an_unroll_of_another_shape_is_refused(kind, message):
    loss = QMixLoss(kind(N, O, A, dtype=torch.float64), VDNMixer(), gamma=0.9)
    with pytest.raises(ValueError, match=message):
        loss(random_batch(2, 3))


def test_a_memory_under_other_names_is_read_by_set_keys_and_else_refused():
    torch.manual_seed(0)
    agent = RecurrentAgent(N, O, A, hidden_dim=6, use_last_action=True, dtype=torch.float64)
    renamed = copy.deepcopy(agent)
    spec = renamed.memory_spec
    for key, name in ((HIDDEN, ("agents", "memory")), (LAST_ACTION, ("agents", "before"))):
        spec[name] = spec[key]
        del spec[key]
        renamed.in_keys = [name if x == key else x for x in renamed.in_keys]
    batch = random_batch(2, 3)
    batch[HIDDEN] = torch.rand(2, 3, N, 6, dtype=torch.float64)
    batch[LAST_ACTION] = torch.eye(A, dtype=torch.float64)[torch.randint(A, (2, 3, N))]
    expected = QMixLoss(agent, VDNMixer(), gamma=0.9)(batch)["loss"]
    assert QMixLoss(agent, VDNMixer(), gamma=0.9)(batch.exclude(HIDDEN))["loss"] != expected
    loss = QMixLoss(renamed, VDNMixer(), gamma=0.9)
    with pytest.raises(ValueError, match=r"memory is .*, got .*'before'.* by set_keys"):
        loss(batch)
    loss.set_keys(hidden=("agents", "memory"), last_action=("agents", "before"))
    batch.rename_key_(HIDDEN, ("agents", "memory"))
    batch.rename_key_(LAST_ACTION, ("agents", "before"))
    assert loss(batch)["loss"] == expected
    assert loss(batch.select(*loss.in_keys, strict=False))["loss"] == expected


class Flat(VDNMixer):
    """A mixer that returns values without their last axis."""

    def forward(self, chosen):
        return super().forward(chosen)[..., 0]


def test_a_mixer_that_returns_another_shape_is_refused():
    loss = QMixLoss(FeedforwardAgent(N, O, A, dtype=torch.float64), Flat(), gamma=0.9)
    with pytest.raises(ValueError, match=r"returns Q_tot \[2, 3, 1\], got \[2, 3\]"):
        loss(random_batch(2, 3))


def test_a_mixer_of_several_modules_writes_q_tot_by_its_name():
    """A chain of a state's value and a sum equals one mixer of both."""

    class Both(torch.nn.Module):
        in_keys = (CHOSEN_ACTION_VALUE, STATE)

        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, chosen, state):
            return chosen.sum(-2) + self.value(state)

    torch.manual_seed(0)
    agent = FeedforwardAgent(N, O, A, dtype=torch.float64)
    value = torch.nn.Linear(S, 1, dtype=torch.float64)
    batch = random_batch(2, 3)
    expected = QMixLoss(agent, Both(value), gamma=0.9)(batch)["loss"]

    def chain(total):
        return TensorDictSequential(
            TensorDictModule(value, [STATE], ["value"]),
            TensorDictModule(lambda q, v: q.sum(-2) + v, [CHOSEN_ACTION_VALUE, "value"], [total]),
        )

    assert QMixLoss(agent, chain(TOTAL_VALUE), gamma=0.9)(batch)["loss"] == expected
    with pytest.raises(TypeError, match=r"writes Q_tot as 'chosen_action_value'.* got .*'value'"):
        QMixLoss(agent, chain("total"), gamma=0.9)


def test_the_reference_itself_ignores_padding():
    assert np.isclose(
        reference.golden_loss("qmix", 1, True, 7.0), reference.golden_loss("qmix", 1, True)
    )


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
@pytest.mark.parametrize("place", ["last step", "before padding", "inside"])
@pytest.mark.parametrize("key", [OBSERVATION, STATE])
def test_nan_behind_a_termination_changes_neither_loss_nor_gradient(kind, place, key):
    batch = random_batch(4, 6)
    step = {"last step": 5, "before padding": 3, "inside": 2}[place]
    for flag in (TERMINATED, DONE):
        batch[next_key(flag)][:2, step] = True
    if place == "inside":
        batch[IS_INIT][:2, step + 1] = True
    if place == "before padding":
        batch[MASK] = torch.arange(6).expand(4, 6) <= step
    found = []
    for value in (None, float("nan"), float("inf")):
        if value is not None:
            batch[next_key(key)][:2, step] = value
        loss = make_loss(kind)
        outputs = loss(batch)
        outputs["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in loss.parameters()])
        assert gradient.isfinite().all()
        found.append((outputs["loss"].detach(), gradient))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])
