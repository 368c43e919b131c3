"""The update step and the periods of target networks."""

import copy

import pytest
import torch
from loss_tools import make_loss, random_batch, some_ends
from torch.utils._python_dispatch import TorchDispatchMode

from qmix_trl import Update, make_hard_updater, make_soft_updater, update
from qmix_trl.chosen import Chosen
from qmix_trl.keys import CUT_STEPS
from qmix_trl.native.networks import library as networks


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


# ------------------------------------------------------------------------ as a CUDA graph

LEARNED = ("loss", "total_value", "grad_norm")
SETTINGS = [
    ("recurrent", make_hard_updater, {"period_updates": 2}),
    ("feedforward", make_soft_updater, {"tau": 0.1}),
]


def updates_of(kind, make_updater, settings, **arguments):
    """Return a gradient step on a loss that is new, and always the same."""
    loss = make_loss(kind, td_lambda=0.8)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    updater = make_updater(loss, **settings)
    return Update(loss, optimizer, updater, max_grad_norm=1.0, **arguments)


def batches(n=8):
    """Return batches, all of one shape but one."""
    shapes = [(3, 4)] * (n - 2) + [(2, 5), (3, 4)]
    return [
        random_batch(*shape, seed=i, ends=some_ends(*shape, seed=i))
        for i, shape in enumerate(shapes)
    ]


def stand_in(monkeypatch, by_graph):
    """Let a graph be taken without a GPU: it is computed at each replay; return the replays."""
    replays = []

    def captured(function):
        kept = copy.deepcopy((by_graph.loss.state_dict(), by_graph.optimizer.state_dict()))
        outputs = function()  # what is captured is not computed
        by_graph.loss.load_state_dict(kept[0])
        by_graph.optimizer.load_state_dict(kept[1])

        def replay():
            replays.append(outputs.update_(function()))

        return outputs, replay

    monkeypatch.setattr(update, "captured", captured)
    monkeypatch.setattr(update, "warmed_up", lambda function: function())
    by_graph._no_graph = None
    return replays


@pytest.mark.parametrize(("kind", "make_updater", "settings"), SETTINGS)
def test_steps_by_a_graph_equal_eager_steps(kind, make_updater, settings, monkeypatch):
    plain = updates_of(kind, make_updater, settings)
    by_graph = updates_of(kind, make_updater, settings)
    replays = stand_in(monkeypatch, by_graph)
    for batch in batches():
        expected, found = plain(batch), by_graph(batch)
        assert (expected == found).all()
    assert len(replays) == len(batches()) - update.WARM_UP_STEPS - 1  # one has another shape
    for one, other in zip(
        plain.loss.state_dict().values(), by_graph.loss.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_step_that_cannot_be_captured_is_taken_eagerly(monkeypatch):
    def refuse(function):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    plain, by_graph = (updates_of(*SETTINGS[0]) for _ in range(2))
    stand_in(monkeypatch, by_graph)
    monkeypatch.setattr(update, "captured", refuse)
    for batch in batches():
        assert (plain(batch) == by_graph(batch)).all()
    by_graph._parameters = [OnGpu(torch.zeros(1))]
    reason = "RuntimeError operation not permitted when stream is capturing"
    assert by_graph.how == Chosen(
        "torch's operations", {"CUDA graph": f"a step cannot be captured: {reason}"}
    )


def test_a_graph_that_is_asked_for_is_built_or_an_error():
    with pytest.raises(ValueError, match="expected parameters on a GPU for a graph, got cpu"):
        updates_of(*SETTINGS[0], cuda_graph=True)


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


class OnGpu(torch.nn.Parameter):
    """A parameter that says that it is on a GPU."""

    is_cuda = True


GRAPHS = [
    ("auto", Chosen("CUDA graph")),
    (False, Chosen("torch's operations", {"CUDA graph": "cuda_graph is False"})),
]


@pytest.mark.parametrize(("cuda_graph", "how"), GRAPHS)
def test_how_names_the_graph_on_a_gpu(cuda_graph, how):
    step = updates_of(*SETTINGS[0], cuda_graph=cuda_graph)
    step._parameters = [OnGpu(torch.zeros(1))]
    step._no_graph = None if cuda_graph else step._no_graph
    assert step.how == how


@pytest.mark.slow
def test_compiled_steps_equal_eager_steps():
    plain = updates_of(*SETTINGS[1])
    compiled = updates_of(*SETTINGS[1], compile=True)
    for batch in batches()[:2]:
        expected, found = plain(batch), compiled(batch)
        for name in LEARNED:
            torch.testing.assert_close(found[name], expected[name])


class Looks(TorchDispatchMode):
    """Collects operations for which the host would wait for a GPU."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if any(looks in name for looks in self.names) or _is_masked_index(name, args):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def _is_masked_index(name, args):
    """Say whether places are chosen by a mask, whose number has to be known."""
    return name.startswith("aten::index") and any(
        x is not None and x.dtype == torch.bool
        for x in args[1]
        if isinstance(args[1], (list, tuple))
    )


@pytest.mark.parametrize(("kind", "make_updater", "settings"), SETTINGS)
@pytest.mark.parametrize("n_cut_steps", [0, 2, None])
def test_an_update_never_waits_for_a_gpu(kind, make_updater, settings, n_cut_steps, monkeypatch):
    monkeypatch.setattr(networks, "serves", lambda *_: False)
    monkeypatch.setattr("qmix_trl.rows.may_be_padded", lambda mask: True)  # asks on the CPU alone
    loss = make_loss(kind, td_lambda=0.8)
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    step = Update(loss, optimizer, make_updater(loss, **settings), max_grad_norm=1.0)
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
