"""Training that is saved and resumed: N + N frames equal 2 N bit for bit."""

import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import numpy
import pytest
import torch
from recipe_tools import AGENTS, MIXERS, RECIPES, call, game, metrics, run, summary, tiny
from support import checkpoints
from support.planned_run import planned_run
from support.run_folder import newest_checkpoint
from train_tools import SAVED, check_same, started, wait_for_the_table

from qmix_trl import CheckpointError, ConfigError, make_collector
from qmix_trl.checkpoint import run as checkpoint
from qmix_trl.checkpoint.weights import about_weights
from qmix_trl.fused.collector import FusedCollector
from qmix_trl.native import build
from qmix_trl.native.lock import held

KERNEL = "env.engine=kernel"
SLICES = ("collection.rows=slices", "collection.steps=3", "env.max_steps=5")
RECURRENT = AGENTS["recurrent"]
SOFT = "update.target={name: soft, tau: 0.1}"
RMSPROP = "update.optimizer={name: rmsprop, lr: 5e-4, alpha: 0.99, eps: 1e-5}"
STOCK = "collection.collector=stock"
BURN_IN = "replay.burn_in=2"
REPEATS = "exploration.repeat_exponent=1.5"
BOUNDED = "loss.bounded_targets=true"
EXPLORES = "exploration.epsilon_end=0.5"
ONE_BATCH = (
    "replay.sampling=each_once",
    "replay.capacity_rows=2",
    "replay.batch_rows=1",
    "update.per_batch=4",
    "update.target={name: batch}",
    "loss.double_q=false",
)
CASES = {
    "kernel, slices": [KERNEL, *SLICES, SOFT, BOUNDED],
    "kernel, checked by VMAS": [KERNEL, "env.verify=0.5", RMSPROP],
    "kernel, episodes, recurrent": [KERNEL, RECURRENT, REPEATS],
    "kernel, slices, recurrent, vdn": [KERNEL, *SLICES, RECURRENT, MIXERS["vdn"], BURN_IN, REPEATS],
    "eager, stock": [STOCK, REPEATS],
    "eager, stock, slices, recurrent, vdn": [STOCK, *SLICES, RECURRENT, MIXERS["vdn"], BURN_IN],
    "eager, fused, none": [RECURRENT, MIXERS["none"], RMSPROP, BOUNDED],
    "one batch": [KERNEL, *SLICES, *ONE_BATCH, RECURRENT, "agent.layer_norm=true"],
    "game": [game("memory", "delay: 2"), RECURRENT, SOFT],
    "game, slices": [game("two_step"), *SLICES[:2], MIXERS["vdn"], REPEATS],
}
N_BATCHES = 3  # N


def frames(overrides, n_batches):
    """Return the override for a number of batches of two environments, all saved."""
    steps = 3 if "collection.steps=3" in overrides else 4
    return f"collection.total_frames={2 * steps * n_batches}"


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_equals_an_unbroken_one(name, tmp_path):
    overrides = [EXPLORES, "evaluation.every_frames=1", "update.per_batch=3", *CASES[name]]
    whole = run(tmp_path, *overrides, SAVED, frames(overrides, 2 * N_BATCHES))
    half = run(tmp_path, *overrides, SAVED, frames(overrides, N_BATCHES))
    torch.rand(3)
    assert run(tmp_path, frames(overrides, 2 * N_BATCHES), resume=half) == half
    check_same(half, whole)
    assert len(metrics(whole)["frames"]) == 2 * N_BATCHES
    assert len(set(metrics(whole)["loss"])) == 2 * N_BATCHES


def test_checkpoints_and_evaluations_do_not_change_the_training(tmp_path):
    overrides = [*SLICES, EXPLORES, frames(SLICES, 5)]
    plain = run(tmp_path, *overrides)
    other = run(tmp_path, *overrides, SAVED, "evaluation.every_frames=1")
    names = metrics(plain).keys() - {"greedy_return"}
    assert {n: metrics(plain)[n] for n in names} == {n: metrics(other)[n] for n in names}
    assert newest_checkpoint(plain) is None


def test_lines_behind_the_checkpoint_are_trained_again(tmp_path):
    whole = run(tmp_path, SAVED, frames([], 4), "checkpoint.keep=9", "evaluation.every_frames=1")
    folder = run(tmp_path, SAVED, frames([], 4), "checkpoint.keep=9", "evaluation.every_frames=1")
    for path in sorted((folder / "checkpoints").iterdir())[2:]:
        (path / "manifest.json").unlink()  # as if the run had been killed before it was written
    with (folder / "metrics.csv").open("a") as file:
        file.write("torn, 1.0")
    run(tmp_path, resume=folder)
    assert metrics(folder) == metrics(whole)


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    folder = run(tmp_path, SAVED)
    before = (folder / "metrics.csv").read_bytes(), summary(folder)
    run(tmp_path, resume=folder)
    assert (folder / "metrics.csv").read_bytes() == before[0]
    assert summary(folder) == before[1]


def test_a_run_that_is_shortened_to_its_checkpoint_is_evaluated(tmp_path):
    whole = run(tmp_path, SAVED, frames([], 2))
    long = run(tmp_path, SAVED, frames([], 4), "checkpoint.keep=9", "evaluation.every_frames=8")
    plain = run(tmp_path, SAVED, frames([], 4), "checkpoint.keep=9")
    for folder in (long, plain):
        for path in sorted((folder / "checkpoints").iterdir())[2:]:
            shutil.rmtree(path)  # as if the run had been killed
    (plain / "weights.pt").unlink()
    (plain / "summary.json").unlink()
    run(tmp_path, frames([], 2), resume=plain)
    assert summary(plain)["return"] == summary(whole)["return"] == summary(long)["return"]


def test_seconds_count_all_sittings(tmp_path):
    folder = run(tmp_path, SAVED)
    first = summary(folder)["seconds"]
    run(tmp_path, "collection.total_frames=32", resume=folder)
    found = summary(folder)
    assert found["seconds"] > first
    assert found["frames_per_second"] == pytest.approx(32 / found["seconds"])


# Which run goes on


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss.gamma=0.5", r"loss\.gamma: expected 0\.99, with which the run began, got 0\.5"),
        ("mixer={name: vdn}", r"mixer\.name: expected 'qmix'.*got 'vdn'"),
        ("env.n_envs=1", r"env\.n_envs: expected 2"),
        ("seed=1", "seed: expected 0"),
        ("name=other", "name: expected 'auto'.*got 'other'"),
        ("collection.total_frames=8", "total_frames of at least 16.*got 8"),
    ],
)
def test_a_key_that_decides_what_is_learned_cannot_change(override, said, tmp_path):
    folder = run(tmp_path, SAVED)
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, override, resume=folder)


def test_other_keys_can_change(tmp_path):
    folder = run(tmp_path, SAVED)
    changes = ["evaluation.episodes=3", "checkpoint.keep=9", "runtime.threads=null"]
    threads = torch.get_num_threads()
    run(tmp_path, "collection.total_frames=24", *changes, resume=folder)
    torch.set_num_threads(threads)
    assert len(list((folder / "checkpoints").iterdir())) == 3
    assert metrics(folder)["frames"] == [8, 16, 24]
    # They stay what they are now, so that the run can be extended once more.
    run(tmp_path, "collection.total_frames=32", resume=folder)
    assert summary(folder)["return"]["greedy"]["episodes"] == 3


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    folder = run(tmp_path)
    with pytest.raises(ConfigError, match="has no checkpoint"):
        run(tmp_path, resume=folder)
    with pytest.raises(ConfigError, match="expected a run's folder, or auto, got"):
        run(tmp_path, resume=tmp_path / "nowhere")


def test_the_newest_run_of_a_configuration_goes_on(tmp_path):
    first, newest = run(tmp_path, SAVED), run(tmp_path, SAVED)
    other = run(tmp_path, SAVED, "seed=1")
    without = run(tmp_path)
    config = str(tmp_path / "tiny.yaml")

    def found(*overrides):
        return planned_run(config, overrides, str(tmp_path / "runs"), "auto").folder

    assert found() == newest
    assert found("collection.total_frames=32", "evaluation.seed=5") == newest
    assert found("seed=1") == other
    assert found("seed=2") is None
    os.utime(newest_checkpoint(first))
    assert found() == first
    assert without.exists()
    again = run(tmp_path, "collection.total_frames=32", resume="auto")
    assert again == first
    assert run(tmp_path, "seed=2", resume="auto").name == "tiny-5"


def killed_before_a_checkpoint(folder, *overrides):
    """Return the folder of a run named g without what is written after its first batch."""
    killed = run(folder, *overrides, "name=g")
    for name in ("weights.pt", "best_weights.pt", "summary.json"):
        (killed / name).unlink()
    return killed


@pytest.mark.parametrize("has_config", [True, False])
def test_a_named_run_that_was_killed_before_a_checkpoint_begins_again(has_config, tmp_path):
    killed = killed_before_a_checkpoint(tmp_path)
    if not has_config:
        (killed / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="g exists and is not overwritten"):
        run(tmp_path, "name=g")
    with (
        held(killed),
        pytest.raises(ConfigError, match="g: another process trains this run"),
    ):
        run(tmp_path, "name=g", resume="auto")
    assert run(tmp_path, "name=g", SAVED, resume="auto") == killed
    assert metrics(killed) == metrics(run(tmp_path))
    assert run(tmp_path, "name=g", frames([], 3), resume="auto") == killed
    assert metrics(killed)["frames"] == [8, 16, 24]


def test_a_run_that_begins_again_forgets_the_best_weights_before(tmp_path):
    killed = run(tmp_path, "name=g")
    (killed / "summary.json").unlink()
    weights = torch.load(killed / "best_weights.pt", weights_only=True)
    weights["about"]["greedy_return"] = 1e6
    torch.save(weights, killed / "best_weights.pt")
    run(tmp_path, "name=g", resume="auto")
    found = about_weights(killed, "best").greedy_return
    assert found == summary(killed)["return"]["greedy"]["mean"]


@pytest.mark.parametrize("other", ["seed=1", "a file", "finished"])
def test_a_folder_of_something_else_is_not_trained_in(other, tmp_path):
    killed = killed_before_a_checkpoint(tmp_path, *[other] * ("=" in other))
    if other == "a file":
        (killed / "config.yaml").unlink()
        (killed / "notes.txt").write_text("")
    if other == "finished":
        (killed / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="g exists and is not overwritten"):
        run(tmp_path, "name=g", resume="auto")


def test_a_run_that_another_process_has_trained_meanwhile_is_left(tmp_path):
    killed = killed_before_a_checkpoint(tmp_path)
    config = str(tmp_path / "tiny.yaml")
    planned = planned_run(config, ["name=g"], str(tmp_path / "runs"), "auto")
    (killed / "checkpoints" / "checkpoint-000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match="g: another process has trained"), planned.opened():
        pass
    assert (killed / "metrics.csv").exists()


def test_a_checkpoint_that_a_run_removes_while_it_is_looked_for_is_none(tmp_path, monkeypatch):
    folder = run(tmp_path, SAVED)
    config = str(tmp_path / "tiny.yaml")
    gone = folder / "checkpoints" / "checkpoint-000009"
    monkeypatch.setattr("support.planned_run.newest_checkpoint", lambda folder: gone)
    assert planned_run(config, [], str(tmp_path / "runs"), "auto").folder is None


@pytest.mark.parametrize(
    "values",
    [
        {"config": 3},
        {"config": {"seed": torch.zeros(2)}},
        {"frames": "16"},
        {"n_updates": True},
        {"frames": None},
    ],
    ids=str,
)
def test_values_of_another_kind_are_one_error(values, tmp_path, monkeypatch):
    folder = run(tmp_path, SAVED)
    saved = {"config": {}, "frames": 16, "n_updates": 2, **values}
    real = checkpoints.load_run

    def load_run(*arguments, **parts):
        return replace(real(*arguments, **parts), values=saved)

    monkeypatch.setattr(checkpoints, "load_run", load_run)
    with pytest.raises(CheckpointError, match="expected a configuration, a number of frames"):
        run(tmp_path, resume=folder)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_state_that_cannot_be_saved_is_told_once(is_late, tmp_path, monkeypatch, capsys):
    states = iter([{}] if is_late else [])
    array = {"env": numpy.zeros(2)}
    monkeypatch.setattr(FusedCollector, "run_state", lambda self: next(states, array))
    folder = run(tmp_path, SAVED, frames([], 4))
    said = capsys.readouterr().out
    assert said.count(" checkpoints: collector.env: expected tensors,") == 1
    assert ("no more checkpoints" in said) == is_late
    assert metrics(folder)["frames"] == [8, 16, 24, 32]
    assert newest_checkpoint(folder) is None


def test_a_run_whose_scenario_changes_what_cannot_be_saved_goes_on(tmp_path, capsys):
    # Transport puts a tensor in the place of its package's colour, which is a member of an Enum.
    scenario = ("env.scenario=transport", "env.scenario_kwargs={}", "env.engine=eager")
    folder = run(tmp_path, SAVED, *scenario, frames([], 4))
    said = capsys.readouterr().out
    assert said.count("no more checkpoints: the eager engine's state: expected values") == 1
    assert metrics(folder)["frames"] == [8, 16, 24, 32]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    folder = run(tmp_path, SAVED)
    damaged = newest_checkpoint(folder)
    (damaged / "update.bin").write_bytes(b"")
    capsys.readouterr()
    run(tmp_path, resume=folder)
    said = capsys.readouterr().out
    assert re.search(rf"^warning: {damaged} is damaged: .*$", said, re.MULTILINE)
    assert "resumed: " in said
    assert metrics(folder)["frames"] == [8, 16]


@pytest.mark.slow  # it builds a kernel again
def test_a_run_goes_on_on_another_processor(tmp_path, monkeypatch, capsys):
    folder = run(tmp_path, KERNEL, SAVED, frames([], 2))
    monkeypatch.setattr(build, "processor", lambda: "flags: others")
    monkeypatch.setattr(checkpoint, "processor", lambda: "flags: others")
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "built"))
    for cached in (build.toolchain, checkpoint._machine):
        cached.cache_clear()
    capsys.readouterr()
    try:
        run(tmp_path, frames([], 4), resume=folder)
    finally:
        for cached in (build.toolchain, checkpoint._machine):
            cached.cache_clear()
    assert "numbers may differ in their last bits" in capsys.readouterr().out
    assert metrics(folder)["frames"] == [8, 16, 24, 32]
    assert summary(folder)["engine"] == "kernel"
    assert any((tmp_path / "built").rglob("step-*.so"))  # not the one that was there


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume", "auto"], "expected CONFIG"),
        ([], "expected CONFIG"),
        (
            ["tiny.yaml", "--resume", "runs/tiny-1"],
            "the run has its own CONFIG; leave out tiny.yaml",
        ),
        (["--resume", "runs/nowhere"], "expected a run's folder, or auto, got runs/nowhere"),
        (
            ["--resume", "runs/tiny-1", "seed=1"],
            "seed: expected 0, with which the run began, got 1",
        ),
    ],
)
def test_a_mistake_in_the_arguments_is_told_in_a_line(
    arguments, said, tmp_path, monkeypatch, capsys
):
    run(tmp_path, SAVED)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call("train.py", *arguments)
    errors = capsys.readouterr().err
    assert caught.value.code == 2
    assert said in errors.splitlines()[-1]
    assert "Traceback" not in errors


# Processes


LONG = "collection.total_frames=10000000"


@pytest.mark.parametrize(
    ("number", "code"),
    [("INT", 130), *(pytest.param(name, 75, marks=pytest.mark.slow) for name in ("TERM", "HUP"))],
)
def test_a_signal_saves_and_tells_how_to_go_on(number, code, tmp_path):
    with started(tmp_path, tiny(tmp_path), LONG, "checkpoint.every_seconds=1000") as process:
        wait_for_the_table(process)
        process.stdout.readline()
        process.send_signal(getattr(signal, f"SIG{number}"))
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")
    n_frames, command = re.search(
        r"stopped at ([\d,]+) frames; go on: .*recipes/train.py (.*)", said
    ).groups()
    n_frames = int(n_frames.replace(",", ""))
    folder = tmp_path / "runs" / "tiny-1"
    assert metrics(folder)["frames"][-1] == n_frames
    end = f"collection.total_frames={n_frames + 8}"
    with started(tmp_path, *command.split(), end) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    whole = run(tmp_path, end, SAVED)
    names = metrics(whole).keys()
    for name in names:
        assert metrics(folder)[name] == metrics(whole)[name], name


def test_a_terminal_shows_how_to_go_on_below_the_table(tmp_path):
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    to = {"stdout": theirs, "stderr": theirs, "env": {**os.environ, "TERM": "xterm"}}
    shown, is_stopped = b"", False
    with started(tmp_path, tiny(tmp_path), LONG, SAVED, **to) as process:
        os.close(theirs)
        with suppress(OSError):  # the process has ended
            while part := os.read(ours, 4096):
                shown += part
                if b"frames/s" in shown and not is_stopped:
                    process.send_signal(signal.SIGINT)
                    is_stopped = True
    os.close(ours)
    assert process.returncode == 130
    assert "go on: " in shown.decode().strip().splitlines()[-1]


@pytest.mark.parametrize(
    "pause", [0.002, *(pytest.param(pause, marks=pytest.mark.slow) for pause in (0.0, 0.05, 0.3))]
)
def test_a_second_interrupt_ends_at_once(pause, tmp_path):
    with started(tmp_path, tiny(tmp_path), LONG, SAVED) as process:
        wait_for_the_table(process)
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    # The signal itself, once Python has ended its handlers; a shell shows 130 for it, too.
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in errors


@pytest.mark.slow
def test_an_interrupt_at_any_time_ends_without_a_traceback(tmp_path):
    rng = random.Random(0)
    for _ in range(4):
        with started(tmp_path, tiny(tmp_path), LONG, SAVED) as process:
            time.sleep(rng.uniform(0.3, 4))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGINT)  # before the first line of Python
        assert "Traceback" not in errors or process.returncode < 0


def test_a_reader_that_leaves_ends_the_run_with_a_checkpoint(tmp_path):
    with started(tmp_path, tiny(tmp_path), LONG, "checkpoint.every_seconds=1000") as process:
        wait_for_the_table(process)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
    folder = tmp_path / "runs" / "tiny-1"
    n_frames = metrics(folder)["frames"][-1]
    run(tmp_path, f"collection.total_frames={int(n_frames) + 8}", resume=folder)
    assert metrics(folder)["frames"][-1] == n_frames + 8


def test_a_broken_pipe_of_the_environment_does_not_stop_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("support.components.make_collector", collector_that_breaks_a_pipe)
    run(tmp_path, "collection.total_frames=40")
    assert metrics(tmp_path / "runs" / "tiny-1")["frames"] == [8, 16, 24, 32, 40]


def collector_that_breaks_a_pipe(*arguments, **keywords):
    """Return a collector whose every batch comes with a SIGPIPE."""
    collector = make_collector(*arguments, **keywords)
    add_mask = collector.postproc

    def postproc(batch):
        source, sink = os.pipe()
        os.close(source)
        with pytest.raises(BrokenPipeError):
            os.write(sink, b"to nobody")
        os.close(sink)
        return add_mask(batch)

    collector.postproc = postproc
    return collector


@pytest.mark.parametrize("where", ["full", pytest.param("closed", marks=pytest.mark.slow)])
def test_a_run_needs_no_standard_output(where, tmp_path):
    redirected = ">/dev/full" if where == "full" else ">&-"
    command = f'"{sys.executable}" "{RECIPES / "train.py"}" "{tiny(tmp_path)}" {redirected}'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert metrics(tmp_path / "runs" / "tiny-1")["frames"] == [8, 16]


def test_a_killed_run_resumes(tmp_path):
    overrides = [*SLICES, EXPLORES, SAVED]
    with started(tmp_path, tiny(tmp_path), *overrides, LONG) as process:
        wait_for_the_table(process)
        for _ in range(3):
            process.stdout.readline()
        process.kill()
        process.communicate()
    folder = tmp_path / "runs" / "tiny-1"
    n_saved = int(newest_checkpoint(folder).name.partition("-")[2])
    end = frames(SLICES, n_saved + 2)
    run(tmp_path, end, resume=folder)
    check_same(folder, run(tmp_path, *overrides, end))


def test_two_processes_do_not_train_one_run(tmp_path):
    folder = run(tmp_path, SAVED)
    with held(folder) as is_held:
        assert is_held
        with pytest.raises(ConfigError, match=r"tiny-1: another process trains this run"):
            run(tmp_path, resume=folder)
    run(tmp_path, resume=folder)
