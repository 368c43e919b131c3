"""The capture of CUDA graphs: what a failure leaves behind, and the stand-in of other tests."""

from contextlib import contextmanager

import graph_tools
import pytest
import torch

from qmix_trl import cuda_graph


class FakeGraph:
    """A graph without a GPU."""

    def __init__(self):
        self.registered = []

    def register_generator_state(self, generator):
        self.registered.append(generator)

    def replay(self):
        """Do nothing."""


@pytest.fixture
def streams(monkeypatch):
    """Stand in for the streams of torch.cuda; return the current one, in a list."""
    current = ["the user's"]

    @contextmanager
    def graph(graph):
        current[0] = "the capture's"
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        current[0] = "the user's"

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    return current


def test_a_failed_capture_leaves_the_stream_and_names_its_first_cause(streams):
    def waits():
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    with pytest.raises(RuntimeError, match=r"^RuntimeError operation not permitted when stream is"):
        cuda_graph.captured(waits)
    assert streams == ["the user's"]


def test_a_graph_without_room_is_an_error_of_its_own(streams):
    def allocates():
        raise torch.OutOfMemoryError("tried to allocate 101 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="101 GiB"):
        cuda_graph.captured(allocates)
    assert streams == ["the user's"]


def test_generators_are_registered_before_the_capture(streams):
    generator = torch.Generator()
    _, replay = cuda_graph.captured(lambda: None, [generator])
    assert replay.__self__.registered == [generator]


# ------------------------------------------------------------------------ the stand-in


def test_the_stand_in_repeats_operations_and_nothing_of_python():
    x, total, generator = torch.ones(3), torch.zeros(3), torch.Generator().manual_seed(0)
    counted = []

    def function():
        counted.append(1)
        drawn = torch.rand(3, generator=generator)
        total.add_(x * len(counted))
        return drawn, total * 2

    (drawn, doubled), replay = graph_tools.captured(function, [generator])
    assert torch.equal(total, torch.zeros(3))  # a capture computes nothing
    expected = torch.Generator().manual_seed(0)
    for i in (1, 2):
        x.fill_(i)
        replay()
        assert torch.equal(drawn, torch.rand(3, generator=expected))
        assert total[0] == sum(range(i + 1))  # x, not x times the number of replays
        assert torch.equal(doubled, total * 2)
    assert counted == [1]


def test_the_stand_in_repeats_a_gradient_step():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 1), torch.randn(5, 4)
    twin = torch.nn.Linear(4, 1)
    twin.load_state_dict(model.state_dict())

    def step_of(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)

        def step():
            for parameter in model.parameters():
                parameter.grad = None
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    plain, recorded = step_of(twin), step_of(model)
    assert torch.equal(recorded(), plain())  # the state of Adam is there
    loss, replay = graph_tools.captured(recorded)
    for i in range(3):
        x.add_(i)
        replay()
        assert torch.equal(loss, plain())
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
