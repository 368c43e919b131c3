"""The throughput recipe: its baseline updates compute the same loss, and it runs."""

import json

import pytest
import torch
from recipe_tools import call
from support.throughput import training
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


@pytest.mark.parametrize("resets", [False, True])
def test_the_loop_of_cells_learns_what_we_learn(resets):
    torch.manual_seed(0)
    agent = RecurrentAgent(*SIMPLE_SPREAD[:3], hidden_dim=HIDDEN_DIM)
    ours = our_update(agent, SIMPLE_SPREAD)
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
    ours = our_update(agent, SIMPLE_SPREAD)
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


@pytest.mark.slow
def test_the_recipe_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "N_ENVS", 32)
    asked = "--what env collect update-mlp train-1 --scenarios simple_spread --envs 2"
    files = ["--json", str(tmp_path / "timings.json"), "--picture", str(tmp_path / "a.png")]
    call("throughput.py", *asked.split(), "--engines", "eager", "--rounds", "1", *files)
    timings = json.loads((tmp_path / "timings.json").read_text())
    assert [timing["what"] for timing in timings] == ["env", "collect", "update-mlp", "train-1"]
    for timing in timings:
        assert 0 < timing["ratio"]["min"] <= timing["ratio"]["median"] <= timing["ratio"]["max"]
        assert timing["ms"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(timings) + 1
    assert (tmp_path / "a.png").exists()
