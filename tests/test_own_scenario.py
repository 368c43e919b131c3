"""Scenarios of a user's own in files: trained by path, found again by their run, and mistakes."""

import json
import sys

import evaluate
import pytest
from own_scenario_tools import BASE, FILES, HEADER, trained, written
from recipe_tools import check_told, summary, tiny
from support.sources import changes

from qmix_trl import ConfigError, load_config, make_env
from qmix_trl.errors import exit_on_mistake

SETTINGS = {
    "n_envs": 2,
    "max_steps": 4,
    "state": "world",
    "team_reward": "mean",
    "seed": 0,
    "engine": "eager",
    "verify": 0.0,
}
SAVED = "checkpoint.every_seconds=0"


def evaluated(folder):
    return evaluate.evaluate(folder, episodes=2, seed=None, device="cpu")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_trained_and_its_run_evaluated_from_another_folder(
    name, tmp_path, monkeypatch, capsys
):
    written(tmp_path / "mine", name)
    monkeypatch.chdir(tmp_path)
    group = ["env.group=red"] if name == "scripted" else []
    run = trained(tmp_path, f"mine/{name}.py", *group)
    assert f": qmix on {name}.py, cpu" in capsys.readouterr().out
    monkeypatch.chdir("/")
    assert evaluated(run) == summary(run)["return"]
    assert load_config(run / "config.yaml").env.scenario == str(tmp_path / "mine" / f"{name}.py")
    assert capsys.readouterr().out == ""


def test_a_path_in_a_file_is_relative_to_it_and_one_in_an_override_to_the_current_folder(
    tmp_path, monkeypatch
):
    file = written(tmp_path / "mine", "sensors")
    config = tiny(tmp_path / "configs")
    text = config.read_text().replace("scenario: balance", "scenario: ../mine/sensors.py:Sensing")
    config.write_text(text)
    monkeypatch.chdir(tmp_path / "mine")
    assert load_config(config).env.scenario == f"{file}:Sensing"
    assert load_config(config, ["env.scenario=sensors.py"]).env.scenario == str(file)
    with pytest.raises(ConfigError, match=r"relative to the current folder, got 'mine/sensors.py'"):
        load_config(config, ["env.scenario=mine/sensors.py"])


def test_a_class_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "team_of_mine").mkdir()
    written(tmp_path / "team_of_mine", "helpers")
    (tmp_path / "team_of_mine" / "__init__.py").touch()
    file = tmp_path / "team_of_mine" / "helpers.py"
    file.write_text(
        file.read_text()
        .replace("import scaling", "from . import scaling")
        .replace("from scenario_base", "from .scenario_base")
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    by_module = make_env("vmas", scenario="team_of_mine.helpers:Helped", **SETTINGS)
    by_file = make_env("vmas", scenario=str(file), **SETTINGS)  # it imports from its package
    for env in (by_module, by_file):
        reward = env.rollout(2)["next", "reward"]
        pos = env.simulator.agents[0].state.pos  # both stand still together only by chance
        assert reward.shape == (2, 2, 1)
        assert pos.shape == (2, 2)


def test_a_run_keeps_the_files_that_its_scenario_imports(tmp_path):
    file = written(tmp_path / "mine", "helpers")
    run = trained(tmp_path, file)
    listed = json.loads((run / "source" / "files.json").read_text())
    assert listed["scenario"] == "helpers.py:Helped"
    assert {entry["file"] for entry in listed["files"]} == set(FILES["helpers"])
    for name, text in FILES["helpers"].items():
        assert (run / "source" / name).read_text() == text
    assert changes(run) == []


@pytest.mark.parametrize("is_module", [False, True])
def test_a_run_is_evaluated_by_its_copy_if_a_helper_has_changed(
    is_module, tmp_path, monkeypatch, capsys
):
    name = f"scaling_{is_module}"
    file = written(tmp_path / "mine", "helpers")
    helper = file.with_name("scaling.py").rename(file.with_name(f"{name}.py"))
    file.write_text(file.read_text().replace("scaling", name))
    if is_module:
        file = file.rename(file.with_name("helped_module.py"))
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "mine")])
    run = trained(tmp_path, "helped_module:Helped" if is_module else file)
    helper.write_text("def scaled(x):\n    return x + 1000\n")
    capsys.readouterr()
    assert evaluated(run) == summary(run)["return"]
    said = capsys.readouterr().out
    (change,) = changes(run)
    assert len(said.splitlines()) == 1
    for part in (f"source: {helper} has the hash {change.now[:12]}", change.before[:12], "copy"):
        assert part in said
    helper.unlink()
    file.unlink()
    assert evaluated(run) == summary(run)["return"]
    assert f"{file} is gone" in capsys.readouterr().out


def test_a_run_goes_on_with_its_own_source_alone(tmp_path, capsys):
    file = written(tmp_path / "mine", "sensors")
    run = trained(tmp_path, file, SAVED)
    text = file.read_text()
    file.write_text(text.replace("1.0", "0.5"))
    more = ["collection.total_frames=24"]
    from recipe_tools import run as train_on

    with pytest.raises(ConfigError, match=r"sensors\.py has the hash .* began with .* restore it"):
        train_on(tmp_path, *more, config=None, resume=run)
    file.unlink()
    train_on(tmp_path, *more, resume=run)
    assert "is gone" in capsys.readouterr().out
    assert summary(run)["frames"] == 24
    assert load_config(run / "config.yaml").env.scenario == str(file)


def test_resume_auto_begins_a_new_run_of_another_source(tmp_path, monkeypatch):
    file = written(tmp_path / "mine", "sensors")
    from recipe_tools import run as train_on

    settings = [f"env.scenario={file}", "env.scenario_kwargs={}", SAVED]
    first = train_on(tmp_path, *settings, resume="auto")
    assert train_on(tmp_path, *settings, resume="auto") == first
    file.write_text(file.read_text().replace("1.0", "0.5"))
    assert train_on(tmp_path, *settings, resume="auto") != first


# Mistakes

MISTAKES = {
    "import no_such_package": ["No module named 'no_such_package' at wrong.py:1 (import no"],
    "class A(:": ["SyntaxError", "at wrong.py:1 (class A(:)"],
    HEADER: ["expected one subclass of BaseScenario, got none"],
    HEADER + BASE + "class A(Base): pass\nclass B(Base): pass": ["got A, B; name one, e.g. ", ":A"],
    HEADER + BASE + "class A(Base):\n    def __init__(self, size): pass": [
        "A() fails: TypeError",
        "'size' at wrong.py:",
        "(class A(Base):)",
    ],
    HEADER + "class A(BaseScenario):\n    pass": ["abstract", "at wrong.py:4 (class A("],
    HEADER + BASE + "class A(Base):\n    def make_world(self, batch_dim, device):\n        1 / 0": [
        "ZeroDivisionError",
        "wrong.py:28 (1 / 0)",
    ],
    HEADER + BASE + "class A(Base):\n    def reward(self, agent):\n        return agent.missing": [
        "AttributeError",
        "'missing'",
        "(return agent.missing)",
    ],
    HEADER + BASE + "class A(Base):\n    def reward(self, agent):\n        return 1.0": [
        "'float' object has no attribute 'clone'",
        "reward is defined at wrong.py:27 (def reward(self, agent):)",
    ],
    HEADER + BASE + "class A(Base):\n    def reward(self, agent):\n        return torch.ones(7)": [
        "reward of agent_0: expected a shape of [2] or [2, 1], got [7]; reward is defined at wrong",
    ],
    HEADER + BASE + "class A(Base):\n    def observation(self, agent):\n        return None": [
        "observation is defined at wrong.py:27 (def observation(self, agent):)",
    ],
    HEADER
    + BASE
    + "class A(Base):\n    def observation(self, agent):\n        return torch.ones(3, 1)": [
        "observation of agent_0: expected a shape of [2, ...], got [3, 1]; observation is defined",
    ],
    HEADER
    + BASE
    + "class A(Base):\n    n = 0\n    def done(self):\n        A.n += 1\n"
    + "        return torch.zeros(self.world.batch_dim, dtype=torch.bool) if A.n < 12 else 1 / 0": [
        "ZeroDivisionError",
        "wrong.py:30 (return torch.zeros",
    ],
}


@pytest.mark.parametrize("code", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_in_a_file_ends_a_run_with_its_line_and_exit_code_2(code, tmp_path, capsys):
    file = tmp_path / "wrong.py"
    file.write_text(code + "\n")
    with pytest.raises(SystemExit) as ended, exit_on_mistake():
        trained(tmp_path, file)
    said = capsys.readouterr().err
    check_told(ended.value.code, said, 2, MISTAKES[code])
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("scenario", "part"),
    [
        ("no_such_module:A", "No module named 'no_such_module'; install it, or name its folder"),
        (
            "json:JSONDecoder",
            "expected a subclass of BaseScenario, got none of that name; json has",
        ),
        ("gone.py", "expected a file, got 'gone.py'; there is none"),
    ],
)
def test_a_scenario_that_is_not_found(scenario, part):
    with pytest.raises(ConfigError) as caught:
        make_env("vmas", scenario=scenario, **SETTINGS)
    assert part in str(caught.value)
