"""Gradient steps on samples of the buffer, one by one and as one graph."""

import copy

import graph_tools
import pytest
import torch
from loss_tools import random_batch, some_ends
from torchrl.data import (
    LazyTensorStorage,
    ListStorage,
    PrioritizedSampler,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.envs.transforms import ExcludeTransform
from torchrl.objectives import HardUpdate
from update_tools import Looks, OnGpu, let_graphs_be_taken, raising, same_weights, updates_of

from qmix_trl import Learner, SequenceRows, make_hard_updater, make_replay, make_soft_updater
from qmix_trl import update as update_module
from qmix_trl.chosen import Chosen
from qmix_trl.update import WARM_UP_STEPS

N_ROWS, SEED = 3, 7
HARD = ("recurrent", make_hard_updater, {"period_updates": 3})
SOFT = ("feedforward", make_soft_updater, {"tau": 0.1})


def replay_of(**arguments):
    """Return an empty buffer for 8 rows."""
    rows = SequenceRows(max_steps=1)
    arguments = {"capacity_rows": 8, "batch_rows": N_ROWS, "seed": SEED, **arguments}
    return make_replay(rows, **arguments)


def collected(i):
    """Return the i-th batch [2, 5]."""
    return random_batch(2, 5, seed=i, ends=some_ends(2, 5, seed=i))


def learner_of(settings, monkeypatch, *, n_steps=4, replay=None, **arguments):
    """Return a learner whose graphs are recorded, and their replays."""
    step = updates_of(*settings, **arguments)
    replays = let_graphs_be_taken(step, monkeypatch)
    return Learner(step, replay_of() if replay is None else replay, n_steps=n_steps), replays


def expected_steps(plain, replay, generator, n_steps):
    """Return the outputs of single steps on the rows that a graph draws by this generator."""
    outputs = []
    for _ in range(n_steps):
        index = torch.randint(2**62, (N_ROWS,), generator=generator, device=generator.device)
        outputs.append(plain(replay[index.cpu() % len(replay)]))
    return torch.stack(outputs)


@pytest.mark.parametrize("settings", [HARD, SOFT])
def test_on_the_cpu_steps_are_taken_one_by_one(settings):
    plain, replay = updates_of(*settings), replay_of()
    learner = Learner(updates_of(*settings), replay_of(), n_steps=4)
    assert learner.how == plain.how
    for i in range(3):
        replay.extend(collected(i))
        learner.replay.extend(collected(i))
        expected = torch.stack([plain(replay.sample()) for _ in range(4)])
        outputs = learner()
        assert outputs.shape == (4,)
        assert (outputs == expected).all()
    assert same_weights(plain.loss, learner.update.loss)


@pytest.mark.parametrize("settings", [HARD, SOFT])
@pytest.mark.parametrize("n_steps", [1, 4])  # hard targets are copied at every third
def test_steps_in_a_graph_equal_eager_steps_on_the_same_rows(settings, n_steps, monkeypatch):
    learner, replays = learner_of(settings, monkeypatch, n_steps=n_steps)
    plain, replay = updates_of(*settings), replay_of()
    generator = torch.Generator().manual_seed(SEED)
    for i in range(7):  # the buffer fills up with the fourth
        replay.extend(collected(i))
        learner.replay.extend(collected(i))
        assert len(replay) == min(2 * (i + 1), 8)
        assert (learner() == expected_steps(plain, replay, generator, n_steps)).all()
    assert same_weights(plain.loss, learner.update.loss)
    assert len(replays) == 7 - {1: WARM_UP_STEPS, 4: 1}[n_steps]
    assert learner.how == Chosen(f"CUDA graph of {n_steps} x sample and step")


def test_the_graph_follows_a_new_generator(monkeypatch):
    learner, _ = learner_of(SOFT, monkeypatch)
    learner.replay.extend(collected(0))
    for _ in range(3):
        learner()
    plain = updates_of(*SOFT)
    plain.loss.load_state_dict(learner.update.loss.state_dict())
    plain.optimizer.load_state_dict(copy.deepcopy(learner.update.optimizer.state_dict()))
    learner.replay.set_rng(torch.Generator().manual_seed(11))
    generator = torch.Generator().manual_seed(11)
    for _ in range(3):
        assert (learner() == expected_steps(plain, learner.replay, generator, 4)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [HARD, SOFT])
def test_a_cuda_graph_takes_the_steps_of_single_operations(settings):
    plain = updates_of(*settings, device="cuda", cuda_graph=False)
    step, replay = updates_of(*settings, device="cuda", cuda_graph=True), replay_of(device="cuda")
    learner = Learner(step, replay, n_steps=4)
    generator = torch.Generator("cuda").manual_seed(SEED)
    for i in range(7):
        replay.extend(collected(i).to("cuda"))
        expected = expected_steps(plain, replay, generator, 4)
        for name, values in learner().items():
            torch.testing.assert_close(values, expected[name])
    assert learner.how.name == "CUDA graph of 4 x sample and step"
    assert set(learner.how.passed_over) <= {"GRU kernel"}  # these weights are float64


def test_steps_and_samples_never_wait_for_a_gpu(monkeypatch):
    learner, _ = learner_of(HARD, monkeypatch)
    learner.replay.extend(collected(0))
    with Looks() as looks:
        learner()
    assert looks.found == []
    learner()
    with Looks() as looks:
        learner()
    assert looks.found == []


def test_an_empty_buffer_is_an_error(monkeypatch):
    learner, _ = learner_of(HARD, monkeypatch)
    with pytest.raises(RuntimeError, match="expected rows in the replay buffer, got none; extend"):
        learner()


def test_at_least_one_step_is_taken():
    with pytest.raises(ValueError, match="n_steps of at least 1, got 0"):
        Learner(updates_of(*SOFT), replay_of(), n_steps=0)


# ------------------------------------------------------------------------ priorities


class LastRows(PrioritizedSampler):
    """Samples the last rows, and keeps the priorities that it is given."""

    reduction = "max"

    def __init__(self):
        self.given = []

    def sample(self, storage, batch_size):
        return torch.arange(len(storage) - batch_size, len(storage)), {}

    def update_priority(self, index, priority, *, storage=None):
        self.given.append((index.tolist(), priority))

    def extend(self, index): ...


def test_a_prioritised_buffer_gets_the_priorities_of_each_step():
    step, plain = updates_of(*SOFT), updates_of(*SOFT)
    step.loss.write_priority = "rows"
    learner = Learner(step, buffer_of(sampler=LastRows()), n_steps=3)
    replay = buffer_of(sampler=LastRows())
    for buffer in (learner.replay, replay):
        buffer.extend(collected(0))
        buffer.extend(collected(1))
    learner()
    expected = [plain(replay.sample())["priority"] for _ in range(3)]
    given = learner.replay.sampler.given[2:]  # after those of the two batches
    assert [index for index, _ in given] == [[2, 3]] * 3
    for (_, priority), right in zip(given, expected, strict=True):
        assert torch.equal(priority, right)


def test_a_prioritised_buffer_needs_a_loss_that_writes_priorities():
    with pytest.raises(ValueError, match=r"write_priority=None; make QMixLoss with write_priority"):
        Learner(updates_of(*SOFT), buffer_of(sampler=LastRows()), n_steps=3)


# ------------------------------------------------------------------------ steps one by one


def their_hard_updater(loss):
    """Return TorchRL's updater, which counts in Python."""
    return HardUpdate(loss, value_network_update_interval=1)


def buffer_of(**arguments):
    """Return a buffer that differs from ``make_replay``'s."""
    storage = arguments.pop("storage", LazyTensorStorage(8))
    rows = SequenceRows(max_steps=1)
    return TensorDictReplayBuffer(storage=storage, transform=rows, batch_size=2, **arguments)


def with_another_transform():
    """Return a buffer with two transforms."""
    return buffer_of().append_transform(ExcludeTransform("state"))


OTHER_BUFFERS = [
    (
        lambda: buffer_of(sampler=SamplerWithoutReplacement()),
        "the replay buffer samples by SamplerWithoutReplacement, not by RandomSampler",
    ),
    (
        lambda: buffer_of(storage=ListStorage(8)),
        "the replay buffer holds a ListStorage, not a LazyTensorStorage",
    ),
    (with_another_transform, "the replay buffer has another transform than one SequenceRows"),
    (
        lambda: buffer_of(storage=LazyTensorStorage(8, device="meta")),
        "the replay buffer is on meta, the parameters on cpu",
    ),
]


@pytest.mark.parametrize(("make_buffer", "reason"), OTHER_BUFFERS)
def test_other_buffers_are_sampled_outside_of_the_graph(make_buffer, reason, monkeypatch):
    learner, _ = learner_of(SOFT, monkeypatch, replay=make_buffer())
    learner.update._parameters = [OnGpu(torch.zeros(1))]
    assert learner.how == Chosen("CUDA graph", {"CUDA graph of 4 x sample and step": reason})


def test_a_buffer_with_another_sampler_is_learned_from(monkeypatch):
    replay = buffer_of(sampler=SamplerWithoutReplacement())
    replay.extend(collected(0))
    learner, replays = learner_of(SOFT, monkeypatch, replay=replay)
    assert learner().shape == (4,)
    assert len(replays) == 4 - WARM_UP_STEPS  # of a graph of one step


def test_updaters_that_count_in_python_step_outside_of_the_graph(monkeypatch):
    learner, replays = learner_of(("feedforward", their_hard_updater, {}), monkeypatch)
    plain, replay = updates_of("feedforward", their_hard_updater, {}), replay_of()
    for buffer in (replay, learner.replay):
        buffer.extend(collected(0))
    assert (learner() == torch.stack([plain(replay.sample()) for _ in range(4)])).all()
    assert same_weights(plain.loss, learner.update.loss)
    assert len(replays) == 4 - WARM_UP_STEPS
    learner.update._parameters = [OnGpu(torch.zeros(1))]
    reason = "the target updater HardUpdate may count its steps in Python"
    assert learner.how == Chosen("CUDA graph", {"CUDA graph of 4 x sample and step": reason})


def test_without_graphs_the_updates_reason_is_told(monkeypatch):
    step = updates_of(*SOFT, cuda_graph=False)
    step._parameters = [OnGpu(torch.zeros(1))]
    how = Learner(step, replay_of(), n_steps=4).how
    assert how == Chosen("torch's operations", {"CUDA graph": "cuda_graph is False"})


def test_steps_that_cannot_be_captured_together_are_taken_one_by_one(monkeypatch):
    errors = [RuntimeError("it waits")]

    def captured(function, generators):
        if errors:
            raise errors.pop()
        return graph_tools.captured(function, generators)

    learner, _ = learner_of(SOFT, monkeypatch)
    learner.replay.extend(collected(0))
    learner()
    monkeypatch.setattr(update_module, "captured", captured)
    assert learner().shape == (4,)
    learner.update._parameters = [OnGpu(torch.zeros(1))]
    reason = "4 steps on samples of 3 rows cannot be captured: it waits"
    assert learner.how == Chosen("CUDA graph", {"CUDA graph of 4 x sample and step": reason})


NO_ROOM = torch.OutOfMemoryError("tried to allocate 9 GiB")
ERRORS = [
    (False, NO_ROOM, "a CUDA graph of 4 steps on samples of 3 rows is out of memory: tried to"),
    (True, RuntimeError("it waits"), "Learner: 4 steps on samples of 3 rows cannot be captured"),
]


@pytest.mark.parametrize(("must_be_graph", "error", "message"), ERRORS)
def test_a_capture_that_fails_is_an_error(must_be_graph, error, message, monkeypatch):
    learner, _ = learner_of(SOFT, monkeypatch)
    learner.update.must_be_graph = must_be_graph
    learner.replay.extend(collected(0))
    learner()
    monkeypatch.setattr(update_module, "captured", raising(error))
    with pytest.raises(type(error), match=message):
        learner()
