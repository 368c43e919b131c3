"""The benchmark as an array of jobs of Slurm, whose commands are stood in for by small scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest
import train
from recipe_tools import check_told, metrics, tiny

from qmix_trl import ConfigError

SBATCH = """#!/bin/bash
echo "$@" >> {folder}/asked
if [ -e {folder}/refuse ]; then echo "sbatch: error: Invalid partition" >&2; exit 1; fi
n=$(cat {folder}/asked | wc -l)
echo "$n" >> {folder}/queue
echo "$n;cluster"
"""
SQUEUE = """#!/bin/bash
[ "$*" = "--me --noheader --format=%F" ] || exit 1
cat {folder}/queue
"""
SRUN = """#!/bin/bash
[ "$1" = "--cpus-per-task=1" ] || exit 1
exec "${@:2}"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with Slurm's commands, the lines that sbatch was asked, and the queue's arrays."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "queue").touch()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("srun", SRUN)):
        (folder / name).write_text(text.replace("{folder}", str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "a table"


@pytest.fixture
def cells(tmp_path):
    """Two cells of a tiny configuration, with checkpoints."""
    path = tiny(tmp_path)
    path.write_text(path.read_text().replace("every_seconds: null", "every_seconds: 60"))
    return benchmark.chosen_cells([str(path)], None, None, "2", [])


def queue(cells, runs, *sbatch):
    """Put the cells into the queue and compare those that have finished."""
    benchmark.benchmark(cells, 3, runs, benchmark.SLURM, sbatch)


def run_job(runs: Path, place: int) -> int:
    """Run a job of the array as Slurm does; return its exit code."""
    job = os.environ | {"SLURM_ARRAY_TASK_ID": str(place)}
    return subprocess.run(["bash", str(runs / "slurm" / "array.sh")], env=job).returncode


@pytest.mark.slow
def test_jobs_train_the_runs_and_the_same_command_compares_them(cells, runs, cluster, capsys):
    queue(cells, runs, "--time=8:00:00", "--partition=cpu")
    said = capsys.readouterr().out
    assert "2 runs, 0 of them done, 0 in the queue" in said
    assert "submitted array 1 of 2 runs" in said
    assert "2 are not finished" in said
    script = runs / "slurm" / "array.sh"
    assert (cluster / "asked").read_text().split() == [
        *("--parsable", "--time=8:00:00", "--partition=cpu"),
        *str(script).split(),
    ]
    assert "#SBATCH --array=0-1%3\n" in script.read_text()

    assert run_job(runs, 1) == 0
    queue(cells, runs)
    said = capsys.readouterr().out
    assert "2 runs, 1 of them done, 1 in the queue" in said
    assert "submitted" not in said
    assert "1 are not finished" in said
    assert {line.split(",")[3] for line in (runs / "benchmark.csv").read_text().splitlines()} == {
        *("seed", "1", ""),
    }

    (cluster / "queue").write_text("")  # the other job has failed
    queue(cells, runs)
    assert "submitted array 2 of 1 runs" in capsys.readouterr().out
    arrays = json.loads((runs / "slurm" / "arrays.json").read_text())
    assert arrays == {"1": [cell.name for cell in cells], "2": [cells[0].name]}
    benchmark.benchmark(cells, 1, runs)  # trains it on this machine
    queue(cells, runs)
    said = capsys.readouterr().out
    assert "2 runs, 2 of them done, 0 in the queue" in said
    assert "not finished" not in said


@pytest.mark.slow
def test_a_job_that_starts_again_goes_on_with_its_run(cells, runs, cluster):
    queue(cells, runs)
    cell = cells[0]
    whole = train.train(str(cell.config), ["name=whole"], str(runs))
    frames, losses = (metrics(whole)[name] for name in ("frames", "loss"))
    half = f"collection.total_frames={frames[len(frames) // 2]:.0f}"
    train.train(str(cell.config), [*cell.settings, half], str(runs))  # a job that ended early
    assert run_job(runs, 0) == 0
    assert metrics(runs / cell.name)["loss"] == losses
    assert run_job(runs, 0) == 0  # a job that Slurm starts twice
    assert metrics(runs / cell.name)["loss"] == losses


def test_arrays_that_the_queue_has_forgotten_are_submitted_again(cells, runs, cluster, capsys):
    queue(cells, runs)
    for line, expected in (("1\n", "2 in the queue"), ("11\n", "submitted array 2 of 2 runs")):
        (cluster / "queue").write_text(line)
        queue(cells, runs)
        assert expected in capsys.readouterr().out


def test_what_sbatch_refuses_is_told(cells, runs, cluster):
    (cluster / "refuse").touch()
    with pytest.raises(ConfigError, match=r"sbatch .*: exit code 1: .*Invalid partition"):
        queue(cells, runs)
    assert not (runs / "slurm" / "arrays.json").exists()


def test_a_machine_without_slurm_is_told(cells, runs, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"--launcher slurm: sbatch is not found; start"):
        queue(cells, runs)


def test_options_of_sbatch_go_with_slurm(cells, runs):
    with pytest.raises(ConfigError, match=r"expected --launcher slurm with --sbatch, got local"):
        benchmark.benchmark(cells, 1, runs, benchmark.LOCAL, ["--time=1"])


def test_another_queue_is_refused():
    done = subprocess.run(
        [
            sys.executable,
            benchmark.__file__,
            "two_step_qmix",
            "--launcher",
            "pbs",
            "--runs",
            str(runs),
        ],
        capture_output=True,
        text=True,
    )
    check_told(done.returncode, done.stderr.splitlines()[-1], 2, ["pbs", "slurm"])
