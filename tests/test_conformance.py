"""TorchRL's conventions of losses and mixers, over every loss, agent and mixer of the library.

A new one in ``AGENTS``, ``MIXERS`` or ``qmix_trl.__all__`` is tested without a line here.
"""

import copy
import inspect
import itertools
import pickle
from dataclasses import fields

import pytest
import torch
from loss_tools import A, N, O, S, random_batch, some_ends
from tensordict import TensorDict, lazy_stack
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from torchrl.objectives import HardUpdate, LossModule, SoftUpdate, ValueEstimators
from torchrl.objectives.value import TD0Estimator

import qmix_trl
from qmix_trl import AGENTS, MIXERS, SequenceRows
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    CHOSEN_ACTION_VALUE,
    DONE,
    GREEDY_ACTION_VALUE,
    IS_INIT,
    MASK,
    OBSERVATION,
    PRIORITY_WEIGHT,
    SHIFTED_VALID,
    STATE,
    TERMINATED,
    TOTAL_VALUE,
    next_key,
)
from qmix_trl.native.networks import gru as gru_kernel
from qmix_trl.native.networks import library as networks

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

PUBLIC = [getattr(qmix_trl, name) for name in qmix_trl.__all__]
LOSSES = [x for x in PUBLIC if inspect.isclass(x) and issubclass(x, LossModule)]
CASES = list(itertools.product(LOSSES, AGENTS, [*MIXERS, None]))
B, T = 4, 9


def case_id(case):
    """Return the name of a loss with an agent and a mixer."""
    loss, agent, mixer = case
    return f"{loss.__name__}-{agent}-{mixer or 'none'}"


every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
every_mixer = pytest.mark.parametrize("name", MIXERS)


def make_mixer(name, n_agents=N):
    """Return a mixer of the table in float64; None for None."""
    if name is None:
        return None
    actions = {"n_actions": A} if ACTION in MIXERS[name].in_keys else {}
    return MIXERS[name](n_agents=n_agents, state_shape=S, **actions).double()


def make_loss(case, *, n_agents=N, seed=0, **arguments):
    """Return a loss in float64 whose targets differ from agent and mixer."""
    loss, agent, mixer = case
    torch.manual_seed(seed)
    acting = AGENTS[agent](n_agents, O, A).double()
    arguments = {"gamma": 0.9, "td_lambda": 0.6, **arguments}
    made = loss(acting, make_mixer(mixer, n_agents), **arguments)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def batch_for(loss, *, seed=1):
    """Return random data [B, T] with every entry that a loss reads, also the optional ones.

    Episodes end inside rows, the last row has padding, and rows begin with a memory.
    """
    batch = random_batch(B, T, seed=seed, ends=some_ends(B, T))
    batch[next_key(DONE)][2, 2], batch[IS_INIT][2, 3] = True, False  # an end without a reset
    batch[next_key(DONE)][3, 1], batch[IS_INIT][3, 2] = False, True  # a reset without an end
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(B, T, *shape, generator=generator, dtype=torch.float64)

    batch[MASK] = torch.ones(B, T, dtype=torch.bool)
    batch[MASK][-1, 5:] = False
    batch[SHIFTED_VALID] = torch.ones(B, T, 1, dtype=torch.bool)
    batch[SHIFTED_VALID][0, 5:] = False
    batch[PRIORITY_WEIGHT] = normal(1).abs() + 0.1
    for key, spec in loss.agent.memory_spec.items(True, True):
        batch[key] = normal(*spec.shape)
    # Steps of which one is no cut: the loss then looks for cuts there alone.
    batch[loss.tensor_keys.cut_steps] = torch.zeros(B, T, 1, dtype=torch.int64)
    return batch


def dispatched(loss, batch, keys):
    """Return the outputs of a loss that is called with entries as keyword arguments."""
    present = batch.keys(True, True)
    named = {"_".join([key] if isinstance(key, str) else key): key for key in keys}
    outputs = loss(**{name: batch[key] for name, key in named.items() if key in present})
    return TensorDict(dict(zip(loss.out_keys, outputs, strict=True)))


def value(loss, batch):
    """Return the loss of a batch, detached."""
    return loss(batch)["loss"].detach()


# ------------------------------------------------------------------------ entries


@every_case
def test_in_keys_name_all_entries_that_are_read(case):
    loss = make_loss(case)
    batch = batch_for(loss)
    expected = value(loss, batch)
    assert torch.equal(value(loss, batch.select(*loss.in_keys, strict=False)), expected)
    present = batch.keys(True, True)
    named = [key for key in loss.in_keys if key in present]
    assert len(named) >= len(loss.in_keys) - 1  # the last action of agents without
    for key in [key for key in named if key != ACTION_MASK]:  # for mixers that read it
        without = batch.exclude(key)
        try:
            assert not torch.equal(value(loss, without), expected), key
        except KeyError:
            continue


@every_case
def test_dispatch_by_keywords_equals_a_call_with_a_batch(case):
    loss = make_loss(case)
    batch = batch_for(loss)
    outputs = dispatched(loss, batch, loss.in_keys)
    torch.testing.assert_close(outputs, loss(batch), rtol=0, atol=0)
    masked = batch.exclude(ACTION_MASK, next_key(ACTION_MASK))
    assert outputs["loss"] != loss(masked)["loss"]
    with pytest.raises(TypeError, match="nonsense"):
        loss(nonsense=torch.zeros(2))


@every_case
def test_dispatch_with_one_agent(case):
    loss = make_loss(case, n_agents=1)
    batch = batch_for(loss)
    for key in [key for key in batch.keys(True, True) if "agents" in key]:
        batch["agents"].batch_size = batch["next", "agents"].batch_size = [B, T]
        batch[key] = batch[key][:, :, :1]
    outputs = dispatched(loss, batch, loss.in_keys)
    torch.testing.assert_close(outputs, loss(batch), rtol=0, atol=0)


@every_case
def test_outputs_can_be_selected(case):
    loss = make_loss(case)
    loss.select_out_keys("loss")
    assert list(loss(batch_for(loss)).keys()) == ["loss"]


@every_case
def test_every_key_can_be_set(case):
    loss = make_loss(case, write_priority="steps")
    batch = batch_for(loss)
    outputs, written = loss(batch), batch[loss.tensor_keys.priority]
    batch = batch.exclude(loss.tensor_keys.priority)
    for field in fields(loss.tensor_keys):
        old, new = getattr(loss.tensor_keys, field.name), ("mine", field.name)
        loss.set_keys(**{field.name: new})
        renamed = batch.clone()
        for step in (lambda key: key, next_key):
            if step(old) in batch.keys(True, True):
                renamed.set(step(new), renamed.get(step(old)))
                renamed = renamed.exclude(step(old))
        torch.testing.assert_close(loss(renamed), outputs, rtol=0, atol=0, msg=field.name)
        assert torch.equal(renamed[loss.tensor_keys.priority], written)
        loss.set_keys(**{field.name: None})
        assert getattr(loss.tensor_keys, field.name) == field.default
    with pytest.raises(ValueError, match="nonsense is not an accepted tensordict key"):
        loss.set_keys(nonsense="mine")


@every_case
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1), (1, 0)], ids=str)
def test_lazy_stacks_are_read_like_dense_batches(case, dims):
    loss = make_loss(case)
    batch = batch_for(loss)
    lazy = lazily_stacked(batch, dims)
    torch.testing.assert_close(loss(lazy), loss(batch), rtol=0, atol=0)


def lazily_stacked(batch, dims):
    """Return a batch as a lazy stack along the first of some dimensions, of such stacks."""
    if not dims:
        return batch
    first, *rest = dims
    rest = [dim - (dim > first) for dim in rest]
    return lazy_stack([lazily_stacked(part, rest) for part in batch.unbind(first)], first)


@every_case
def test_a_batch_is_not_written_to(case):
    loss = make_loss(case)
    batch = batch_for(loss)
    before = batch.clone()
    loss(batch.lock_())
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


@every_case
def test_an_action_mask_of_one_step_alone_is_refused(case):
    loss = make_loss(case)
    batch = batch_for(loss).exclude(next_key(ACTION_MASK))
    with pytest.raises(KeyError, match=r"expected \('next', 'agents', 'action_mask'\) in the"):
        loss(batch)


@every_case
@pytest.mark.parametrize("key", [next_key(TERMINATED), next_key(DONE), IS_INIT, MASK], ids=str)
def test_flags_are_read_in_any_dtype_and_with_or_without_a_last_dimension(case, key):
    loss = make_loss(case)
    batch = batch_for(loss)
    expected = value(loss, batch)
    flags = batch[key].reshape(B, T)
    for shown in (flags, flags.unsqueeze(-1), flags.to(torch.uint8), flags.double()):
        assert torch.equal(value(loss, batch.clone().set(key, shown)), expected)
    of_agents = flags[:, :, None, None].expand(B, T, N, 1)
    with pytest.raises(ValueError, match=r"one flag for each step of the team, got \[4, 9, 2, 1\]"):
        loss(batch.set(key, of_agents))


@every_case
def test_other_shapes_of_actions_are_refused(case):
    loss = make_loss(case)
    batch = batch_for(loss)
    with pytest.raises(ValueError, match=r"expected a batch of shape \[B, T\], got \[36\]"):
        loss(batch.reshape(-1))
    one_hot = torch.nn.functional.one_hot(batch[ACTION], A)
    with pytest.raises(ValueError, match=r"actions are numbers \[B, T, N\], got .* \[4, 9, 2, 4\]"):
        loss(batch.set(ACTION, one_hot))


@pytest.mark.parametrize("mixer", [*MIXERS, None])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_module_that_is_no_agent_is_refused(loss, mixer):
    module = TensorDictModule(torch.nn.Linear(O, A), in_keys=[OBSERVATION], out_keys=["x"])
    with pytest.raises(TypeError, match=r"expected an agent with .*, got a TensorDictModule"):
        loss(module, make_mixer(mixer), gamma=0.9)
    if mixer is not None:
        agent = AGENTS["feedforward"](N, O, A)
        got = f"got {type(make_mixer(mixer)).__name__} and FeedforwardAgent; swap them"
        with pytest.raises(TypeError, match=f"expected the agent and then the mixer, {got}"):
            loss(make_mixer(mixer), agent, gamma=0.9)


# ------------------------------------------------------------------------ masks, weights, sums


@every_case
def test_the_attribute_loss_mask_key_chooses_the_masks(case):
    loss = make_loss(case)
    batch = batch_for(loss)
    both = batch[MASK] & batch[SHIFTED_VALID][..., 0]
    everything = batch.exclude(MASK, SHIFTED_VALID)
    expected = {
        "auto": value(loss, everything.clone().set(MASK, both)),
        MASK: value(loss, everything.clone().set(MASK, batch[MASK])),
        SHIFTED_VALID: value(loss, everything.clone().set(MASK, batch[SHIFTED_VALID])),
        None: value(loss, everything),
    }
    assert len({x.item() for x in expected.values()}) == 4
    for key, right in expected.items():
        loss.loss_mask_key = key
        assert torch.equal(value(loss, batch), right)
    loss.loss_mask_key = ("my_masks", "valid")
    with pytest.raises(KeyError, match=r"'valid'.* take loss_mask_key='auto'"):
        loss(batch)
    batch["my_masks", "valid"] = both
    assert torch.equal(value(loss, batch), expected["auto"])


@every_case
def test_the_attribute_use_prioritized_weights_is_followed(case):
    loss = make_loss(case)
    batch = batch_for(loss)
    without = batch.exclude(PRIORITY_WEIGHT)
    unweighted = value(loss, without)
    weighted = value(loss, batch)
    for choice, right in (("auto", weighted), (True, weighted), (False, unweighted)):
        loss.use_prioritized_weights = choice
        assert torch.equal(value(loss, batch), right)
    loss.use_prioritized_weights = True
    with pytest.raises(KeyError, match="'priority_weight' in the batch"):
        loss(without)
    assert weighted != unweighted


@every_case
def test_weights_of_rows_and_of_steps(case):
    none = make_loss(case, reduction="none")
    batch = batch_for(none)
    weight = batch[PRIORITY_WEIGHT]  # [B, T, 1]
    errors = value(none, batch.exclude(PRIORITY_WEIGHT))  # [B, T, M]
    torch.testing.assert_close(value(none, batch), errors * weight)
    rows = weight[:, :1].expand(B, T, 1)
    torch.testing.assert_close(
        value(none, batch.clone().set(PRIORITY_WEIGHT, rows)), errors * weight[:, :1]
    )


@every_case
def test_reductions(case):
    losses = {name: make_loss(case, reduction=name) for name in ("none", "sum", "mean")}
    batch = batch_for(losses["none"]).exclude(PRIORITY_WEIGHT)
    none = value(losses["none"], batch)
    valid = batch[MASK] & batch[SHIFTED_VALID][..., 0]  # 36 steps less 4 and 4
    assert none.shape[:2] == (B, T)
    assert (none[~valid] == 0).all()
    assert valid.sum() == 28
    torch.testing.assert_close(value(losses["sum"], batch), none.sum())
    torch.testing.assert_close(value(losses["mean"], batch), none.sum() / (28 * none.shape[-1]))


# ------------------------------------------------------------------------ prioritised replay


class RecordingSampler(PrioritizedSampler):
    """Samples the first rows, and keeps the priorities that it is given.

    TorchRL's own needs an extension that does not load with every version of torch.
    """

    reduction = "max"

    def __init__(self):
        self.given = []

    def sample(self, storage, batch_size):
        return torch.arange(batch_size), {}

    def update_priority(self, index, priority, *, storage=None):
        self.given.append((index.tolist(), priority))

    def add(self, index): ...

    def extend(self, index): ...


@every_case
@pytest.mark.parametrize("what", ["steps", "rows"])
def test_priorities_reach_torchrls_replay(case, what):
    loss = make_loss(case, write_priority=what, reduction="none")
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(B),
        sampler=RecordingSampler(),
        transform=SequenceRows(max_steps=1),
        batch_size=3,
    )
    replay.extend(batch_for(loss).exclude("shifted_valid"))
    sample = replay.sample()
    outputs = loss(sample)
    error = outputs["loss"].detach().sqrt().mean(-1, keepdim=True)  # [B, T, 1]
    written = sample["td_error"]
    rows = outputs["priority"][:, None, None].expand(3, T, 1)
    torch.testing.assert_close(written, error if what == "steps" else rows)
    replay.update_tensordict_priority(sample)
    index, priority = replay.sampler.given[-1]
    assert index == [0, 1, 2]
    torch.testing.assert_close(priority, written[..., 0].amax(1))


@every_case
def test_other_priorities_are_refused(case):
    with pytest.raises(ValueError, match="write_priority of steps, rows, None, got True"):
        make_loss(case, write_priority=True)


@every_case
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("reduction", "avg"), ("write_priority", "row"), ("use_prioritized_weights", "yes")],
)
def test_attributes_of_other_values_are_refused(case, name, wrong):
    loss = make_loss(case)
    with pytest.raises(ValueError, match=f"expected {name} of .*, got '{wrong}'"):
        setattr(loss, name, wrong)


# ------------------------------------------------------------------------ parameters and targets


@every_case
def test_the_state_dict_holds_weights_and_targets(case):
    first, second = make_loss(case, seed=0), make_loss(case, seed=1)
    batch = batch_for(first)
    assert value(first, batch) != value(second, batch)
    second.load_state_dict(first.state_dict())
    assert value(first, batch) == value(second, batch)
    names = {name.split(".")[0] for name in first.state_dict()}
    has_weights = first.mixer is not None and any(True for _ in first.mixer.parameters())
    parts = ["agent", "mixer"] if has_weights else ["agent"]
    assert names >= {f"{t}{part}_params" for part in parts for t in ("", "target_")}


@every_case
def test_gradients_reach_all_parameters_and_no_target(case):
    loss = make_loss(case)
    loss(batch_for(loss))["loss"].backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in loss.parameters())
    assert not any(name.startswith("target") for name, _ in loss.named_parameters())
    targets = [x for name, x in loss.named_buffers() if name.startswith("target")]
    assert len(targets) == len(list(loss.parameters()))
    assert not any(x.requires_grad for x in targets)


@every_case
def test_torchrls_updaters_move_the_targets(case):
    loss = make_loss(case)
    online = [p.detach().clone() for p in loss.parameters()]

    def targets():
        return [x.clone() for name, x in loss.named_buffers() if name.startswith("target")]

    soft = SoftUpdate(loss, tau=0.25)
    assert all(map(torch.equal, targets(), online))  # it begins with a copy
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(4)
    soft.step()
    for now, before in zip(targets(), online, strict=True):
        torch.testing.assert_close(now, before + 1)
    hard = HardUpdate(make_loss(case), value_network_update_interval=1)
    hard.step()


@every_case
def test_targets_can_be_copied(case):
    loss = make_loss(case)
    loss.copy_to_targets()
    for name in ("agent", "mixer"):
        online = getattr(loss, f"{name}_params")
        if online is not None:
            assert (getattr(loss, f"target_{name}_params") == online).all()


@every_case
@pytest.mark.filterwarnings("ignore:reset_parameters_recursive was called without")  # VDN has none
def test_casts_and_new_weights_reach_targets_too(case):
    loss = make_loss(case)
    before = {name: x.clone() for name, x in loss.state_dict().items()}
    loss.reset_parameters_recursive()
    after = loss.state_dict()
    assert all((after[name] != before[name]).any() for name in before)
    online = [name for name in after if not name.startswith("target")]
    assert all(torch.equal(after[name], after[f"target_{name}"]) for name in online)
    loss.to(torch.float32)
    assert {x.dtype for x in loss.state_dict().values()} == {torch.float32}


@every_case
def test_a_network_can_be_taken_out_and_put_back(case):
    loss = make_loss(case)
    batch = batch_for(loss)
    expected = value(loss, batch)
    taken = loss.get_stateful_net("agent")
    with torch.no_grad():
        for parameter in loss.agent_params.values(True, True):
            parameter.zero_()
    assert value(loss, batch) != expected
    untouched = make_loss(case).get_stateful_net("agent")
    assert type(taken) is type(untouched)
    loss.from_stateful_net("agent", untouched)
    assert value(loss, batch) == expected


@every_case
def test_value_estimators_are_refused(case):
    loss = make_loss(case)
    estimator = TD0Estimator(gamma=0.9, value_network=None)
    message = r"computes its own targets: .* set gamma and td_lambda"
    for given in (ValueEstimators.TD0, ValueEstimators.TDLambda, TD0Estimator, estimator, None):
        with pytest.raises(NotImplementedError, match=message):
            loss.make_value_estimator(given)
    with pytest.raises(NotImplementedError, match=message):
        loss.value_estimator = estimator
    with pytest.raises(NotImplementedError, match=message):
        _ = loss.value_estimator


# ------------------------------------------------------------------------ copies, vmap, compilers


@every_case
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_equal_and_independent(case, copied):
    loss = make_loss(case, write_priority="rows")
    loss.set_keys(state="place")
    other = copied(loss)
    batch = batch_for(loss)
    for step in (lambda key: key, next_key):
        batch.rename_key_(step(STATE), step("place"))
    expected = value(loss, batch)
    assert value(other, batch) == expected
    other(batch)["loss"].backward()
    assert all(p.grad is None for p in loss.parameters())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert value(loss, batch) == expected
    assert value(other, batch) != expected


@every_case
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_the_weights_of_several_losses(case):
    losses = [make_loss(case, seed=seed) for seed in range(3)]
    batch = batch_for(losses[0])
    expected = torch.stack([value(loss, batch) for loss in losses])
    loss = losses[0]
    stacked = torch.stack([TensorDict.from_module(x).data for x in losses])

    def with_weights(weights):
        with weights.to_module(loss):
            return loss(batch)["loss"]

    torch.testing.assert_close(torch.vmap(with_weights)(stacked), expected)
    assert value(loss, batch) == expected[0]


@every_case
def test_weights_put_in_place_by_to_module_get_the_gradients(case):
    loss, other, expected = (make_loss(case, seed=seed) for seed in (0, 1, 1))
    batch = batch_for(loss)
    with TensorDict.from_module(other).to_module(loss):
        loss(batch)["loss"].backward()
    expected(batch)["loss"].backward()
    assert all(x.grad is None for x in loss.parameters())
    for found, right in zip(other.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, right.grad, rtol=0, atol=0)


@pytest.fixture(scope="module")
def process_group():
    """Make this process a group of one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every_case
def test_distributed_training_has_the_gradients_of_the_loss(case, process_group):
    loss, plain = make_loss(case), make_loss(case)
    batch = batch_for(loss)
    distributed = torch.nn.parallel.DistributedDataParallel(loss)
    for module in (distributed, plain):
        module(batch)["loss"].backward()
    for mine, right in zip(loss.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, right.grad, rtol=0, atol=0)


@every_case
def test_vmap_randomness_is_that_of_a_loss_without_chance(case):
    loss = make_loss(case)
    assert loss.vmap_randomness == "error"
    with pytest.raises(NotImplementedError, match="_make_vmap"):
        loss.set_vmap_randomness("different")


@every_mixer
def test_vmap_over_the_samples_of_a_mixer(name):
    mixer = make_mixer(name)
    arguments = mixer_arguments(mixer, 5, 3)
    expected = mixer(*arguments)
    torch.testing.assert_close(torch.vmap(mixer)(*arguments), expected)
    torch.testing.assert_close(torch.vmap(torch.vmap(mixer))(*arguments), expected)


def mixer_arguments(mixer, *batch):
    """Return random entries for a mixer [*B, ..], in the order of its call."""
    generator = torch.Generator().manual_seed(0)
    shapes = {CHOSEN_ACTION_VALUE: (N, 1), GREEDY_ACTION_VALUE: (N, 1), STATE: (S,)}
    entries = {
        key: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
        for key, shape in shapes.items()
    }
    entries[ACTION] = torch.randint(A, (*batch, N), generator=generator)
    return [entries[key] for key in mixer.in_keys]


@every_mixer
def test_a_mixer_is_called_with_a_tensordict_or_with_keywords(name):
    mixer = make_mixer(name)
    module = TensorDictModule(mixer, in_keys=list(mixer.in_keys), out_keys=[TOTAL_VALUE])
    arguments = mixer_arguments(mixer, 5, 3)
    expected = mixer(*arguments)
    assert expected.shape == (5, 3, 1)
    data = TensorDict(dict(zip(mixer.in_keys, arguments, strict=True)), [5, 3])
    assert torch.equal(module(data)[TOTAL_VALUE], expected)
    named = ["_".join([key] if isinstance(key, str) else key) for key in mixer.in_keys]
    assert torch.equal(module(**dict(zip(named, arguments, strict=True))), expected)


@every_mixer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_mixer_is_equal(name, copied):
    mixer = make_mixer(name)
    arguments = mixer_arguments(mixer, 5)
    assert torch.equal(copied(mixer)(*arguments), mixer(*arguments))


@pytest.mark.slow
@every_mixer
def test_a_mixer_can_be_exported(name):
    mixer = make_mixer(name)
    arguments = mixer_arguments(mixer, 5)
    exported = torch.export.export(mixer, tuple(arguments)).module()
    torch.testing.assert_close(exported(*arguments), mixer(*arguments))


@pytest.mark.slow
@every_case
def test_a_loss_compiles_without_graph_breaks(case):
    if networks.missing(gru_kernel.library, torch.float64) is not None:
        pytest.skip("without a C++ compiler a GRU's steps are left out of the graph")
    loss = make_loss(case, td_lambda=0.5)
    batch, parameters = batch_for(loss), list(loss.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)

    def loss_and_gradients(call):
        value = call(batch)["loss"]
        return [value, *torch.autograd.grad(value, parameters)]

    found, expected = loss_and_gradients(compiled), loss_and_gradients(loss)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
