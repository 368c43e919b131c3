"""Environments of a user's function: in a configuration, in a run's folder, and their mistakes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from recipe_tools import RECIPES, check_told, evaluated, run, summary, tiny
from team_tools import LIMIT, AnyEnv, Layout
from torchrl.envs import ParallelEnv
from train_tools import wait_for_the_table

from qmix_trl import ConfigError, env_dims, load_config, make_env
from qmix_trl.envs.custom import EnvMaker, several
from qmix_trl.errors import exit_on_mistake
from qmix_trl.keys import OBSERVATION, STATE

ONE = """\
from team_tools import AnyEnv, Layout

def make(*, name="seen", first=0):
    return AnyEnv(Layout(group="walkers", observation=name, action="move", n_envs=None), first)

def at_once(n_envs, device):
    assert device.type == "cpu"
    return AnyEnv(Layout(n_envs=n_envs))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a file of environments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "mine.py").write_text(ONE)
    return tmp_path


def section(make, **changes):
    """Return the override that puts a function's environments in place."""
    settings = {
        "make": make,
        "make_kwargs": "{}",
        "group": "null",
        "n_envs": 2,
        "max_steps": 4,
        "state": "world",
        "team_reward": "mean",
        "processes": 1,
        **changes,
    }
    return f"env={{family: custom, {', '.join(f'{k}: {v}' for k, v in settings.items())}}}"


def made(make, **changes):
    """Return a function's environments."""
    settings = {
        "n_envs": 2,
        "max_steps": LIMIT,
        "state": "world",
        "team_reward": "mean",
        "seed": 0,
        **changes,
    }
    return make_env("custom", make=str(make), **settings)


def refusal(make, **changes):
    """Return the message of refused environments, asserted to be one line."""
    with pytest.raises(ConfigError) as caught:
        made(make, **changes)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("function", ["make", "at_once"])
def test_a_run_is_trained_and_evaluated_from_another_folder(function, folder, monkeypatch, capsys):
    left = run(folder, section(f"envs/mine.py:{function}"))
    assert capsys.readouterr().out.startswith(f"{left}: qmix on mine.py:{function}, cpu, seed 0")
    assert summary(left)["engine"] == ("SerialEnv" if function == "make" else "AnyEnv")
    monkeypatch.chdir("/")
    again = evaluated(left, "evaluation.episodes=2")
    assert again == summary(left)["return"]
    saved = load_config(left / "config.yaml").env
    assert saved.make == f"{folder / 'envs' / 'mine.py'}:{function}"


def test_a_run_is_evaluated_by_its_copies_where_the_files_are_gone(folder, capsys):
    left = run(folder, section("envs/mine.py:make"))
    shutil.rmtree(folder / "envs")
    capsys.readouterr()
    assert evaluated(left, "evaluation.episodes=2") == summary(left)["return"]
    assert f"{folder / 'envs' / 'mine.py'} is gone" in capsys.readouterr().out


def test_a_file_on_the_command_line_is_relative_to_the_current_folder(folder, monkeypatch):
    expected = load_config(tiny(folder), [section("envs/mine.py:make")])
    monkeypatch.chdir(folder / "envs")
    typed = [section("elsewhere.py:make"), "env.make=mine.py:make"]
    assert load_config(tiny(folder), typed) == expected
    assert expected.env.make == f"{folder / 'envs' / 'mine.py'}:make"


def made_in_python(*, first=0):
    """Make one environment of the tests."""
    return AnyEnv(Layout(n_envs=None), first)


def test_a_function_itself_makes_environments():
    settings = {"n_envs": 2, "max_steps": LIMIT, "state": "world", "team_reward": "mean", "seed": 0}
    assert make_env("custom", make=made_in_python, **settings).rollout(3).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"made_in_python: env\.make_kwargs\.size"):
        make_env("custom", make=made_in_python, make_kwargs={"size": 3}, **settings)
    with pytest.raises(ConfigError, match="expected 1 with a function itself, got 2; name it"):
        make_env("custom", make=made_in_python, processes=2, **settings)


def test_several_environments_of_one_function(folder):
    env = made(folder / "envs" / "mine.py:make", make_kwargs={"first": 1, "name": "x"}, n_envs=3)
    assert env.batch_size == (3,)
    assert (env_dims(env).n_agents, env.layout.observation) == (2, ("walkers", "x"))
    batch = env.rollout(LIMIT, break_when_any_done=False)
    assert batch[STATE][:, 0, 2].tolist() == [1] * 3  # all are made alike
    env = made(folder / "envs" / "mine.py:at_once")
    assert env.reset()[STATE][:, 1].tolist() == [0, 0]  # episode 0: seeded after the steps tried


def test_a_module_and_the_files_beside_a_file(folder, monkeypatch):
    (folder / "beside_mine.py").write_text("NAME = 'from_beside'\n")
    text = ONE + "\nimport beside_mine\ndef other():\n    return make(name=beside_mine.NAME)\n"
    (folder / "pettingzoo.py").write_text(text)  # called as a package
    assert made(folder / "pettingzoo.py:other").layout.observation[-1] == "from_beside"
    (folder / "module_of_mine.py").write_text(ONE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    assert made("module_of_mine:make").layout.observation[-1] == "seen"


@pytest.mark.filterwarnings("ignore")
def test_environments_are_spread_evenly_over_processes(folder):
    maker = EnvMaker(str(folder / "envs" / "mine.py:make"), {}, torch.device("cpu"))
    env = several(maker, 6, 3)
    assert isinstance(env, ParallelEnv)
    assert (env.num_workers, env.batch_size) == (3, (3, 2))
    with pytest.raises(ConfigError, match="expected a divisor of the number of environments, 7"):
        several(maker, 7, 3)


def in_a_group(folder, *command):
    """Return the process of a recipe that leads a group of its own, as a shell's job does."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def group_of(process):
    """Return the ids of the processes of a group that run still."""
    listed = ["ps", "-eww", "-o", "pgid=,pid=,stat=,args="]
    lines = subprocess.run(listed, capture_output=True, text=True).stdout.splitlines()
    found = [line.split() for line in lines if "spawn_main" in line]
    return [words[1] for words in found if words[0] == str(process.pid) and words[2][0] != "Z"]


@pytest.mark.slow
def test_a_signal_to_all_processes_stops_a_run_with_a_checkpoint(folder):
    settings = [section("envs/mine.py:make", processes=2), "collection.total_frames=1000000"]
    train = [RECIPES / "train.py", tiny(folder), *settings, "checkpoint.every_seconds=1000"]
    with in_a_group(folder, *train) as process:
        wait_for_the_table(process)
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "stopped at" in said
    assert not group_of(process)


SLOW = """\
import pathlib, time

class Slow(AnyEnv):
    def _step(self, shown):
        pathlib.Path(__file__).with_name("stepped").touch()
        time.sleep(1)
        return super()._step(shown)

def slow():
    return Slow(Layout(n_envs=None), 0)
"""


@pytest.mark.slow
def test_an_interrupt_of_all_processes_ends_an_evaluation_at_once(folder):
    (folder / "envs" / "mine.py").write_text(ONE + SLOW)
    stepped = folder / "envs" / "stepped"
    left = run(folder, section("envs/mine.py:make"))
    text = (left / "config.yaml").read_text().replace("mine.py:make", "mine.py:slow")
    assert "processes: 1" in text
    (left / "config.yaml").write_text(text.replace("processes: 1", "processes: 2"))
    evaluate_ = [RECIPES / "evaluate.py", left, "--episodes", "4"]
    with in_a_group(folder, *evaluate_) as process:
        while len(group_of(process)) < 2 and process.poll() is None:
            time.sleep(0.01)
        stepped.unlink(missing_ok=True)  # by the steps that are tried first
        while not stepped.exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert errors.startswith("interrupted\n")  # Python may tell of semaphores that it removes
    assert "Traceback" not in errors
    assert not group_of(process)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_processes_step_as_one_does(folder):
    make = folder / "envs" / "mine.py:make"
    one, two = made(make), made(make, processes=2)
    try:
        seen = [env.rollout(LIMIT)[OBSERVATION][..., 0, :3] for env in (one, two)]
        assert torch.equal(seen[0][..., 1:], seen[1][:, 0, :, 1:])
    finally:
        two.close()


# Mistakes


@pytest.mark.parametrize(
    ("override", "part"),
    [
        (section("mine.py"), "expected path/to/file.py:function or module:function, got 'mine.py'"),
        (section("'mine.py:'"), "expected path/to/file.py:function or module:function"),
        (section("envs/yours.py:make"), "relative to the current folder, got 'envs/yours"),
        (section("envs/mine.py:make", processes=2, n_envs=3), "does not divide env.n_envs (3)"),
    ],
)
def test_mistakes_in_a_configuration(override, part, folder):
    with pytest.raises(ConfigError) as caught:
        load_config(tiny(folder), [override])
    assert part in str(caught.value)
    assert str(caught.value).startswith("override ")


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("def mak(): pass", ["expected a function 'make', got none; did you mean 'mak'?"]),
        ("make = 3", ["expected a function 'make', got none"]),
        ("import no_such_package", ["No module named 'no_such_package' at wrong.py:1 (import no"]),
        ("def make(:", ["SyntaxError", "wrong.py, line 1"]),
        ("def make():\n    return 1 / 0", ["ZeroDivisionError", "at wrong.py:2 (return 1 / 0)"]),
        ("def make(): pass", ["expected an EnvBase of TorchRL, got NoneType"]),
        ("def make(size): pass", ["env.make_kwargs.size: missing; the function needs it"]),
        (
            "from team_tools import *\ndef make(): return AnyEnv()",
            ["expected one environment without a batch, got a batch of [2]", "n_envs"],
        ),
        (
            "from team_tools import *\ndef make(n_envs): return AnyEnv(Layout(n_envs=7))",
            ["expected a batch of [2] environments, as n_envs says, got [7]"],
        ),
        (
            "from team_tools import *\nclass Mine(AnyEnv):\n    def _step(self, tensordict):\n"
            "        return self.missing\ndef make(): return Mine(Layout(n_envs=None))",
            ["AttributeError", "'missing'", "at wrong.py:4 (return self.missing)"],
        ),
        (
            "from team_tools import *\nclass Mine(AnyEnv):\n    def _reset(self, *a, **k):\n"
            "        return super()._reset(*a, **k).exclude(('agents', 'observation'))\n"
            "def make(): return Mine(Layout(n_envs=None))",
            ["expected an entry ('agents', 'observation') of [2, 5]", "got none"],
        ),
    ],
)
def test_mistakes_in_a_file_are_told_with_their_line(code, parts, tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(code + "\n")
    said = refusal(f"{file}:make")
    assert said.startswith(f"env.make: {file}:make: ")
    for part in parts:
        assert part in said


GROWING = """
import torch
from torchrl.data import Unbounded

class Larger(AnyEnv):
    def _set_specs(self):
        super()._set_specs()
        spec = self.observation_spec.clone()
        spec["agents", "observation"] = Unbounded((2, 6), dtype=torch.float64)
        self.observation_spec = spec

    def _entries(self):
        data = super()._entries()
        seen = data["agents", "observation"]
        return data.set(("agents", "observation"), torch.cat([seen, seen[..., :1]], -1))

made = []

def growing():
    made.append((Larger if len(made) > 2 else AnyEnv)(Layout(n_envs=None)))
    return made[-1]
"""


def test_environments_of_several_sizes_are_refused(folder):
    file = folder / "envs" / "mine.py"
    file.write_text(ONE + GROWING)
    said = refusal(f"{file}:growing", n_envs=3)
    assert "expected environments of equal sizes from all calls, got others: RuntimeError" in said


def test_mistakes_in_keywords(folder):
    make = folder / "envs" / "mine.py:make"
    assert "env.make_kwargs.nam: unknown to the function; did you mean 'name'?" in refusal(
        make, make_kwargs={"nam": 1}
    )
    assert "env.make_kwargs.n_envs: expected in env.n_envs alone" in refusal(
        folder / "envs" / "mine.py:at_once", make_kwargs={"n_envs": 1}
    )
    assert "env.processes: expected 1, as the function makes all" in refusal(
        folder / "envs" / "mine.py:at_once", processes=2
    )
    assert "No module named 'no_such_module'" in refusal("no_such_module:make")


def test_a_mistake_in_a_file_ends_a_run_with_one_line_and_exit_code_2(folder, capsys):
    (folder / "envs" / "mine.py").write_text("def make():\n    raise RuntimeError('no display')\n")
    with pytest.raises(SystemExit) as ended, exit_on_mistake():
        run(folder, section("envs/mine.py:make"))
    expected = ["no display", "mine.py:2 (raise RuntimeError('no display'))"]
    check_told(ended.value.code, capsys.readouterr().err, 2, expected)


def test_environments_without_a_state_are_trained_without_checkpoints(folder, capsys):
    overrides = [section("envs/mine.py:make"), "checkpoint.every_seconds=0"]
    found = run(folder, *overrides)
    assert summary(found)["frames"] == 16
    assert not (found / "checkpoints").exists()
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.startswith("no checkpoints: ")]) == 1
    assert any("run_state() and load_run_state(state)" in line for line in said)
