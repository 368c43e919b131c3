"""Mixers in configurations: one of the user's own, QFIX, QPLEX and Weighted QMIX, by train.py."""

import pytest
import torch
from recipe_tools import game, metrics, run, summary

from qmix_trl import ConfigError, QFixMixer, QMixer, QPlexMixer, load_config, load_mixer
from qmix_trl.config.run_files import CONFIG_FILE

OWN = """\
import torch
from torch import nn
from qmix_trl.keys import CHOSEN_ACTION_VALUE


class Scaled(nn.Module):
    in_keys = (CHOSEN_ACTION_VALUE,)

    def __init__(self, n_agents, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((n_agents, 1), scale))

    def forward(self, chosen):
        return (chosen * self.scale.abs()).sum(-2)


class Nameless(nn.Module):
    pass


def failing():
    raise OSError("no file here")
"""


def own(make, kwargs="{}"):
    """Return the override that puts a mixer of the user's own in place."""
    return f"mixer={{name: custom, make: '{make}', make_kwargs: {kwargs}}}"


@pytest.fixture
def file(tmp_path):
    """A file with mixers."""
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_a_mixer_of_the_users_own_trains_and_is_loaded_from_its_run(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path, own("mine.py:Scaled", "{scale: 2.0}"), game("two_step"))
    monkeypatch.chdir("/")
    config = load_config(folder / CONFIG_FILE)
    assert config.mixer.make == f"{file}:Scaled"
    mixer = load_mixer(folder)
    assert mixer.scale.shape == (2, 1)
    assert (mixer.scale - 2).abs().max() < 0.1  # a few steps of 0.001 from 2
    assert (mixer.scale != 2).any()


def test_a_run_goes_on_with_its_own_copy_of_a_mixer_alone(file, tmp_path, capsys):
    overrides = [own(f"{file}:Scaled"), game("two_step"), "checkpoint.every_seconds=0"]
    whole = run(tmp_path, *overrides, "name=whole", "collection.total_frames=32")
    part = run(tmp_path, *overrides, "name=part")
    assert (part / "source" / "mixer" / "mine.py").read_text() == OWN
    file.write_text(OWN.replace("self.scale.abs()", "2 * self.scale.abs()"))
    with pytest.raises(ConfigError, match=r"mine\.py has the hash .* began with .* restore it"):
        run(tmp_path, "collection.total_frames=32", resume=part)
    file.unlink()
    capsys.readouterr()
    run(tmp_path, "collection.total_frames=32", resume=part)
    assert f"{file} is gone" in capsys.readouterr().out
    states = [torch.load(x / "weights.pt", weights_only=True) for x in (part, whole)]
    assert torch.equal(states[0]["mixer"]["scale"], states[1]["mixer"]["scale"])


@pytest.mark.parametrize(
    ("make", "kwargs", "part"),
    [
        (
            "Scaled",
            "{}",
            "mixer.make: expected path/to/file.py:Class or module:Class, got 'Scaled'",
        ),
        (
            "none.py:Scaled",
            "{}",
            "mixer.make: expected a file, relative to the current folder, got",
        ),
        ("mine.py:Scale", "{}", "expected a class 'Scale', got none; did you mean 'Scaled'?"),
        ("mine.py:Scaled", "{size: 3}", "unexpected keyword argument 'size'"),
        ("mine.py:Nameless", "{}", "expected a mixer that names what it reads, got Nameless"),
        ("mine.py:failing", "{}", "no file here at mine.py:22 (raise OSError"),
    ],
)
def test_mistakes_in_a_mixer_of_the_users_own_get_one_line(
    make, kwargs, part, file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, own(make, kwargs), game("two_step"))
    message = str(caught.value)
    assert part in message
    assert len(message.splitlines()) == 1


QMIX = "{name: qmix, mixing_embed_dim: 8, hypernet_layers: 1, hypernet_embed_dim: 8}"


@pytest.mark.parametrize(
    ("section", "kind", "base"),
    [
        (f"{{name: qfix, base: {QMIX}, embed_dim: 4}}", QFixMixer, QMixer),
        (f"{{name: qplex, base: {QMIX}, n_heads: 3}}", QPlexMixer, QMixer),
    ],
)
def test_full_igm_mixers_train_with_their_base(section, kind, base, tmp_path):
    folder = run(tmp_path, f"mixer={section}", game("two_step"))
    mixer = load_mixer(folder)
    assert (type(mixer), type(mixer.base), mixer.n_actions) == (kind, base, 2)
    assert "layers in C++" in str(summary(folder)["update"])


@pytest.mark.parametrize("kind", ["central", "optimistic"])
def test_weighted_qmix_trains_and_resumes_bit_for_bit(kind, tmp_path):
    weighting = f"loss.weighting={{name: {kind}, alpha: 0.1, embed_dim: 8}}"
    overrides = [weighting, game("two_step"), "checkpoint.every_seconds=0"]
    whole = run(tmp_path, *overrides, "name=whole", "collection.total_frames=32")
    part = run(tmp_path, *overrides, "name=part")
    run(tmp_path, "collection.total_frames=32", resume=part)
    found, expected = ({**metrics(x), "greedy_return": None} for x in (part, whole))
    assert found == expected
    states = [torch.load(x / "weights.pt", weights_only=True) for x in (part, whole)]
    for name, tensor in states[0]["mixer"].items():
        assert torch.equal(tensor, states[1]["mixer"][name])
