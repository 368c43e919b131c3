"""Configurations: complete files load, and each mistake gets one line."""

import json
import os
import random
import re
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from qmix_trl import ConfigError, RunConfig, load_config, save_config

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
TEXT = """\
name: auto
seed: 0
runtime:
  device: auto
  threads: 2
  compile: false
  cuda_graph: auto
env:
  family: vmas
  scenario: balance
  scenario_kwargs: {n_agents: 4, random_package_pos_on_line: true, package_mass: 5}
  group: null
  others: no_op
  actions_per_dimension: null
  n_envs: 300
  max_steps: 100
  state: world
  team_reward: mean
  engine: auto
  verify: 0.001
agent:
  name: feedforward
  hidden_dims: [64, 64]
  layer_norm: false
  share_parameters: true
  use_last_action: false
  use_agent_id: true
mixer:
  name: qmix
  mixing_embed_dim: 32
  hypernet_layers: 2
  hypernet_embed_dim: 64
exploration:
  epsilon_start: 1.0
  epsilon_end: 0.05
  anneal_frames: 120000
  repeat_exponent: null
collection:
  total_frames: 240000
  rows: episodes
  steps: 100
  collector: auto
replay:
  storage: memory
  capacity_rows: 5000
  batch_rows: 16
  sampling: uniform
  burn_in: 0
loss:
  gamma: 0.99
  double_q: true
  td_lambda: 0.8
  reward_scale: 1.0
  bounded_targets: false
  weighting: null
update:
  per_batch: 200
  max_grad_norm: 10.0
  optimizer: {name: adam, lr: 0.001, eps: 1e-8}
  target: {name: hard, period_updates: 200}
evaluation:
  every_frames: 30000
  episodes: 100
  seed: 1000
  video: false
checkpoint:
  every_seconds: 120
  keep: 2
logging: []
"""

ONE_BATCH = [
    "replay.sampling=each_once",
    "replay.capacity_rows=300",
    "replay.batch_rows=75",
    "update.per_batch=8",
    "update.target={name: batch}",
    "loss.double_q=false",
]
WEIGHTED = "loss.weighting={name: central, alpha: 0.1, embed_dim: 8}"
QFIX = (
    "mixer={name: qfix, base: {name: qmix, mixing_embed_dim: 8, hypernet_layers: 1, "
    "hypernet_embed_dim: 8}, embed_dim: 8}"
)
MIXERS = "qmix, vdn, qfix, qplex, custom, none"
FAMILIES = "vmas, games, foraging, custom, pettingzoo, lbforaging, rware"
RECURRENT = (
    "agent={name: recurrent, hidden_dim: 8, layer_norm: false, share_parameters: true, "
    "use_last_action: true, use_agent_id: true}"
)
RMSPROP = "update.optimizer={name: rmsprop, lr: 5e-4, alpha: 0.99, eps: 1e-5}"
SOFT = "update.target={name: soft, tau: 0.01}"
SLICES = "collection.rows=slices"
GAME = (
    "env={family: games, scenario: memory, scenario_kwargs: {delay: 99}, n_envs: 30, "
    "max_steps: 100, state: observations}"
)
FORAGING = (
    "env={family: foraging, scenario: 8x8-2p-2f, scenario_kwargs: {penalty: 0.1}, n_envs: 30, "
    "max_steps: 100, state: observations, engine: auto}"
)
PETTINGZOO = (
    "env={family: pettingzoo, scenario: mpe2.simple_tag_v3, scenario_kwargs: {max_cycles: 100}, "
    "group: adversary, others: random, pad: true, n_envs: 30, max_steps: 100, state: world, "
    "team_reward: sum, processes: 2}"
)
LBFORAGING = (
    "env={family: lbforaging, scenario: Foraging-8x8-2p-2f-v3, scenario_kwargs: {penalty: 0.1}, "
    "n_envs: 30, max_steps: 100, team_reward: sum, processes: 1}"
)
CUSTOM = (
    "env={family: custom, make: 'package.module:function', make_kwargs: {}, group: null, "
    "n_envs: 30, max_steps: 100, state: world, team_reward: auto, processes: 2}"
)


@pytest.fixture
def whole(tmp_path):
    """A file that holds the text above."""
    path = tmp_path / "whole.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    """Return the message of the refused configuration, asserted to be one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def refusal_of_edit(folder: Path, old: str, new: str) -> str:
    """Return the message about the text above with one part changed, without file and line.

    The line is asserted to be the last of the new part.
    """
    assert TEXT.count(old) == 1
    path = folder / "edited.yaml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    message = refusal(path)
    line = 1 + TEXT[: TEXT.index(old)].count("\n") + new.count("\n")
    where = f"{path}:{line}: "
    assert message.startswith(where), message
    return message.removeprefix(where)


def kwarg(whole: Path, text: str) -> typing.Any:
    """Return the value that a YAML text is read as."""
    return load_config(whole, [f"env.scenario_kwargs={{x: {text}}}"]).env.scenario_kwargs["x"]


def skip_without_packages(text: str) -> None:
    """Skip a test of a family whose package is not installed."""
    for package in ("pettingzoo", "lbforaging", "rware"):
        if f"family: {package}" in text:
            pytest.importorskip(package, reason="needs the extra envs")


# Configurations that load


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_file_loads_and_survives_saving(path, tmp_path):
    skip_without_packages(path.read_text())
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_a_loaded_file_has_the_values_it_holds(whole):
    config = load_config(whole)
    # Read off the text above.
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
    [
        [RECURRENT],
        [RMSPROP, SOFT],
        [SLICES, "replay.burn_in=7"],
        ["mixer={name: none}"],
        [GAME],
        [FORAGING],
        [CUSTOM],
        [PETTINGZOO],
        [LBFORAGING],
    ],
    ids=[
        *("recurrent", "rmsprop-soft", "slices", "no-mixer"),
        *("game", "foraging", "custom", "pettingzoo", "lbforaging"),
    ],
)
def test_other_sections_survive_saving(overrides, whole, tmp_path):
    skip_without_packages("".join(overrides))
    config = load_config(whole, overrides)
    assert config != load_config(whole)
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
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'no'", "no"),
        ("nos", "nos"),
        ('"True"', "True"),
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
def test_scalars_are_read_as_they_look(text, value, whole):
    got = kwarg(whole, text)
    assert got == value
    assert type(got) is type(value)


def test_numbers_are_read_as_json_reads_them(whole):
    rng = random.Random(0)
    texts = [repr(rng.uniform(-1, 1) * 10 ** rng.randint(-20, 20)) for _ in range(40)]
    texts += [str(rng.randint(-(10**16), 10**16)) for _ in range(10)]
    got = kwarg(whole, f"[{', '.join(texts)}]")
    expected = [json.loads(text) for text in texts]
    assert got == expected
    assert [type(number) for number in got] == [type(number) for number in expected]


def test_an_integer_serves_where_a_number_is_asked(whole):
    gamma = load_config(whole, ["loss.gamma=1"]).loss.gamma
    assert gamma == 1.0
    assert type(gamma) is float


# Refused: keys and types


@pytest.mark.parametrize(
    ("old", "new", "dotted", "parts"),
    [
        ("seed: 0", "seed: 0\nseed: 1", "seed", ["twice", "edited.yaml:2"]),
        ("  episodes: 100", "  episodes: 1\n  episodes: 1", "evaluation.episodes", ["twice"]),
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
        ("runtime.threads=many", "runtime.threads: expected an integer or auto, got 'many'"),
        ("runtime.threads=0.5", "runtime.threads: expected an integer, got 0.5"),
        ("loss.gamma=2", "loss.gamma: expected a number of at least 0 and at most 1, got 2"),
        ("mixer.name=vdm", f"mixer.name: expected one of {MIXERS}, got 'vdm'"),
        ("env.family=game", f"env.family: expected one of {FAMILIES}, got 'game'"),
        ("env={scenario: balance}", f"env: expected a mapping with a family of {FAMILIES}"),
    ],
)
def test_a_whole_message(override, message, whole):
    assert refusal(whole, override).startswith(f"override {override!r}: {message}")


def test_another_family_wants_another_section(whole):
    said = refusal(whole, "env.family=games")
    assert "env.group: unknown key" in said
    assert "to choose another family, replace the section: 'env={family: games, ...}'" in said


@pytest.mark.parametrize(
    ("old", "new", "dotted", "line_of"),
    [
        ("name: auto\n", "", "name", "seed: 0"),
        ("  n_envs: 300\n", "", "env.n_envs", "env:"),
        (", period_updates: 200", "", "update.target.period_updates", "  target:"),
        (TEXT[TEXT.index("evaluation:") :], "", "evaluation", "name: auto"),
    ],
    ids=["top", "section", "inner", "whole section"],
)
def test_a_missing_key_gets_the_line_of_its_section(old, new, dotted, line_of, tmp_path):
    assert TEXT.count(old) == 1
    text = TEXT.replace(old, new)
    path = tmp_path / "edited.yaml"
    path.write_text(text, encoding="utf-8")
    line = 1 + text[: text.index(line_of)].count("\n")
    assert refusal(path).startswith(f"{path}:{line}: {dotted}: missing")


# Refused: numbers out of bounds

# The smallest and the largest value of each number; None where there is no such bound, and "above"
# where the bound itself is outside. By hand, from what the number means.
BOUNDS = {
    "seed": ([], 0, None),
    "runtime.threads": ([], 1, None),
    "env.n_envs": ([], 1, None),
    "env.max_steps": ([SLICES], 1, None),
    "env.verify": ([], 0, 1),
    "env.processes": ([CUSTOM], 1, None),
    "agent.hidden_dim": ([RECURRENT], 1, None),
    "agent.hidden_dims": ([], 1, None),
    "mixer.mixing_embed_dim": ([], 1, None),
    "mixer.hypernet_embed_dim": ([], 1, None),
    "mixer.base.mixing_embed_dim": ([QFIX], 1, None),
    "mixer.base.hypernet_embed_dim": ([QFIX], 1, None),
    "mixer.embed_dim": ([QFIX], 1, None),
    "mixer.n_heads": (["mixer={name: qplex, base: {name: vdn}, n_heads: 2}"], 1, None),
    "exploration.epsilon_start": ([], 0, 1),
    "exploration.epsilon_end": ([], 0, 1),
    "exploration.anneal_frames": ([], 0, None),
    "exploration.repeat_exponent": ([], 0, 100),
    "collection.total_frames": ([], 1, None),
    "collection.steps": ([SLICES], 1, None),
    "env.actions_per_dimension": ([], 3, None),
    "replay.capacity_rows": (["env.n_envs=1", "replay.batch_rows=1"], 1, None),
    "replay.batch_rows": ([], 1, None),
    "replay.burn_in": ([SLICES], 0, None),
    "loss.gamma": ([], 0, 1),
    "loss.td_lambda": ([], 0, 1),
    "loss.reward_scale": ([], "above 0", None),
    "loss.weighting.alpha": ([WEIGHTED], "above 0", 1),
    "loss.weighting.embed_dim": ([WEIGHTED], 1, None),
    "update.per_batch": ([], 1, None),
    "update.max_grad_norm": ([], "above 0", None),
    "update.optimizer.lr": ([], "above 0", 1),
    "update.optimizer.eps": ([], "above 0", None),
    "update.optimizer.alpha": ([RMSPROP], 0, 1),
    "update.target.period_updates": ([], 1, None),
    "update.target.tau": ([SOFT], "above 0", 1),
    "evaluation.every_frames": ([], 1, None),
    "evaluation.episodes": ([], 2, None),
    "evaluation.seed": ([], 0, None),
    "checkpoint.every_seconds": ([], 0, None),
    "checkpoint.keep": ([], 1, None),
}


def numbers(kind: typing.Any, path: str = "") -> set[str]:
    """Return the dotted paths of all numbers below a dataclass."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {
            n for f in fields(kind) for n in numbers(hints[f.name], f"{path}.{f.name}".lstrip("."))
        }
    if kind in (int, float):
        return {path}
    if typing.get_origin(kind) is typing.Literal:
        return set()
    return {n for part in typing.get_args(kind) for n in numbers(part, path)}


def written(path: str, number: float) -> str:
    """Return the override that gives a number, or a list of it, to a path."""
    return f"{path}=[{number}]" if path == "agent.hidden_dims" else f"{path}={number}"


def test_every_number_has_its_bounds_tested():
    assert numbers(RunConfig) == set(BOUNDS)


@pytest.mark.parametrize("path", BOUNDS)
def test_bounds(path, whole):
    overrides, least, most = BOUNDS[path]
    if least == "above 0":
        assert "above 0" in refusal(whole, *overrides, written(path, 0))
        assert "above 0" in refusal(whole, *overrides, written(path, -1e-9))
        load_config(whole, [*overrides, written(path, 1e-9)])
    else:
        said = refusal(whole, *overrides, written(path, least - 1))
        assert f"{path}" in said
        assert f"at least {least}" in said
        assert f"got {least - 1}" in said
        load_config(whole, [*overrides, written(path, least)])
    if most is not None:
        assert f"at most {most}" in refusal(whole, *overrides, written(path, most + 0.001))
        load_config(whole, [*overrides, written(path, most)])


# Refused: files that are no configuration


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        (b"", "", "expected a mapping, got None"),
        (b"# nothing\n", "", "expected a mapping, got None"),
        (b"- 1\n- 2\n", ":1", "expected a mapping, got a list"),
        (b"hello\n", ":1", "expected a mapping, got 'hello'"),
        (b"a: [1, 2\nb: 3\n", ":2", "expected ',' or ']'"),
        (b"a:\n\tb: 3\n", ":2", "cannot start any token"),
        (b"a: 1\n---\nb: 2\n", ":2", "another document"),
        (b"a: 1\n? [b]\n: 2\n", ":2", "expected a name as key"),
        (b"a: \x01\n", "", "special characters are not allowed"),
        (b"a: caf\xe9\n", "", "UTF-8"),
        ("a: 1\n".encode("utf-16"), "", "UTF-8"),
        (b"#" * 100_001, "", "expected a configuration of at most 100000 bytes, got more; is it"),
        (b"a: 1\n" * 300_000, "", "got more; is it another file? `qmix-trl copy` lists"),
        (b"[" * 100_000, ":1", "nested too deeply; expected at most 20 levels"),
        (b"{a: " * 24_000, ":1", "nested too deeply"),
        (b"- " * 40_000 + b"a", ":1", "nested too deeply"),
        (b"".join(b" " * i + b"a:\n" for i in range(400)), ":21", "nested too deeply"),
        (b"a: [" + b"1," * 40_000 + b"]", ":1", "too many values; expected at most 10000 tokens"),
        (b"a: 1\n" * 16_000, ":2500", "too many values"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", ":1", "anchors, aliases and tags"),
        (b"seed: " + b"9" * 90_000, ":1", "name: missing"),
        (b"x" * 90_000 + b": 1", ":1", "mapping values are not allowed"),
        (b"? " + b"x" * 90_000 + b"\n: 1", ":1", "unknown key"),
        (b"name: " + b"x" * 90_000, ":1", "missing"),
        (b"a: 1\nb: &x 2\n", ":2", "anchors, aliases and tags are refused"),
        (b"a: 1\nb: *x\n", ":2", "anchors, aliases and tags are refused"),
        (b"a: 1\nb: !!int 2\n", ":2", "anchors, aliases and tags are refused"),
        (b"a: !!python/object/apply:os.getcwd []\n", ":1", "anchors, aliases and tags"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(content, line, part, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    said = refusal(path)
    assert said.startswith(f"{path}{line}: ")
    assert part in said
    assert len(said) < 600 + len(str(path))


def test_files_without_an_end_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", "/dev/null", tmp_path / "pipe"):
        assert refusal(name) == f"{name}: cannot be read: expected a regular file"


def test_a_file_that_is_no_mapping_is_blamed_and_not_the_override(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    message = f"{path}: the file: expected a mapping, got None"
    assert refusal(path, "seed=1") == refusal(path) == message


@pytest.mark.parametrize("word", ["False", "no", "OFF", "yes", "On", "TRUE"])
def test_words_that_other_yaml_takes_for_booleans_are_refused(word, whole):
    said = refusal(whole, f"env.scenario_kwargs={{x: [{word}]}}")
    assert said.endswith(
        f"env.scenario_kwargs.x: expected true or false, got {word!r}; quote it if it is text"
    )
    assert kwarg(whole, f"'{word}'") == word


def test_a_section_without_its_name_tells_how_to_set_one_key(whole):
    assert refusal(whole, "env={n_envs: 60}").endswith(
        f"env: expected a mapping with a family of {FAMILIES}, got a mapping without one; "
        "a section is replaced as a whole: env.n_envs=... sets one key"
    )


def test_a_merge_key_is_a_key_like_another(tmp_path):
    assert refusal_of_edit(tmp_path, "seed: 0", "<<: {seed: 0}").startswith("<<: unknown key")


@pytest.mark.parametrize("name", ["", "absent.yaml", "file/under.yaml"])
def test_a_file_that_cannot_be_read_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    said = refusal(tmp_path / name)
    assert said.startswith(f"{tmp_path / name}: cannot be read: ")


# Overrides


def test_overrides_replace_values_and_whole_sections(whole):
    config = load_config(
        whole,
        [
            "update.optimizer.lr=5e-5",
            "mixer={name: vdn}",
            "agent.hidden_dims=[8]",
            "env.scenario_kwargs.n_agents=3",
            "env.scenario_kwargs.new={a: [1]}",
            "name=one",
            "name=two",
        ],
    )
    assert config.update.optimizer.lr == 0.00005
    assert config.update.optimizer.eps == 1e-8
    assert type(config.mixer).__name__ == "VDNConfig"
    assert config.agent.hidden_dims == (8,)
    assert config.env.scenario_kwargs["n_agents"] == 3
    assert config.env.scenario_kwargs["package_mass"] == 5
    assert config.env.scenario_kwargs["new"] == {"a": [1]}
    assert config.name == "two"


def test_an_override_mends_a_file_that_lacks_a_key(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(TEXT.replace("seed: 0\n", ""), encoding="utf-8")
    assert "seed: missing" in refusal(path)
    assert load_config(path, ["seed=3"]).seed == 3


ADDED = [
    "agent.layer_norm",
    "logging",
    "evaluation.video",
    "loss.bounded_targets",
    "loss.weighting",
    "replay.storage",
    "replay.sampling",
]
ADDED_FOR_VMAS = ["env.others", "env.actions_per_dimension"]


def without(text, keys):
    """Return a configuration's text without the lines of some keys."""
    names = [key.rpartition(".")[2] for key in keys]
    lines = [line for line in text.splitlines() if line.split(":")[0].strip() not in names]
    return "\n".join(lines)


def test_a_mistake_is_told_of_the_override_or_the_file_that_made_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    for override, start in (
        ("env.scenario=balence", "override 'env.scenario=balence': env.scenario: unknown"),
        ("replay.batch_rows=99999999", "override 'replay.batch_rows=99999999': replay.batch_rows"),
        ("replay.capacity_rows=1", f"{path}: replay.batch_rows"),
    ):
        with pytest.raises(ConfigError) as told:
            load_config(path, [override])
        assert str(told.value).startswith(start)


def test_the_file_of_an_older_run_means_what_it_meant(tmp_path):
    run, mine = tmp_path / "run" / "config.yaml", tmp_path / "config.yaml"
    run.parent.mkdir()
    (run.parent / "metrics.csv").touch()
    mine.write_text(TEXT)
    whole = load_config(mine)
    for some in (*([key] for key in ADDED + ADDED_FOR_VMAS), ADDED + ADDED_FOR_VMAS):
        for path in (run, mine):
            path.write_text(without(TEXT, some))
        assert load_config(run) == whole
        missing = "|".join(map(re.escape, some))
        with pytest.raises(ConfigError, match=f"({missing}): missing"):
            load_config(mine)
    section = "checkpoint:\n  every_seconds: 120\n  keep: 2\n"
    run.write_text(TEXT.replace(section, ""))
    assert load_config(run).checkpoint.every_seconds is None
    assert load_config(run, ["logging=[wandb]", "evaluation.video=true"]).evaluation.video
    game = load_config(CONFIGS / "two_step_qmix.yaml")
    run.write_text(without((CONFIGS / "two_step_qmix.yaml").read_text(), ADDED))
    assert load_config(run) == game
    run.write_text("env: 3")
    with pytest.raises(ConfigError, match="name: missing"):
        load_config(run)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed", "expected an override key.sub=value"),
        ("=1", "expected an override key.sub=value"),
        ("seed=", "seed: expected an integer, got None"),
        ("env.n_env=3", "env.n_env: unknown key; did you mean 'n_envs'?"),
        ("sed=3", "sed: unknown key; did you mean 'seed'?"),
        ("env..n_envs=3", "expected an override key.sub=value"),
        ("env.n_envs.x=3", "env.n_envs: expected an integer, got a mapping"),
        ("mixer={name: vdn", "expected ',' or '}'"),
        ("mixer={name: vdn, name: qmix}", "name: stands twice"),
        ("mixer={name: qmix}", "mixer.mixing_embed_dim: missing"),
        ("mixer=vdn", f"{MIXERS}, got 'vdn'; write 'mixer={{name: vdn}}'"),
        ("mixer=qmix", "got 'qmix'; write 'mixer={name: qmix, ...}'"),
        (
            "update.optimizer.name=rmsprop",
            "update.optimizer.alpha: missing; a file names every key; the section is "
            "'update.optimizer={name: rmsprop, lr: 0.001, alpha: ..., eps: 1e-08}'",
        ),
        ("name=123", "expected text, got 123; text that looks like another value is quoted: 'name"),
        ("collection.total_frames=3e5", "got 300000.0; the integer is 300000"),
        (
            "seed=1234567890123456789",
            "e+18; an integer has at most 18 digits",
        ),
        ("seed=010", "expected an integer, got '010'; a number has no zero in front"),
        ("loss.gamma=00.9", "expected a number, got '00.9'; a number has no zero in front"),
        ("env.scenario_kwargs.x=-012", "expected a number without a zero in front, got '-012'"),
        ("mixer={name: vdn, tau: 1}", "mixer.tau: unknown key"),
        ("seed=&a 3", "anchors, aliases and tags are refused"),
        ("seed=1\nname: x", "mapping values are not allowed here"),
        (f"seed={'[' * 1000}", "nested too deeply"),
    ],
)
def test_overrides_that_do_not_fit(override, part, whole):
    assert part in refusal(whole, override)


# Fields that do not go together


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["replay.capacity_rows=15", "env.n_envs=1"],
            ["replay.batch_rows (16)", "replay.capacity_rows (15)"],
        ),
        (["env.n_envs=5001"], ["env.n_envs (5001)", "replay.capacity_rows (5000)"]),
        (["collection.steps=99"], ["collection.steps (99)", "env.max_steps (100)", "slices"]),
        (["env.max_steps=99"], ["collection.steps (100)", "env.max_steps (99)", "slices"]),
        (["replay.burn_in=1"], ["replay.burn_in (1)", "episodes", "slices"]),
        (["loss.bounded_targets=true", "loss.gamma=1"], ["loss.bounded_targets", "loss.gamma"]),
        ([WEIGHTED, "mixer={name: none}"], ["loss.weighting", "mixer.name none"]),
        ([WEIGHTED, "loss.double_q=false"], ["loss.weighting", "loss.double_q: false"]),
        (
            ["replay.sampling=each_once"],
            ["env.n_envs (300), got 5000; set replay.capacity_rows=300"],
        ),
        ([*ONE_BATCH, "replay.batch_rows=80"], ["divides env.n_envs (300), got 80"]),
        (  # 300 rows, 75 an update
            [*ONE_BATCH, "update.per_batch=9"],
            ["expected a multiple of 4", "got 9; set update.per_batch=12"],
        ),
        ([*ONE_BATCH, "loss.double_q=true"], ["update.target: batch", "set loss.double_q=false"]),
    ],
)
def test_fields_that_do_not_go_together(overrides, parts, whole):
    said = refusal(whole, *overrides)
    for part in parts:
        assert part in said


def test_fields_that_go_together_at_the_limit(whole):
    assert load_config(whole, ONE_BATCH).update.target.name == "batch"
    load_config(whole, ["replay.capacity_rows=16", "env.n_envs=16"])
    load_config(whole, [SLICES, "collection.steps=7", "replay.burn_in=9"])


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "a/b", "", ".", "..", ".hidden", "-x", "a b", "a\\b", "ä", "x\n"]
)
def test_names_that_leave_the_folder_of_runs(name, whole):
    assert "name: expected at most 100 letters" in refusal(whole, f"name={json.dumps(name)}")


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("env.scenario=balanc", "did you mean 'balance'"),
        (GAME.replace("memory", "memry"), "memory"),
    ],
)
def test_an_unknown_scenario_is_refused(override, known, whole):
    said = refusal(whole, override)
    assert "env.scenario: unknown" in said
    assert known in said


@pytest.mark.parametrize(
    ("scenario", "keywords", "least"),
    [("memory", "delay: 20", 21), ("memory", "delay: 0", 1), ("two_step", "", 2)],
)
def test_a_game_is_long_enough_for_its_reward(scenario, keywords, least, whole):
    # A game of memory is paid after the steps of its delay, the two-step game at its second step.
    def loaded(max_steps):
        game = f"family: games, scenario: {scenario}, scenario_kwargs: {{{keywords}}}"
        sizes = f"n_envs: 2, max_steps: {max_steps}, state: world"
        steps = f"collection.steps={max_steps}"
        return load_config(whole, [f"env={{{game}, {sizes}}}", steps])

    assert loaded(least).env.max_steps == least
    if least > 1:
        with pytest.raises(ConfigError, match=rf"max_steps: expected at least {least}, as"):
            loaded(least - 1)


def test_a_foraging_task_is_checked_with_its_options(whole):
    said = refusal(whole, FORAGING.replace("8x8-2p-2f", "8x8"))
    assert "env.scenario: expected a foraging task [Ns-]XxY-Pp-Ff[-coop]" in said
    said = refusal(whole, FORAGING.replace("penalty", "penalti"))
    assert "env.scenario_kwargs.penalti: unknown to foraging; did you mean 'penalty'?" in said


@pytest.mark.parametrize("name", ["auto", "a", "2", "qmix_1.lr-3", "a..b"])
def test_names_of_runs(name, whole):
    assert load_config(whole, [f"name='{name}'"]).name == name


@pytest.mark.parametrize("new", ['"se\\ned": 0', '"a\\u2028b": 0', '"a\\nb": 0\n"a\\nb": 0'])
def test_a_key_with_a_line_break_gets_one_line(new, tmp_path):
    path = tmp_path / "edited.yaml"
    path.write_text(TEXT.replace("seed: 0", new), encoding="utf-8")
    refusal(path)


def test_a_very_deep_override_gets_one_line(whole):
    refusal(whole, ".".join("a" * 3000) + "=1")


@pytest.mark.parametrize("text", ["1e6", "5e-5", "08", "1e999"])
def test_text_that_looks_like_a_number_survives_saving(text, whole, tmp_path):
    config = load_config(whole, [f"env.scenario_kwargs={{x: '{text}'}}"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_a_run_named_like_a_number_survives_saving(whole, tmp_path):
    config = load_config(whole, ["name='7e3'"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_a_keyword_of_the_scenario_is_finite(whole):
    refusal(whole, "env.scenario_kwargs={x: 1e999}")


@pytest.mark.parametrize("key", ["seed", "evaluation.seed"])
def test_a_seed_fits_into_32_bits(key, whole):
    refusal(whole, f"{key}={2**32}")
