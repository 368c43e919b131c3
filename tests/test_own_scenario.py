"""Scenarios of a user's own in files: trained by path, found again by their run, and mistakes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scenarios_any as s
import torch
from own_scenario_tools import BASE, FILES, HEADER, trained, written
from recipe_tools import AGENTS, call, check_told, evaluated, summary, tiny
from recipe_tools import run as train_on
from support.benchmarl_process import load_vmas_config
from support.cells import BENCHMARL, table_cells
from support.command_line import throughput_arguments
from support.sources import changes
from support.throughput.collection import their_env
from tensordict.nn import TensorDictModuleBase
from train_tools import check_same

from qmix_trl import (
    ConfigError,
    EpsilonGreedyAction,
    FeedforwardAgent,
    NoOpPolicy,
    env_dims,
    load_config,
    make_collector,
    make_env,
    make_policy,
    with_memory,
)
from qmix_trl.config import schema
from qmix_trl.envs.others import OTHERS
from qmix_trl.errors import exit_on_mistake
from qmix_trl.keys import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE, next_key

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
    assert listed["names"] == {"env.scenario": "helpers.py:Helped"}
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
    (run / "source" / helper.name).write_text("")
    with pytest.raises(ConfigError, match=rf"source/{helper.name} is damaged or gone"):
        evaluated(run)


def test_a_list_of_files_from_before_mixers_were_copied_is_read(tmp_path):
    run = trained(tmp_path, written(tmp_path / "mine", "sensors"))
    path = run / "source" / "files.json"
    listed = json.loads(path.read_text())
    names = listed.pop("names")
    path.write_text(json.dumps({"scenario": names["env.scenario"], **listed}))
    (tmp_path / "mine" / "sensors.py").unlink()
    assert evaluated(run) == summary(run)["return"]


def test_a_run_goes_on_with_its_own_source_alone(tmp_path, capsys):
    file = written(tmp_path / "mine", "sensors")
    run = trained(tmp_path, file, SAVED)
    text = file.read_text()
    file.write_text(text.replace("1.0", "0.5"))
    more = ["collection.total_frames=24"]
    with pytest.raises(ConfigError, match=r"sensors\.py has the hash .* began with .* restore it"):
        train_on(tmp_path, *more, config=None, resume=run)
    file.unlink()
    train_on(tmp_path, *more, resume=run)
    assert "is gone" in capsys.readouterr().out
    assert summary(run)["frames"] == 24
    assert load_config(run / "config.yaml").env.scenario == str(file)


def test_resume_auto_begins_a_new_run_of_another_source(tmp_path, monkeypatch):
    file = written(tmp_path / "mine", "sensors")
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
            "expected a subclass of BaseScenario, got none of that name; json",
        ),
        ("gone.py", "expected a file, got 'gone.py'; there is none"),
    ],
)
def test_a_scenario_that_is_not_found(scenario, part):
    with pytest.raises(ConfigError) as caught:
        make_env("vmas", scenario=scenario, **SETTINGS)
    assert part in str(caught.value)


# Others, and actions


def team(name, folder, **settings):
    """Return the environment of a scenario of ``FILES``."""
    return make_env("vmas", scenario=str(written(folder, name)), **{**SETTINGS, **settings})


def velocity(env, agent):
    return env.simulator.agents[agent].state.vel


@pytest.mark.parametrize("others", ["no_op", "random", "scripted"])
def test_others_act(others, tmp_path):
    env = team("scripted", tmp_path, group="red", others=others, n_envs=600)
    env.rollout(1, NoOpPolicy(9))
    force = velocity(env, 1)  # after one step from rest it has the direction of the force
    if others == "no_op":
        assert not force.any()
    elif others == "scripted":
        assert (force[:, 0] > 0).all()
        assert not force[:, 1].any()
    else:  # each of the nine forces with a probability of 1/9: 67 +- 8 of 600
        kinds = force.sign().unique(dim=0, return_counts=True)
        assert len(kinds[0]) == 9
        assert ((kinds[1] - 600 / 9).abs() < 5 * 8).all()
    assert (env.simulator.world.agents[2].state.vel[:, 1] > 0).all()  # the guard has its script


def test_others_need_agents_outside_the_team_and_a_script(tmp_path):
    with pytest.raises(ConfigError, match="expected agents outside the team, got none"):
        team("scripted", tmp_path, group="all", others="random")
    with pytest.raises(ConfigError, match="expected a class HeuristicPolicy in the file of Groups"):
        make_env("vmas", scenario=s.Groups(), group="red", others="scripted", **SETTINGS)
    with pytest.raises(ConfigError, match=r"env\.others: expected one of no_op, random"):
        team("scripted", tmp_path, group="red", others="scripte")
    assert schema.OTHERS == OTHERS


def test_others_without_a_force_of_zero_among_their_actions_stand_still(tmp_path):
    file = written(tmp_path, "scripted")
    text = file.read_text().replace("collide=False,", "collide=False, discrete_action_nvec=[2, 2],")
    file.write_text(text)
    env = make_env("vmas", scenario=str(file), group="red", **SETTINGS)
    env.rollout(1)
    assert not velocity(env, 1).any()
    assert velocity(env, 0).any()  # each action of the team is a force


@pytest.mark.parametrize("n", [3, 5])
def test_actions_of_each_dimension(n, tmp_path):
    env = team("sensors", tmp_path, actions_per_dimension=n, n_envs=n * n)
    assert env.n_actions == n * n
    env.reset()
    action = torch.arange(n * n)[:, None].repeat(1, 2)
    env.step(env.reset().set(ACTION, action))
    force = env.simulator.agents[0].action.u
    # VMAS: number 0 is no force, then the forces from the lowest to the highest without it.
    forces = [0.0, *(x for x in torch.linspace(-1, 1, n).tolist() if x)]
    expected = [[x, y] for x in forces for y in forces]
    assert torch.allclose(force, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("n", [1, 4])
def test_actions_of_each_dimension_are_odd(n, tmp_path):
    with pytest.raises(ConfigError, match=rf"an odd number of at least 3, .* got {n}"):
        team("sensors", tmp_path, actions_per_dimension=n)


# Observations and actions of several sizes, masks


def test_shorter_observations_are_filled_up_and_fewer_actions_masked(tmp_path):
    env = team("roles", tmp_path, state="observations")
    assert env.notes == {
        "observations": "filled up to 4 numbers, by zeros (scout 4, carrier 2)",
        "actions": "filled up to 9 actions, by the mask (scout 6, carrier 9)",
    }
    shown = env.reset()
    pos = [agent.state.pos for agent in env.simulator.agents]
    assert torch.equal(shown[OBSERVATION][:, 1], torch.cat([pos[1], torch.zeros(2, 2)], 1))
    assert torch.equal(shown[OBSERVATION][:, 0, :2], pos[0])
    assert torch.equal(shown[STATE], shown[OBSERVATION].flatten(1))
    assert shown[ACTION_MASK][0].tolist() == [[True] * 6 + [False] * 3, [True] * 9]
    with pytest.raises(ValueError, match="expected actions from 0 to 5, got 6 of agent 0"):
        env.step(shown.set(ACTION, torch.tensor([[0, 8], [6, 0]])))


def test_a_mask_is_no_observation(tmp_path):
    env = team("masks", tmp_path, n_envs=50)
    shown = env.reset()
    right = env.simulator.agents[1].state.pos[:, 0] > 0
    assert env_dims(env).observation_dim == 2
    assert torch.equal(shown[ACTION_MASK][:, 1, 6:], ~right[:, None].expand(50, 3))
    assert shown[ACTION_MASK][..., :6].all()
    assert 0 < right.sum() < 50


def test_a_mask_of_another_size_is_refused(tmp_path):
    file = written(tmp_path, "masks")
    file.write_text(file.read_text().replace("batch_dim, 9", "batch_dim, 8"))
    with pytest.raises(ConfigError, match=r"'action_mask' of \[2, 9\], .*got \[2, 8\]"):
        make_env("vmas", scenario=str(file), **SETTINGS)


CASES = [
    ("roles", {"state": "world"}),
    ("roles", {"state": "observations"}),
    ("masks", {"state": "world"}),
    ("scripted", {"group": "red", "others": "random"}),
    ("scripted", {"group": "red", "others": "scripted"}),
    ("sensors", {"actions_per_dimension": 5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_kernel_runs_them_and_both_collectors_agree(name, settings, tmp_path):
    settings = {**settings, "engine": "kernel", "n_envs": 40, "max_steps": 6}
    batches = []
    for collector in ("fused", "stock"):
        env = team(name, tmp_path, **settings)
        dims = env_dims(env)
        torch.manual_seed(0)
        agent = FeedforwardAgent(dims.n_agents, dims.observation_dim, dims.n_actions)
        policy = make_policy(agent, EpsilonGreedyAction(0.5, 0.5, 0, seed=1))
        made = make_collector(
            with_memory(env, agent),
            policy,
            rows="slices",
            steps=9,
            n_batches=2,
            collector=collector,
        )
        if collector == "fused":
            assert str(made.how) == "C++ loop"
        batches.append(torch.cat([batch.clone() for batch in made], 1))
    ours, theirs = batches
    for key in (ACTION, OBSERVATION, STATE, next_key(REWARD), next_key(OBSERVATION)):
        assert torch.equal(ours[key], theirs[key]), key
    if name in ("roles", "masks"):
        for key in (ACTION_MASK, next_key(ACTION_MASK)):
            assert torch.equal(ours[key], theirs[key])
        mask = ours[ACTION_MASK]
        assert mask.gather(-1, ours[ACTION][..., None]).all()
        assert not mask.all()


def test_others_act_by_a_trained_run(tmp_path, capsys):
    file = written(tmp_path / "mine", "scripted")
    blue = trained(tmp_path, file, "env.group=blue", AGENTS["recurrent"])
    by_run = [f"env.others={blue}", "env.engine=auto"]
    capsys.readouterr()
    red = trained(tmp_path, file, "env.group=red", SAVED, *by_run)
    reason = "only VMAS itself asks a policy for the actions of others"
    assert f"engine: eager (no kernel: {reason}; no inductor: {reason})" in capsys.readouterr().out
    assert evaluated(red) == summary(red)["return"]
    other = trained(tmp_path, "simple_tag", "env.group=agent")
    with pytest.raises(ConfigError, match=r"expected a run on scripted, got .*simple_tag"):
        trained(tmp_path, file, "env.group=red", f"env.others={other}")
    both = trained(tmp_path, file, "env.group=all")
    with pytest.raises(ConfigError, match="expected a policy of 1 agents, 4 observed numbers"):
        trained(tmp_path, file, "env.group=red", f"env.others={both}")
    (blue / "weights.pt").unlink()
    file.unlink()
    assert evaluated(red) == summary(red)["return"]
    assert f"{blue}/weights.pt is gone" in capsys.readouterr().out


def test_a_run_against_a_run_resumes(tmp_path):
    file = written(tmp_path / "mine", "scripted")
    blue = trained(tmp_path, file, "env.group=blue", AGENTS["recurrent"])
    settings = ["env.group=red", f"env.others={blue}", SAVED, "collection.rows=slices"]
    settings += ["collection.steps=3", "collection.total_frames=24", "evaluation.every_frames=12"]
    unbroken = trained(tmp_path, file, *settings)
    broken = trained(tmp_path, file, *settings, "collection.total_frames=12")
    check_same(train_on(tmp_path, "collection.total_frames=24", resume=broken), unbroken)


class ByPlace(TensorDictModuleBase):
    """Takes action 1 to the right of the middle, else action 0."""

    in_keys = [OBSERVATION]
    out_keys = [ACTION]

    def forward(self, tensordict):
        observation = tensordict[OBSERVATION]
        return tensordict.set(ACTION, (observation[..., 0] > 0).long())


def test_others_act_by_any_policy_on_their_own_observations(tmp_path):
    env = team("scripted", tmp_path, group="red", others=ByPlace(), engine="auto", n_envs=50)
    shown = env.reset()
    right = env.simulator.agents[1].state.pos[:, 0] > 0
    env.step(shown.set(ACTION, torch.zeros(50, 1, dtype=torch.int64)))
    force = env.simulator.agents[1].action.u
    assert torch.equal(force[:, 1] < 0, right)  # action 1 is the lowest force upwards
    with pytest.raises(ConfigError, match="kernel has no policy of others: only VMAS itself"):
        team("scripted", tmp_path, group="red", others=ByPlace(), engine="kernel")


# Other recipes


@pytest.mark.slow
def test_engines_of_a_file(tmp_path, capsys):
    file = written(tmp_path, "sensors")
    call("names.py", "engines", str(file))
    line = capsys.readouterr().out
    assert line.startswith(str(file))
    assert " s  kernel" in line
    with pytest.raises(SystemExit) as ended:
        call("names.py", "games", str(file))
    check_told(ended.value.code, capsys.readouterr().err, 2, ["expected scenarios after engines"])


def test_a_table_of_a_users_task_by_path(tmp_path, monkeypatch):
    file = written(tmp_path / "mine", "sensors")
    text = tiny(tmp_path).read_text().replace("scenario: balance", "scenario: mine/sensors.py")
    (tmp_path / "sensors_qmix.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    (cell,) = table_cells(["./sensors"], ["qmix", "vdn", BENCHMARL], [0], [])
    assert (cell.name, cell.config) == ("sensors_qmix-0", Path("sensors_qmix.yaml"))
    settings = ["env.scenario_kwargs={}", "name=sensors_qmix-0"]
    trained_run = train_on(tmp_path, *settings, "checkpoint.every_seconds=null", config=cell.config)
    cell = replace(cell, overrides=("env.scenario_kwargs={}",))
    assert cell.is_done(trained_run.parent)
    file.write_text(file.read_text().replace("1.0", "0.5"))
    with pytest.raises(ConfigError, match=r"sensors\.py has the hash .*; delete it, or choose"):
        cell.is_done(trained_run.parent)


def test_benchmarl_has_no_scenarios_of_a_user(tmp_path):
    file = written(tmp_path / "mine", "sensors")
    with pytest.raises(ConfigError, match="BenchMARL has VMAS's scenarios alone"):
        load_vmas_config(str(tiny(tmp_path)), [f"env.scenario={file}"])


def test_throughput_takes_a_file(tmp_path, monkeypatch, capsys):
    file = written(tmp_path, "sensors")
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--scenarios", "balance", str(file)])
    assert throughput_arguments(None).scenarios == ["balance", str(file)]
    env = their_env(str(file), 2, torch.device("cpu"))
    assert env.reset()["agents", "observation"].shape == (2, 2, 6)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--scenarios", "balanc"])
    with pytest.raises(SystemExit) as ended:
        throughput_arguments(None)
    assert ended.value.code == 2
    assert "did you mean 'balance'" in capsys.readouterr().err
