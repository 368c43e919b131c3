"""The components are built as configured."""

import pytest
import torch
from recipe_tools import tiny
from support import components
from torchrl.data import RandomSampler, SamplerWithoutReplacement

from qmix_trl import EnvDims, MachineError, SequenceRows, load_config
from qmix_trl.trained import build_agent


def test_the_loss_is_built_as_configured(tmp_path):
    overrides = ["collection.rows=slices", "replay.burn_in=2", "loss.gamma=0.5"]
    config = load_config(tiny(tmp_path), overrides)
    dims = EnvDims(n_agents=2, observation_dim=3, n_actions=4, state_shape=torch.Size([5]))
    agent = build_agent(config, dims, torch.device("cpu"))
    loss = components.build_loss(config, agent, None, dims)
    assert (loss.burn_in, loss.gamma) == (2, 0.5)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"max_steps": None, "burn_in": 0}),
        (["collection.rows=slices", "replay.burn_in=2"], {"max_steps": 4, "burn_in": 2}),
    ],
    ids=["episodes", "slices"],
)
def test_the_replay_buffer_is_built_as_configured(overrides, expected, tmp_path, monkeypatch):
    seen = {}

    def recorded(**settings):
        seen.update(settings)
        return SequenceRows(**settings)

    monkeypatch.setattr(components, "SequenceRows", recorded)
    replay = components.build_replay(load_config(tiny(tmp_path), overrides), torch.device("cpu"))
    assert seen == expected
    assert replay.batch_size == 2
    assert type(replay.sampler) is RandomSampler


def test_rows_are_drawn_each_once_as_configured(tmp_path):
    overrides = ["replay.sampling=each_once", "replay.capacity_rows=2"]
    replay = components.build_replay(load_config(tiny(tmp_path), overrides), torch.device("cpu"))
    assert type(replay.sampler) is SamplerWithoutReplacement


@pytest.mark.parametrize(
    ("every", "due"),
    # Batches of 8 frames until 26 are reached: 8, 16, 24, 32.
    [(1, [8, 16, 24, 32]), (12, [16, 24, 32]), (16, [16, 32]), (1000, [32])],
)
def test_when_an_evaluation_is_due(every, due, tmp_path):
    overrides = ["collection.total_frames=26", f"evaluation.every_frames={every}"]
    config = load_config(tiny(tmp_path), overrides)
    assert [n for n in (8, 16, 24, 32) if components.evaluation_is_due(config, n)] == due


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
@pytest.mark.parametrize("there", [False, True])
def test_the_device_is_the_one_asked_for(device, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    if device == "cuda" and not there:
        with pytest.raises(MachineError, match=r"runtime\.device=auto"):
            components.choose_device(device)
    else:
        expected = "cuda" if there and device != "cpu" else "cpu"
        assert components.choose_device(device) == torch.device(expected)


def test_no_two_random_streams_are_the_same():
    seeds = [components.stream_seed(seed, s) for seed in (0, 1, 1000) for s in components.STREAMS]
    assert len(set(seeds)) == len(seeds)
    assert components.stream_seed(1, "env") == components.stream_seed(1, "env")
