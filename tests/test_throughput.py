"""The benchmark: what stands beside us computes the same, and the recipe runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.throughput.timing import Operations
from support.throughput.updates import (
    HIDDEN_DIM,
    SIMPLE_SPREAD,
    PlainUpdate,
    TorchRLUpdate,
    our_update,
    random_batch,
)

from qmix_trl import RecurrentAgent
from qmix_trl.native.networks import dense
from qmix_trl.native.networks import library as networks

RECIPE = Path(__file__).parents[1] / "recipes" / "throughput.py"


@pytest.mark.parametrize("resets", [False, True])
def test_the_loop_of_cells_learns_what_we_learn(resets):
    torch.manual_seed(0)
    agent = RecurrentAgent(*SIMPLE_SPREAD[:3], hidden_dim=HIDDEN_DIM)
    ours = our_update(agent, SIMPLE_SPREAD, interior_truncations=4 if resets else 0)
    plain = PlainUpdate(SIMPLE_SPREAD)
    for networks_of in (plain.networks, plain.targets):
        agents, mixer = networks_of
        agents.load_state_dict(agent.state_dict())
        flat = ours.loss.mixer_params.flatten_keys(".").items()
        named = {name.removeprefix("module."): x for name, x in flat}
        mixer.load_state_dict(named)
    batch = random_batch(resets=resets)[:4, :30]
    for _ in range(3):
        torch.testing.assert_close(ours(batch)["loss"], plain(batch), rtol=1e-4, atol=1e-5)


def test_torchrls_update_learns():
    update, batch = TorchRLUpdate(SIMPLE_SPREAD), random_batch(resets=False)[:4, :10].contiguous()
    losses = []
    for _ in range(20):
        losses.append(update.loss(batch)["loss"].item())
        update(batch)
    assert losses[-1] < losses[0]


def test_an_update_is_few_operations(monkeypatch):
    agent = RecurrentAgent(*SIMPLE_SPREAD[:3], hidden_dim=HIDDEN_DIM)
    ours = our_update(agent, SIMPLE_SPREAD, interior_truncations=0)
    batch = random_batch(resets=False)
    ours(batch)
    counts = []
    for serves in (networks.serves, lambda *_: False):
        monkeypatch.setattr(networks, "serves", serves)
        with Operations() as mode:
            ours(batch)
        counts.append(mode.count)
    if networks.missing(dense.library, torch.float32) is None:
        assert counts[0] < 400 < counts[1]


def test_the_recipe_runs(tmp_path):
    asked = "--what env collect update-mlp train-1 --scenarios simple_spread --envs 2"
    files = ["--json", str(tmp_path / "rows.json"), "--picture", str(tmp_path / "a.png")]
    words = [*asked.split(), "--engines", "eager", "--rounds", "1", *files]
    command = [sys.executable, str(RECIPE), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["what"] for row in rows] == ["env", "collect", "update-mlp", "train-1"]
    for row in rows:
        assert 0 < row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert row["ms"] > 0
    assert len(done.stdout.splitlines()) == 1 + len(rows) + 1
    assert (tmp_path / "a.png").exists()
