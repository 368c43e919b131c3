"""What the loss supplies to a mixer: each entry beside a slow loop, online and target."""

import pytest
import torch
from loss_tools import A, N, S, make_loss, random_batch, some_ends
from tensordict.nn import TensorDictModule

from qmix_trl import QMixer, QMixLoss, RecurrentAgent
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    CHOSEN_ACTION_VALUE,
    GREEDY_ACTION_VALUE,
    HIDDEN,
    IS_INIT,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TOTAL_VALUE,
    next_key,
)
from qmix_trl.mixers.inputs import SUPPLIED

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


class Recorder(torch.nn.Module):
    """A mixer that reads any entries, keeps them, and returns the sum of the utilities."""

    def __init__(self, *in_keys):
        super().__init__()
        self.in_keys = [CHOSEN_ACTION_VALUE, *in_keys]
        self.read = []

    def forward(self, chosen, *others):
        self.read.append([x.detach() for x in others])
        return chosen.sum(-2)


def loss_with(mixer, kind="recurrent", **arguments):
    """Return a loss of ``make_loss`` with another mixer and the same agents."""
    given = make_loss(kind, "vdn")
    loss = QMixLoss(given.agent, mixer, gamma=0.9, **arguments)
    loss.agent_params.data.update_(given.agent_params.data)
    loss.target_agent_params.data.update_(given.target_agent_params.data)
    return loss


def walked(loss, params, batch):
    """Return Q and h of each step and of its true next observation, by one step after the other."""
    found = {name: torch.zeros(*batch.shape, N, size) for name, size in SIZES.items()}
    found = {name: x.double() for name, x in found.items()}
    with torch.no_grad(), params.to_module(loss.agent, preserve_module_state=False):
        for row in range(len(batch)):
            for t in range(batch.shape[1]):
                if batch[IS_INIT][row, t]:
                    last = torch.zeros(N, A, dtype=torch.float64)
                    hidden = torch.zeros(N, loss.agent.hidden_dim, dtype=torch.float64)
                value, hidden = loss.agent.step(batch[OBSERVATION][row, t], last, hidden)
                last = torch.nn.functional.one_hot(batch[ACTION][row, t], A).double()
                after = loss.agent.step(batch[next_key(OBSERVATION)][row, t], last, hidden)
                for name, x in zip(SIZES, (value, hidden, *after), strict=True):
                    found[name][row, t] = x
    return found


SIZES = {"value": A, "hidden": 6, "next value": A, "next hidden": 6}


@pytest.fixture(scope="module")
def expected():
    """Return a batch, and what a mixer should read of it: by key, online and target."""
    batch = random_batch(4, 9, ends=some_ends(4, 9))
    loss = loss_with(Recorder())
    online, target = (walked(loss, p, batch) for p in (loss.agent_params, loss.target_agent_params))
    mask, next_mask = batch[ACTION_MASK], batch[next_key(ACTION_MASK)]
    best = online["next value"].masked_fill(~next_mask, -torch.inf).argmax(-1)  # double Q

    def entries(value, hidden, action, available, step):
        return {
            CHOSEN_ACTION_VALUE: value.gather(-1, action.unsqueeze(-1)),
            GREEDY_ACTION_VALUE: value.masked_fill(~available, -torch.inf).amax(-1, keepdim=True),
            ACTION_VALUE: value,
            ACTION: action,
            ACTION_MASK: available,
            STATE: batch[step(STATE)],
            HIDDEN: hidden,
            OBSERVATION: batch[step(OBSERVATION)],
        }

    now = entries(online["value"], online["hidden"], batch[ACTION], mask, lambda key: key)
    after = entries(target["next value"], target["next hidden"], best, next_mask, next_key)
    return batch, now, after


def assert_read(mixer, keys, expected):
    """Assert that a recorder has read the right entries, the target's where they have a value."""
    batch, now, after = expected
    goes_on = ~batch[next_key(TERMINATED)][..., 0]  # [B, T]
    for read, right, steps in zip(mixer.read, (now, after), (goes_on | True, goes_on), strict=True):
        for x, key in zip(read, keys, strict=True):
            torch.testing.assert_close(x[steps], right[key][steps], rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", SUPPLIED, ids=str)
def test_a_mixer_reads_each_entry_of_this_step_and_of_the_target(key, expected):
    mixer = Recorder(key)
    loss_with(mixer)(expected[0])
    assert_read(mixer, [key], expected)


def test_a_mixer_reads_several_entries_in_the_order_of_its_in_keys(expected):
    keys = list(reversed(SUPPLIED))
    mixer = Recorder(*keys)
    loss_with(mixer)(expected[0])
    assert_read(mixer, keys, expected)


class OwnModule(TensorDictModule):
    """A TensorDictModule whose own call is used."""


@pytest.mark.parametrize("kind", [TensorDictModule, OwnModule])
def test_a_mixer_of_tensordicts_reads_the_same_entries(kind, expected):
    mixer = Recorder(ACTION, HIDDEN)
    loss_with(kind(mixer, in_keys=mixer.in_keys, out_keys=[TOTAL_VALUE]))(expected[0])
    assert_read(mixer, [ACTION, HIDDEN], expected)


def test_without_a_mask_all_actions_are_available(expected):
    batch = expected[0].exclude(ACTION_MASK, next_key(ACTION_MASK))
    mixer = Recorder(ACTION_MASK, GREEDY_ACTION_VALUE, ACTION_VALUE)
    loss_with(mixer)(batch)
    for mask, greedy, values in mixer.read:
        assert mask.all()
        assert torch.equal(greedy, values.amax(-1, keepdim=True))


def test_gradients_reach_the_agent_through_every_entry_that_has_them(expected):
    batch = expected[0]

    class Sum(torch.nn.Module):
        in_keys = (GREEDY_ACTION_VALUE, ACTION_VALUE, HIDDEN)

        def forward(self, greedy, values, hidden):
            return (
                greedy.sum(-2)
                + values.sum((-2, -1)).unsqueeze(-1)
                + hidden.sum((-2, -1))[..., None]
            )

    loss = loss_with(Sum())
    loss(batch)["loss"].backward()
    for name in ("fc1", "rnn", "fc2"):
        gradients = [p.grad for n, p in loss.agent.named_parameters() if n.startswith(name)]
        assert all((gradient != 0).any() for gradient in gradients)


def test_renamed_entries_are_supplied_to_a_mixer_of_either_spelling(expected):
    batch = expected[0]
    right = make_loss()(batch)["loss"]
    renamed = batch.clone()
    for step in (lambda key: key, next_key):
        renamed.rename_key_(step(STATE), step("place"))
    for key in (STATE, "place"):
        given = make_loss()
        mixer = TensorDictModule(
            QMixer(N, S, 4, dtype=torch.float64),
            in_keys=[CHOSEN_ACTION_VALUE, key],
            out_keys=[TOTAL_VALUE],
        )
        loss = QMixLoss(given.agent, mixer, gamma=0.9)
        loss.load_state_dict(given.state_dict())
        loss.set_keys(state="place")
        assert loss(renamed)["loss"].item() == right.item()


@pytest.mark.parametrize("kind", [lambda mixer, **_: mixer, TensorDictModule])
def test_any_other_entry_is_read_from_the_batch(kind, expected):
    batch = expected[0].clone()
    place = ("agents", "place")
    batch[place], batch[next_key(place)] = torch.randn(2, *batch.shape, N, 3, dtype=torch.float64)
    mixer = Recorder("time", place)
    batch["time"] = torch.rand(*batch.shape, 1, dtype=torch.float64)
    batch["next", "time"] = batch["time"] + 1
    loss = loss_with(kind(mixer, in_keys=mixer.in_keys, out_keys=[TOTAL_VALUE]))
    loss(batch)
    now, after = mixer.read
    for i, key in enumerate(("time", place)):
        assert torch.equal(now[i], batch[key])
        goes_on = ~batch[next_key(TERMINATED)].view(*batch.shape, *[1] * (after[i].dim() - 2))
        assert torch.equal(after[i], torch.where(goes_on, batch[next_key(key)], 0))
    named = {"time", ("next", "time"), place, next_key(place)}
    assert named <= set(loss.in_keys)


class Ordered(torch.nn.Module):
    """A mixer in which the order of arguments and the method count."""

    def forward(self, state, chosen):
        return chosen.sum(-2) + 100 * state.mean(-1, keepdim=True)

    def negated(self, state, chosen):
        return -self(state, chosen)


@pytest.mark.parametrize(
    ("arguments", "sign"),
    [
        ({"in_keys": [STATE, CHOSEN_ACTION_VALUE]}, 1),
        ({"in_keys": {CHOSEN_ACTION_VALUE: "chosen", STATE: "state"}}, 1),
        ({"in_keys": [STATE, CHOSEN_ACTION_VALUE], "method": "negated"}, -1),
    ],
    ids=["list", "names", "method"],
)
def test_a_tensordict_module_is_called_as_it_was_made(arguments, sign):
    batch = random_batch(3, 5)
    is_named = isinstance(arguments["in_keys"], dict)
    options = {"out_to_in_map": False} if is_named else {}
    mixer = TensorDictModule(Ordered(), out_keys=[TOTAL_VALUE], **arguments, **options)
    given = make_loss("recurrent", "vdn")
    loss = loss_with(mixer)
    expected = given(batch)["total_value"] + 100 * batch[STATE].mean()
    torch.testing.assert_close(loss(batch)["total_value"], sign * expected)


@pytest.mark.parametrize("present", [REWARD, next_key(REWARD)], ids=str)
def test_an_entry_that_the_batch_lacks_at_a_step_is_refused(present):
    batch = random_batch(2, 3)
    batch[present] = torch.zeros(2, 3, 1, dtype=torch.float64)
    if present == REWARD:
        batch = batch.exclude(next_key(REWARD))
    with pytest.raises(KeyError) as error:
        loss_with(Recorder(REWARD))(batch)
    message = str(error.value.args[0])
    missing = next_key(REWARD) if present == REWARD else REWARD
    assert message.startswith(f"the mixer reads {missing!r}: expected one of ")
    for key in SUPPLIED:
        assert repr(key) in message


def test_hidden_states_of_an_agent_without_any_are_refused():
    with pytest.raises(KeyError, match="hidden states, but this agent has none"):
        loss_with(Recorder(HIDDEN), "feedforward")(random_batch(2, 3))


def test_an_agent_of_one_step_rows_is_supplied_too():
    mixer = Recorder(*SUPPLIED)
    agent = RecurrentAgent(N, 3, A, dtype=torch.float64)
    QMixLoss(agent, mixer, gamma=0.9)(random_batch(1, 1))
    assert [x.shape[:2] for x in mixer.read[0]] == [(1, 1)] * len(SUPPLIED)
