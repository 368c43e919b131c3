"""Equality of the GPU with the CPU, and a run on the GPU; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from loss_tools import make_loss, random_batch, some_ends
from torch import nn
from train import train

from qmix_trl import Update, make_hard_updater
from qmix_trl.agents import gru, gru_triton

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "balance_qmix_recurrent.yaml"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
def test_the_loss_equals_the_cpus(kind):
    loss, batch = make_loss(kind, td_lambda=0.8), random_batch(4, 12, ends=some_ends(4, 12))
    expected = loss(batch)["loss"]
    on_device = loss.to("cuda")(batch.to("cuda"))["loss"]
    torch.testing.assert_close(on_device.cpu(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", ["episodes", "slices"])
def test_a_run_on_the_device(rows, tmp_path):
    overrides = (
        "runtime.device=cuda env.n_envs=4 env.max_steps=6 collection.steps=6 "
        f"collection.rows={rows} collection.total_frames=48 update.per_batch=2 "
        "replay.batch_rows=2 evaluation.episodes=3"
    )
    folder = train(str(CONFIG), overrides.split(), str(tmp_path))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["device"].startswith("cuda")
    assert summary["frames"] == 48


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
            batch = batch.apply(lambda x: x.float() if x.is_floating_point() else x)
            found.append(update(batch.to("cuda"))["loss"])
        assert (update.how.name == "CUDA graph") == cuda_graph
        return torch.stack(found)

    torch.testing.assert_close(losses(True), losses(False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [True, False])
def test_the_triton_gru_equals_the_steps(hidden):
    torch.manual_seed(0)
    rnn = nn.GRUCell(64, 64, device="cuda")
    x = torch.randn(5, 20, 3, 64, device="cuda", requires_grad=True)
    is_init = torch.rand(5, 20, 1, device="cuda") < 0.1
    first = torch.randn(5, 3, 64, device="cuda") if hidden else None
    assert gru_triton.serves(x, rnn)

    def both(hiddens):
        return [hiddens, *torch.autograd.grad(hiddens.square().sum(), [x, *rnn.parameters()])]

    gates = nn.functional.linear(x, rnn.weight_ih, rnn.bias_ih)
    steps = gru.unroll_by_steps(gates, is_init, first, rnn.weight_hh, rnn.bias_hh)
    for one, other in zip(
        both(gru_triton.unroll(x, is_init, first, rnn)), both(steps), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
