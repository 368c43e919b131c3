"""The same numbers on a GPU, and a run there; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from test_loss import make_loss, random_batch, some_ends
from train import train

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "balance_qmix.yaml"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("kind", ["recurrent", "feedforward"])
def test_the_loss_is_that_of_the_cpu(kind):
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
