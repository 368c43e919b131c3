"""Equality of the GPU with the CPU, and a run on the GPU; skipped where there is none."""

import pytest
import torch
from loss_tools import make_loss, random_batch, some_ends
from recipe_tools import AGENTS, RECIPES, metrics, summary
from train import train
from train_tools import SAVED, check_same

from qmix_trl import ConfigError, Update, make_hard_updater
from qmix_trl.agents import gru, gru_triton

CONFIG = RECIPES / "configs" / "balance_qmix_recurrent.yaml"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def in_dtype(tree, dtype):
    """Return a TensorDict whose floats have a dtype."""
    return tree.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)


# On the device Triton computes a GRU in float32, and torch step by step in float64.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
def test_loss_and_gradients_equal_the_cpus(kind, dtype, tolerance):
    loss, batch = make_loss(kind, td_lambda=0.8), random_batch(4, 12, ends=some_ends(4, 12))

    def both():
        value = loss(batch)["loss"]
        return [x.cpu() for x in (value, *torch.autograd.grad(value, list(loss.parameters())))]

    expected = both()
    loss, batch = loss.to(dtype).to("cuda"), in_dtype(batch, dtype).to("cuda")
    for ours, theirs in zip(both(), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def run_on_the_device(folder, *overrides):
    """Return the folder of a run of two batches, with enough updates for a captured one."""
    small = (
        "runtime.device=cuda env.n_envs=4 env.max_steps=6 collection.steps=6 "
        "collection.total_frames=48 update.per_batch=6 replay.batch_rows=2 evaluation.episodes=3"
    )
    return train(str(CONFIG), [*small.split(), *overrides], str(folder))


RUNS = {
    "recurrent": [],
    "slices": ["collection.rows=slices"],
    "burn-in": ["collection.rows=slices", "replay.burn_in=2"],
    "feedforward": [AGENTS["feedforward"]],
    "repeated actions": ["exploration.repeat_exponent=1.5"],
    "own weights": ["agent.share_parameters=false"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_the_device_falls_back_nowhere(name, tmp_path):
    found = summary(run_on_the_device(tmp_path, *RUNS[name]))
    assert found["device"].startswith("cuda")
    assert found["frames"] == 48
    ran = {part: found[part] for part in ("engine", "collector", "update")}
    update = "CUDA graph of 6 x sample and step"
    collector = "CUDA graph with policy kernel"
    if name == "own weights":
        collector = f"CUDA graph (no {collector}: agents have weights of their own)"
    assert ran == {"engine": "kernel", "collector": collector, "update": update}


def test_a_seed_gives_the_same_metrics_twice_on_one_device(tmp_path):
    one, other = (metrics(run_on_the_device(tmp_path / name)) for name in "ab")
    assert one == other


@pytest.mark.parametrize("name", ["recurrent", "slices", "repeated actions"])
def test_a_resumed_run_on_the_device_equals_an_unbroken_one(name, tmp_path):
    overrides = [*RUNS[name], SAVED, "evaluation.every_frames=1"]
    longer = "collection.total_frames=96"
    whole = run_on_the_device(tmp_path / "whole", *overrides, longer)
    half = run_on_the_device(tmp_path / "half", *overrides)
    train(None, [longer], str(half.parent), str(half))
    check_same(half, whole)


def test_a_run_of_the_eager_engine_says_why_there_is_no_graph(tmp_path):
    found = summary(run_on_the_device(tmp_path, "env.engine=eager"))
    assert found["engine"] == "eager"
    assert found["collector"].startswith("step loop (no CUDA graph: ")
    assert found["update"].startswith("CUDA graph of ")


def test_there_is_no_inductor_engine_on_the_device(tmp_path):
    with pytest.raises(ConfigError, match="there is no inductor engine for cuda"):
        run_on_the_device(tmp_path, "env.engine=inductor")


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
def test_updates_by_a_graph_equal_updates_by_operation(kind):
    def losses(cuda_graph):
        loss = make_loss(kind, td_lambda=0.8).float().to("cuda")
        optimizer = torch.optim.Adam(loss.parameters(), fused=True, capturable=True)
        updater = make_hard_updater(loss, period_updates=2)
        update = Update(loss, optimizer, updater, max_grad_norm=1.0, cuda_graph=cuda_graph)
        found = []
        for i in range(8):
            batch = random_batch(4, 12, seed=i, ends=some_ends(4, 12, seed=i))
            found.append(update(in_dtype(batch, torch.float32).to("cuda"))["loss"])
        assert (update.how.name == "CUDA graph") == cuda_graph
        return torch.stack(found)

    torch.testing.assert_close(losses(True), losses(False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("own", [(), (3,)])
@pytest.mark.parametrize("width", [10, 64, 128])
def test_the_gru_equals_the_steps_in_float64(width, own, hidden, monkeypatch):
    generator = torch.Generator("cuda").manual_seed(0)
    to = {"device": "cuda", "generator": generator}
    shapes = [(5, 20, 3, 3 * width), (5, 3, width), (*own, 3 * width, width), (*own, 3 * width)]
    gates, first, weight, bias = (torch.randn(s, **to) for s in shapes)
    floats = [gates, first if hidden else None, weight / width**0.5, bias]
    is_init = torch.rand(5, 20, 1, **to) < 0.1
    assert gru_triton.suits(gates, weight, bias)

    def both(unroll, dtype):
        given = [None if x is None else x.to(dtype).requires_grad_() for x in floats]
        hiddens = unroll(given[0], is_init, *given[1:])
        wanted = [x for x in given if x is not None]
        return [hiddens, *torch.autograd.grad(hiddens.square().sum(), wanted)]

    launched = []
    forward = gru_triton.forward
    monkeypatch.setattr(
        gru_triton, "forward", lambda *x, **keep: (launched.append(1), forward(*x, **keep))[1]
    )
    found = both(gru._unroll, torch.float32)
    assert launched
    for one, other in zip(found, both(gru.unroll_by_steps, torch.float64), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)
    for _ in range(10):  # a moving result would be a race
        assert all(map(torch.equal, both(gru._unroll, torch.float32), found))
