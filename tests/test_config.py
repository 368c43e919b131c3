"""Configurations: what loads, and the one line that each mistake gets."""

import json
import random
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from qmix_trl import ConfigError, RunConfig, load_config, save_config

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
QUICK = CONFIGS / "balance_quick.yaml"
TEXT = QUICK.read_text(encoding="utf-8")

RECURRENT = (
    "agent={name: recurrent, hidden_dim: 8, share_parameters: true, use_last_action: true, "
    "use_agent_id: true}"
)
RMSPROP = "update.optimizer={name: rmsprop, lr: 5e-4, alpha: 0.99, eps: 1e-5}"
SOFT = "update.target={name: soft, tau: 0.01}"
SLICES = "collection.rows=slices"


def refusal(path: Path, *overrides: str) -> str:
    """Return the message that a configuration is refused with; it is one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def refusal_of_edit(folder: Path, old: str, new: str) -> str:
    """Return what is said of balance_quick.yaml with one text changed, after file and line.

    The line is the last of the new text.
    """
    assert TEXT.count(old) == 1
    path = folder / "edited.yaml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    message = refusal(path)
    line = 1 + TEXT[: TEXT.index(old)].count("\n") + new.count("\n")
    where = f"{path}:{line}: "
    assert message.startswith(where), message
    return message.removeprefix(where)


def kwarg(text: str) -> typing.Any:
    """Return what a YAML text is read as."""
    return load_config(QUICK, [f"env.scenario_kwargs={{x: {text}}}"]).env.scenario_kwargs["x"]


# What loads


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_file_loads_and_survives_saving(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_a_loaded_file_has_the_values_it_holds():
    config = load_config(QUICK)
    # Read off balance_quick.yaml.
    assert (config.name, config.seed, config.runtime.threads) == ("auto", 0, 2)
    assert config.env.group is None
    assert config.env.scenario_kwargs == {
        "n_agents": 4,
        "random_package_pos_on_line": True,
        "package_mass": 5,
    }
    assert config.agent.hidden_dims == (64, 64)
    assert (config.mixer.name, config.mixer.hypernet_layers) == ("qmix", 2)
    assert (config.update.optimizer.lr, config.update.optimizer.eps) == (0.001, 1e-8)
    assert config.loss.double_q is True


@pytest.mark.parametrize(
    "overrides",
    [[RECURRENT], [RMSPROP, SOFT], [SLICES, "replay.burn_in=7"], ["mixer={name: none}"]],
    ids=["recurrent", "rmsprop-soft", "slices", "no-mixer"],
)
def test_other_sections_survive_saving(overrides, tmp_path):
    config = load_config(QUICK, overrides)
    assert config != load_config(QUICK)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 0.00005),
        ("1e6", 1000000.0),
        ("1E6", 1000000.0),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("+3", 3),
        ("-3", -3),
        ("012", 12),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("True", "True"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("1__0", "1__0"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("2020-01-01", "2020-01-01"),
        ("'5'", "5"),
        ('"5e-5"', "5e-5"),
        ("'true'", "true"),
        ("'null'", "null"),
        ("''", ""),
        ("[1, a, [2.0]]", [1, "a", [2.0]]),
        ("{a: {b: 1e1}}", {"a": {"b": 10.0}}),
    ],
)
def test_scalars_are_read_as_they_look(text, value):
    got = kwarg(text)
    assert got == value
    assert type(got) is type(value)


def test_numbers_are_read_as_json_reads_them():
    rng = random.Random(0)
    texts = [repr(rng.uniform(-1, 1) * 10 ** rng.randint(-20, 20)) for _ in range(40)]
    texts += [str(rng.randint(-(10**16), 10**16)) for _ in range(10)]
    got = kwarg(f"[{', '.join(texts)}]")
    expected = [json.loads(text) for text in texts]
    assert got == expected
    assert [type(number) for number in got] == [type(number) for number in expected]


def test_an_integer_serves_where_a_number_is_asked():
    gamma = load_config(QUICK, ["loss.gamma=1"]).loss.gamma
    assert gamma == 1.0
    assert type(gamma) is float


# What is refused: keys and types


@pytest.mark.parametrize(
    ("old", "new", "dotted", "parts"),
    [
        ("seed: 0", "seed: 0\nseed: 1", "seed", ["twice", "edited.yaml:4"]),
        ("  episodes: 100", "  episodes: 1\n  episodes: 1", "episodes", ["twice"]),
        ("  n_envs: 300", "  n_env: 300", "env.n_env", ["unknown key", "'n_envs'"]),
        ("  td_lambda", "  lambda", "loss.lambda", ["unknown key", "'td_lambda'"]),
        ("seed: 0", "sede: 0", "sede", ["unknown key", "'seed'"]),
        ("lr: 0.001", "LR: 0.001", "update.optimizer.LR", ["known here: name, lr, eps"]),
        ("  n_envs: 300", "  n_envs: many", "env.n_envs", ["an integer", "'many'"]),
        ("  n_envs: 300", "  n_envs: 300.0", "env.n_envs", ["an integer", "300.0"]),
        ("  n_envs: 300", "  n_envs: '300'", "env.n_envs", ["an integer", "'300'"]),
        ("  n_envs: 300", "  n_envs: true", "env.n_envs", ["an integer", "True"]),
        ("  n_envs: 300", "  n_envs:", "env.n_envs", ["an integer", "None"]),
        ("  n_envs: 300", "  n_envs: [300]", "env.n_envs", ["an integer", "a list"]),
        ("  n_envs: 300", "  n_envs: {a: 1}", "env.n_envs", ["an integer", "a mapping"]),
        ("gamma: 0.99", "gamma: high", "loss.gamma", ["a number", "'high'"]),
        ("gamma: 0.99", "gamma: true", "loss.gamma", ["a number", "True"]),
        ("gamma: 0.99", "gamma: .inf", "loss.gamma", ["a number", "'.inf'"]),
        ("gamma: 0.99", "gamma: .nan", "loss.gamma", ["a number", "'.nan'"]),
        ("double_q: true", "double_q: yes", "loss.double_q", ["true or false", "'yes'"]),
        ("double_q: true", "double_q: 1", "loss.double_q", ["true or false", "1"]),
        ("scenario: balance", "scenario: 3", "env.scenario", ["text", "3"]),
        ("scenario: balance", "scenario: no\n  extra: 1", "env.extra", ["unknown key"]),
        ("group: null", "group: 3", "env.group", ["text", "3"]),
        ("[64, 64]", "64", "agent.hidden_dims", ["a list", "64"]),
        ("[64, 64]", "[64, x]", "agent.hidden_dims[1]", ["an integer", "'x'"]),
        ("[64, 64]", "[0, 64]", "agent.hidden_dims[0]", ["at least 1", "0"]),
        ("state: world", "state: words", "env.state", ["world, observations", "'world'"]),
        ("device: auto", "device: gpu", "runtime.device", ["auto, cpu, cuda", "'gpu'"]),
        ("layers: 2", "layers: 3", "mixer.hypernet_layers", ["1, 2", "3"]),
        ("layers: 2", "layers: 2.0", "mixer.hypernet_layers", ["1, 2", "2.0"]),
        ("layers: 2", "layers: true", "mixer.hypernet_layers", ["1, 2", "True"]),
        ("{name: adam", "{name: adm", "update.optimizer.name", ["adam, rmsprop", "'adm'"]),
        ("{name: hard", "{nam: hard", "update.target", ["hard, soft"]),
        ("{name: hard, period_updates: 200}", "hard", "update.target", ["hard, soft", "'hard'"]),
        ("{name: hard", "{name: [hard]", "update.target.name", ["hard, soft", "a list"]),
        ("gamma: 0.99", f"gamma: {'9' * 5000}", "loss.gamma", ["at most 1"]),
        ("lr: 0.001", f"lr: {'9' * 5000}", "update.optimizer.lr", ["a number", "inf"]),
        ("lr: 0.001", "lr: 1e999", "update.optimizer.lr", ["a number", "inf"]),
        ("seed: 0", f"seed: {'9' * 5000}", "seed", ["an integer"]),
    ],
)
def test_a_wrong_entry_gets_its_line_and_path(old, new, dotted, parts, tmp_path):
    said = refusal_of_edit(tmp_path, old, new)
    assert said.startswith(f"{dotted}: ")
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.n_envs=many", "env.n_envs: expected an integer, got 'many'"),
        ("loss.gamma=2", "loss.gamma: expected a number at least 0 and at most 1, got 2"),
        ("mixer.name=vdm", "mixer.name: expected one of qmix, vdn, none, got 'vdm'"),
    ],
)
def test_a_whole_message(override, message):
    assert refusal(QUICK, override).startswith(f"override {override!r}: {message}")


@pytest.mark.parametrize(
    ("key", "dotted", "line_of"),
    [
        ("name: auto", "name", "name: auto"),
        ("  n_envs: 300", "env.n_envs", "env:"),
        ("  tau", "update.target.period_updates", "  target:"),
        ("evaluation", "evaluation", "name: auto"),
    ],
)
def test_a_missing_key_gets_the_line_of_its_section(key, dotted, line_of, tmp_path):
    text = TEXT.replace("  target: {name: hard, period_updates: 200}", "  target: {name: hard}")
    if key == "evaluation":
        text = TEXT[: TEXT.index("evaluation:")]
    elif key != "  tau":
        text = TEXT.replace(f"{key}\n", "")
    path = tmp_path / "edited.yaml"
    path.write_text(text, encoding="utf-8")
    first = "seed: 0" if key == "name: auto" else line_of
    line = 1 + text[: text.index(first)].count("\n")
    assert refusal(path).startswith(f"{path}:{line}: {dotted}: missing")
