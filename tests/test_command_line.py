"""Command lines: a mistake gets one line and its exit code, at once where torch is not needed."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from recipe_tools import RECIPES, TINY, call, check_told, game, tiny

from qmix_trl import ConfigError, MachineError
from qmix_trl.errors import exit_on_mistake


def command(folder, *arguments):
    """Return Python's result on these arguments, in a folder of its own, without CUDA."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def recipe(folder, name, *arguments):
    """Return the result of a recipe, run as a user does."""
    return command(folder, RECIPES / name, *arguments)


# Mistakes that are told without torch

EARLY = {
    "unknown scenario": (["env.scenario=balanc"], ["'balance'", "qmix-trl names scenarios"]),
    "unknown game": ([game("two_stp")], ["'two_stp'", "did you mean 'two_step'"]),
    "wrong type": (["env.n_envs=many"], ["env.n_envs", "an integer", "'many'"]),
    "out of range": (["loss.gamma=1.5"], ["loss.gamma", "at most 1", "1.5"]),
    "batch larger than buffer": (
        ["replay.batch_rows=17"],
        ["replay.batch_rows (17)", "replay.capacity_rows (16)"],
    ),
    "run exists": (["name=taken"], ["taken", "name=auto"]),
    "file for a folder of runs": (
        ["--runs", "tiny.yaml/x"],
        ["--runs: expected a folder, got tiny.yaml/x; tiny.yaml is a file"],
    ),
    "override behind an option": (["--runs", ".", "seed=none"], ["seed: expected an integer"]),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the file of a short run, and with a run called "taken"."""
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    tiny(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mistake", EARLY)
def test_a_mistake_gets_an_exit_code_and_a_line(mistake, folder, monkeypatch, capsys):
    overrides, parts = EARLY[mistake]
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as caught:
        call("train.py", "tiny.yaml", *overrides)
    check_told(caught.value.code, capsys.readouterr().err, 2, parts)
    assert [path.name for path in (folder / "runs").rglob("*")] == ["taken"]


LONG = "é" * 200  # 400 bytes; a name has at most 255


@pytest.mark.parametrize(
    "arguments",
    [
        ["train.py", f"{LONG}.yaml"],
        ["train.py", "tiny.yaml", f"env.scenario={LONG}.py"],
        ["train.py", "tiny.yaml", f"env.scenario={LONG}.py:Name"],
        ["train.py", "tiny.yaml", f"env.others={LONG}"],
        ["train.py", "tiny.yaml", "--runs", LONG],
        ["train.py", "--resume", LONG],
        ["evaluate.py", LONG],
        ["games.py", "--runs", LONG],
        ["benchmark.py", "--runs", LONG],
        ["names.py", "engines", f"{LONG}.py"],
        ["throughput.py", "--scenarios", f"{LONG}.py"],
    ],
    ids=lambda arguments: " ".join(x for x in arguments if LONG not in x),
)
def test_a_name_that_no_file_can_have_is_a_mistake(arguments, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert LONG in last


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate.py"], "error: expected a run's folder, such as runs/balance_quick-1"),
        (["train.py"], "error: expected CONFIG, such as balance_quick"),
        (["train.py", "tiny.yaml", "--seed", "1"], "set without --: seed=..."),
        (["train.py", "--config", "tiny.yaml"], "error: unrecognized arguments: --config"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_are_missing_or_unknown(arguments, said, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.py", "tiny.yaml", "env.scenario=balanc"], "did you mean 'balance'?"),
        (["train_benchmarl.py", "tiny.yaml", game("two_step")], "VMAS's tasks, not 'games'"),
        (["evaluate.py", "runs/taken"], "runs/taken, which has no config.yaml; runs in runs: none"),
        (["games.py", "two_stp"], "did you mean 'two_step'?"),
        (["benchmark.py", "--tasks", "balanc"], "did you mean 'balance'?"),
        (["plot.py", "runs/taken"], "expected a run's folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_torch_is_imported(arguments, said, folder):
    name, *rest = arguments
    done = command(folder, "-X", "importtime", RECIPES / name, *rest)
    lines = done.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in imports}
    assert "qmix_trl.config" in modules
    assert not {"torch", "vmas"} & modules
    told = "\n".join(line for line in lines if line not in imports)
    check_told(done.returncode, told, 2, ["error: ", said])


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("  n_envs: 2", "  n_env: 2", 15, ["env.n_env", "unknown key", "'n_envs'"]),
        ("seed: 0", "seed: 0\nseed: 1", 3, ["seed", "twice"]),
        ("compile: false", "compile: auto", 6, ["runtime.compile", "true or false", "'auto'"]),
    ],
    ids=["misspelt key", "duplicated key", "compile: auto"],
)
def test_a_mistake_in_a_file_gets_its_line(old, new, line, parts, tmp_path, monkeypatch, capsys):
    path = tmp_path / "edited.yaml"
    assert TINY.count(old) == 1
    path.write_text(TINY.replace(old, new))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call("train.py", str(path))
    check_told(caught.value.code, capsys.readouterr().err, 2, [f"{path}:{line}: ", *parts])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["two_stp"], "unknown game 'two_stp'; did you mean 'two_step'?; known: two_step, matrix"),
        (["--seeds", "0"], "expected --seeds of at least 1, got 0"),
    ],
)
def test_a_mistake_in_the_arguments_of_games(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call("games.py", *arguments)
    check_told(caught.value.code, capsys.readouterr().err, 2, [said])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("recipe", ["games.py", "throughput.py", "benchmark.py"])
@pytest.mark.parametrize("package", ["matplotlib", "scipy"])
def test_libraries_for_the_picture_are_asked_for_first(
    recipe, package, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    with pytest.raises(SystemExit) as caught:
        call(recipe)
    said = [f"figures: expected the package {package}", "pip install 'qmix-trl[recipes]'"]
    check_told(caught.value.code, capsys.readouterr().err, 2, said)
    assert list(tmp_path.iterdir()) == []


# Mistakes that need torch or VMAS

LATE = {
    "misspelt keyword of a game": (
        [game("memory", "delays: 3")],
        2,
        ["env.scenario_kwargs.delays", "did you mean 'delay'"],
    ),
    "misspelt scenario keyword": (
        ["env.scenario_kwargs={n_agent: 3}"],
        2,
        ["env.scenario_kwargs.n_agent", "'n_agents'", "package_mass"],
    ),
    "several groups": (
        ["env.scenario=simple_tag", "env.scenario_kwargs={}"],
        2,
        ["adversary (3)", "agent (1)", "env.group="],
    ),
    "text for a boolean": (
        ["env.scenario_kwargs.random_package_pos_on_line=maybe"],
        2,
        ["env.scenario_kwargs.random_package_pos_on_line", "true or false", "'maybe'"],
    ),
    "fused collection of a game": (
        [game("two_step"), "collection.collector=fused"],
        2,
        ["collection.collector: fused", "GameTeam", "collection.collector=auto"],
    ),
    "CUDA graph on a CPU": (
        ["runtime.cuda_graph=true"],
        3,
        ["runtime.cuda_graph: true", "on a CPU", "runtime.cuda_graph=auto"],
    ),
    "no cuda": (["runtime.device=cuda"], 3, ["runtime.device", "torch", "runtime.device=auto"]),
}


@pytest.mark.parametrize("mistake", LATE)
def test_a_late_mistake_gets_an_exit_code_and_a_line(mistake, folder, monkeypatch, capsys):
    overrides, code, parts = LATE[mistake]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        call("train.py", "tiny.yaml", *overrides)
    check_told(caught.value.code, capsys.readouterr().err, code, parts)
    assert [path.name for path in (folder / "runs").rglob("*")] == ["taken"]


def test_a_task_that_fails_shows_the_line_of_its_assertion(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as caught:
        call("train.py", "tiny.yaml", "env.scenario_kwargs.n_agents=1")
    said = ["env.scenario_kwargs", "AssertionError", "(assert self.n_agents > 1)"]
    check_told(caught.value.code, capsys.readouterr().err, 2, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenarios", "balanse"], "did you mean 'balance'"),
        (["--envs", "0"], "argument --envs: expected at least 1, got 0"),
        (["--rounds", "0"], "argument --rounds: expected at least 1, got 0"),
    ],
)
def test_a_mistake_in_the_arguments_of_throughput(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        call("throughput.py", *arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


# Processes


def test_train_and_evaluate_by_the_command_line(tmp_path):
    done = recipe(tmp_path, "train.py", tiny(tmp_path), "--runs", "mine")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "mine" / "tiny-1"
    *_, returns, following = done.stdout.splitlines()
    assert returns.startswith("greedy return ")
    assert following.endswith("recipes/evaluate.py mine/tiny-1")
    assert "Traceback" not in done.stderr

    done = recipe(tmp_path, "evaluate.py", run, "--episodes", "3")
    assert done.returncode == 0, done.stderr
    *lines, following = done.stdout.splitlines()
    assert lines[0] == "balance: 3 episodes from seed 1000, last weights"
    assert [line.split(maxsplit=2)[-1] for line in lines[2:5]] == [
        str(run),
        "doing nothing",
        "chance",
    ]
    assert following.startswith("next: ")


def test_letters_that_the_terminal_lacks_are_escapes(tmp_path):
    tiny(tmp_path).rename(tmp_path / "b ü.yaml")
    done = subprocess.run(
        [sys.executable, RECIPES / "train.py", "b ü.yaml", game("two_step")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(rb"runs/b \xfc-1: qmix on two_step")


def test_an_interrupted_training_says_so(tmp_path):
    with subprocess.Popen(
        [sys.executable, RECIPES / "train.py", tiny(tmp_path), "collection.total_frames=10000000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where tests run in the background, the signal would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while "loss" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "stopped at" in said.splitlines()[-1]
    assert "no checkpoint: checkpoint.every_seconds is null" in said.splitlines()[-1]


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path):
    code = "with exit_on_mistake():\n    while True:\n        print('line', flush=True)"
    code = f"from qmix_trl.errors import exit_on_mistake\n{code}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_a_broken_pipe_of_other_code_is_told():
    source, sink = os.pipe()
    os.close(source)
    with pytest.raises(BrokenPipeError), exit_on_mistake():
        os.write(sink, b"to nobody")
    os.close(sink)


@pytest.mark.parametrize(
    ("mistake", "code", "said"),
    [
        (ConfigError("this"), 2, "error: this\n"),
        (MachineError("that"), 3, "error: that\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(mistake, code, said, capsys):
    with pytest.raises(SystemExit) as caught, exit_on_mistake():
        raise mistake
    assert caught.value.code == code
    assert capsys.readouterr().err == said


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_mistake():
        raise ZeroDivisionError
