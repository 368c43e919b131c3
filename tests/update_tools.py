"""Gradient steps for tests, and a GPU that is pretended."""

import graph_tools
import torch
from loss_tools import make_loss
from torch.utils._python_dispatch import TorchDispatchMode

from qmix_trl import Update, update
from qmix_trl.native.networks import library as networks
from qmix_trl.targets import HardTargets


class OnGpu(torch.nn.Parameter):
    """A parameter that says that it is on a GPU."""

    is_cuda = True


def updates_of(kind, make_updater, settings, *, device="cpu", double_q=True, **arguments):
    """Return a gradient step on a loss that is new, and always the same."""
    bounded = kind == "feedforward"
    loss = make_loss(kind, td_lambda=0.8, bounded_targets=bounded, double_q=double_q).to(device)
    # Fused: other forms of Adam read their count of steps on the CPU.
    capturable = device == "cuda"
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2, fused=True, capturable=capturable)
    updater = make_updater(loss, **settings)
    return Update(loss, optimizer, updater, max_grad_norm=1.0, **arguments)


def let_graphs_be_taken(step, monkeypatch):
    """Let an update take recorded graphs in place of CUDA graphs; return the replays."""
    replays = []

    def captured(function, generators):
        outputs, replay = graph_tools.captured(function, generators)

        def counted():
            replays.append(replay)
            replay()

        return outputs, counted

    monkeypatch.setattr(update, "captured", captured)
    monkeypatch.setattr(update, "warmed_up", lambda function: function())
    # A recording sees no C++, and on a GPU nothing reads the mask.
    monkeypatch.setattr(networks, "serves", lambda *_: False)
    monkeypatch.setattr("qmix_trl.rows.may_be_padded", lambda mask: True)
    step.no_graph = None
    if isinstance(step.target_updater, HardTargets):
        step.target_updater._first = OnGpu(torch.zeros(1))
    return replays


def raising(error):
    """Return a function that raises an error."""

    def function(*arguments):
        raise error

    return function


def same_weights(loss, other):
    """Say whether two losses' weights and targets are equal."""
    pairs = zip(loss.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


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
