"""The update step and the periods of target networks."""

import graph_tools
import pytest
import torch
from loss_tools import make_loss, random_batch, some_ends
from torchrl.objectives import HardUpdate, SoftUpdate
from update_tools import (
    Looks,
    OnGpu,
    let_graphs_be_taken,
    raising,
    same_weights,
    updates_of,
)

from qmix_trl import Update, make_hard_updater, make_soft_updater, update
from qmix_trl.agents import gru_triton
from qmix_trl.chosen import Chosen
from qmix_trl.keys import CUT_STEPS
from qmix_trl.native.networks import library as networks


@pytest.fixture(autouse=True)
def _kernels_serve(monkeypatch):
    """Let the pretended GPU have a kernel for the GRU, whatever the dtype."""
    monkeypatch.setattr(gru_triton, "why_not", lambda rnn: None)


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


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
def test_soft_updater_moves_each_parameter_as_that_of_torchrl(kind):
    losses = [make_loss(kind, td_lambda=0.5) for _ in range(2)]
    updaters = make_soft_updater(losses[0], tau=0.25), SoftUpdate(losses[1], tau=0.25)
    for loss, updater in zip(losses, updaters, strict=True):
        loss.double()  # as a user may move it, after the updater is made
        with torch.no_grad():
            for i, parameter in enumerate(loss.parameters()):
                parameter.mul_(1 + i)
        updater.step()
    ours, theirs = (loss.state_dict() for loss in losses)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.equal(theirs[key]), key


@pytest.mark.parametrize("max_grad_norm", [0, -1, float("nan")])
def test_a_norm_that_stops_all_learning_is_refused(max_grad_norm):
    with pytest.raises(ValueError, match="expected max_grad_norm above 0, got"):
        Update(None, None, None, max_grad_norm=max_grad_norm)


def test_a_target_updater_of_another_loss_is_refused():
    loss, other = make_loss(), make_loss()
    adam = torch.optim.Adam(loss.parameters())
    for updater in (make_soft_updater(other, tau=0.1), None):
        with pytest.raises(ValueError, match=r"expected a target updater of this loss, .* got "):
            Update(loss, adam, updater, max_grad_norm=1.0)


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


def test_updates_overfit_one_batch():
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


def test_hard_targets_are_copied_at_every_nth_step_inside_graphs():
    loss = make_loss()
    updater = make_hard_updater(loss, period_updates=3)
    updater._first = OnGpu(torch.zeros(1))

    def four_steps():
        for _ in range(4):
            with torch.no_grad():
                for parameter in loss.parameters():
                    parameter.add_(1.0)
            updater.step()

    _, replay = graph_tools.captured(four_steps)
    for n in (4, 8, 12, 16):
        replay()
        since = n - 3 * (n // 3)  # steps, each of which added 1 to the online weights
        behind = weight(loss.agent_params) - weight(loss.target_agent_params)
        torch.testing.assert_close(behind, torch.full_like(behind, since))
        assert updater.counter == since
    bias = ("module", "V", "2", "bias")  # one step after the copy at the 15th
    assert torch.equal(loss.target_mixer_params[bias] + 1, loss.mixer_params[bias].data)


def test_hard_targets_go_on_from_a_saved_count():
    copied = make_hard_updater(make_loss(), period_updates=3)
    for _ in range(2):
        copied.step()
    assert copied.state_dict()["counter"] == copied.counter == 2
    updater = make_hard_updater(make_loss(), period_updates=3)
    updater.load_state_dict(copied.state_dict())
    updater.step()  # the third
    assert torch.equal(
        weight(updater.loss_module.target_agent_params), weight(updater.loss_module.agent_params)
    )
    assert updater.counter == 0


# ------------------------------------------------------------------------ as a CUDA graph

LEARNED = ("loss", "total_value", "grad_norm")
SETTINGS = [
    ("recurrent", make_hard_updater, {"period_updates": 2}),
    ("feedforward", make_soft_updater, {"tau": 0.1}),
]


def batches(n=8):
    """Return batches, all of one shape but one."""
    shapes = [(3, 4)] * (n - 2) + [(2, 5), (3, 4)]
    return [
        random_batch(*shape, seed=i, ends=some_ends(*shape, seed=i))
        for i, shape in enumerate(shapes)
    ]


def their_hard_updater(loss):
    """Return TorchRL's updater, which counts in Python; it copies at every second step."""
    return HardUpdate(loss, value_network_update_interval=1)


@pytest.mark.parametrize(
    ("kind", "make_updater", "settings"), [*SETTINGS, ("feedforward", their_hard_updater, {})]
)
def test_steps_by_a_graph_equal_eager_steps(kind, make_updater, settings, monkeypatch):
    plain = updates_of(kind, make_updater, settings)
    by_graph = updates_of(kind, make_updater, settings)
    replays = let_graphs_be_taken(by_graph, monkeypatch)
    for batch in batches():
        expected, found = plain(batch), by_graph(batch)
        assert (expected == found).all()
    assert len(replays) == len(batches()) - update.WARM_UP_STEPS - 1  # one has another shape
    assert same_weights(plain.loss, by_graph.loss)


def test_a_step_that_cannot_be_captured_is_taken_eagerly(monkeypatch):
    plain, by_graph = (updates_of(*SETTINGS[0]) for _ in range(2))
    let_graphs_be_taken(by_graph, monkeypatch)
    monkeypatch.setattr(update, "captured", raising(RuntimeError("RuntimeError it waits")))
    for batch in batches():
        assert (plain(batch) == by_graph(batch)).all()
    by_graph._parameters = [OnGpu(torch.zeros(1))]
    reason = "a step on [3, 4] cannot be captured: RuntimeError it waits"
    assert by_graph.how == Chosen("torch's operations", {"CUDA graph": reason})


NO_ROOM = torch.OutOfMemoryError("tried to allocate 9 GiB")
ERRORS = [
    ("auto", NO_ROOM, "a CUDA graph of a step on .3, 4. is out of memory: tried to allocate 9 GiB"),
    (True, NO_ROOM, "a CUDA graph of a step on .3, 4. is out of memory: tried to allocate 9 GiB"),
    (True, RuntimeError("it waits"), "Update: a step on .3, 4. cannot be captured: it waits"),
]


@pytest.mark.parametrize(("cuda_graph", "error", "message"), ERRORS)
def test_a_capture_that_fails_is_an_error(cuda_graph, error, message, monkeypatch):
    step = updates_of(*SETTINGS[0])
    let_graphs_be_taken(step, monkeypatch)
    step.must_be_graph = cuda_graph is True
    monkeypatch.setattr(update, "captured", raising(error))
    for batch in batches()[: update.WARM_UP_STEPS]:
        step(batch)
    with pytest.raises(type(error), match=message):
        step(batches()[0])


def test_a_graph_that_is_asked_for_is_built_or_an_error():
    with pytest.raises(ValueError, match="expected parameters on a GPU for a graph, got cpu"):
        updates_of(*SETTINGS[0], cuda_graph=True)


def on_gpu_with(optimizer, **arguments):
    """Return an update whose parameters say that they are on a GPU."""
    loss = make_loss()
    updater = make_soft_updater(loss, tau=0.1)
    return Update(loss, optimizer, updater, max_grad_norm=1.0, **arguments)


def test_an_optimizer_that_no_graph_can_hold_is_told_before_the_first_step():
    optimizer = torch.optim.Adam([OnGpu(torch.zeros(1))], lr=0.1)
    reason = "the optimizer is not capturable; make it with capturable=True"
    with pytest.warns(UserWarning, match=f"Update: no CUDA graph: {reason}"):
        step = on_gpu_with(optimizer)
    assert step.how == Chosen("torch's operations", {"CUDA graph": reason})
    message = "expected an optimizer that a CUDA graph can hold, got Adam with capturable=False"
    with pytest.raises(ValueError, match=message):
        on_gpu_with(optimizer, cuda_graph=True)


@pytest.mark.parametrize("cuda_graph", ["auto", True])
@pytest.mark.filterwarnings("error")
def test_optimizers_that_a_graph_can_hold(cuda_graph):
    parameters = [OnGpu(torch.zeros(1))]
    capturable = torch.optim.RMSprop(parameters, lr=0.1, capturable=True)
    without_the_choice = torch.optim.SGD(parameters, lr=0.1)
    for optimizer in (capturable, without_the_choice):
        assert on_gpu_with(optimizer, cuda_graph=cuda_graph).how == Chosen("CUDA graph")


def test_a_graph_cannot_write_priorities_to_the_callers_batch():
    loss = make_loss(write_priority="rows")
    capturable = torch.optim.RMSprop([OnGpu(torch.zeros(1))], lr=0.1, capturable=True)
    updater = make_soft_updater(loss, tau=0.1)
    step = Update(loss, capturable, updater, max_grad_norm=1.0)
    reason = "the loss writes priorities to its batch, and a graph has one of its own"
    assert step.how == Chosen("torch's operations", {"CUDA graph": reason})
    with pytest.raises(ValueError, match=f"Update: {reason}; take write_priority=None"):
        Update(loss, capturable, updater, max_grad_norm=1.0, cuda_graph=True)


def test_how_names_the_layers_in_cpp():
    step = updates_of(*SETTINGS[0])
    assert step.how == Chosen("layers in C++")
    step(batches(1)[0])
    assert step.how == Chosen("layers in C++")


def test_how_names_torch_where_the_layers_are_not_built(monkeypatch):
    monkeypatch.setattr(networks, "why_not", lambda *_: "no C++ compiler was found")
    how = updates_of(*SETTINGS[0]).how
    assert how == Chosen("torch's operations", {"layers in C++": "no C++ compiler was found"})


def test_how_names_torch_for_other_dtypes():
    loss = make_loss("recurrent").to(torch.bfloat16)
    optimizer, targets = torch.optim.SGD(loss.parameters(), 0.1), make_soft_updater(loss, tau=0.1)
    how = Update(loss, optimizer, targets, max_grad_norm=1.0).how
    assert how.name == "torch's operations"
    assert "bfloat16" in how.passed_over["layers in C++"]


def test_how_names_torch_compile():
    how = updates_of(*SETTINGS[1], compile=True).how
    reason = "torch.compile traces torch's operations, but for a GRU over sequences"
    assert how == Chosen("torch.compile", {"layers in C++": reason})


def test_compile_is_true_or_false():
    with pytest.raises(ValueError, match="compile of True or False, got 'auto'"):
        updates_of(*SETTINGS[0], compile="auto")


GRAPHS = [
    ("auto", Chosen("CUDA graph")),
    (False, Chosen("torch's operations", {"CUDA graph": "cuda_graph is False"})),
]


@pytest.mark.parametrize(("cuda_graph", "how"), GRAPHS)
def test_how_names_the_graph_on_a_gpu(cuda_graph, how):
    step = updates_of(*SETTINGS[0], cuda_graph=cuda_graph)
    step._parameters = [OnGpu(torch.zeros(1))]
    step.no_graph = None if cuda_graph else step.no_graph
    assert step.how == how


def test_how_names_a_compiled_graph_and_a_gru_without_a_kernel(monkeypatch):
    step = updates_of(*SETTINGS[0], compile=True)
    step._parameters, step.no_graph = [OnGpu(torch.zeros(1))], None
    monkeypatch.setattr(gru_triton, "why_not", lambda rnn: f"too wide: {rnn.hidden_size}")
    width = step.loss.agent.hidden_dim
    assert step.how == Chosen("CUDA graph, compiled", {"GRU kernel": f"too wide: {width}"})


@pytest.mark.slow
def test_compiled_steps_equal_eager_steps():
    plain = updates_of(*SETTINGS[1])
    compiled = updates_of(*SETTINGS[1], compile=True)
    for batch in batches()[:2]:
        expected, found = plain(batch), compiled(batch)
        for name in LEARNED:
            torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize(("kind", "make_updater", "settings"), SETTINGS)
@pytest.mark.parametrize("n_cut_steps", [0, 2, None])
def test_an_update_never_waits_for_a_gpu(kind, make_updater, settings, n_cut_steps, monkeypatch):
    step = updates_of(kind, make_updater, settings)
    let_graphs_be_taken(step, monkeypatch)
    step.no_graph = "by single operations"
    given = batches(3)
    if n_cut_steps is not None:
        given = [
            batch.set(CUT_STEPS, torch.zeros(*batch.shape, n_cut_steps, dtype=torch.int64))
            for batch in given
        ]
    with Looks() as looks:
        for batch in given:
            step(batch)
    assert looks.found == []


def test_operations_that_wait_are_noticed():
    x = torch.arange(3.0)
    with Looks() as looks:
        x.sum().item()
        x[x > 1]
    assert len(looks.found) >= 2
