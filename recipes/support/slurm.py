"""Runs of a benchmark as arrays of jobs of Slurm, the queue of many clusters."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.cells import Cell

from qmix_trl import load_config
from qmix_trl.errors import ConfigError, SaveError

FOLDER = "slurm"  # in the folder of the table
SCRIPT, ARRAYS = "array.sh", "arrays.json"
TEMPLATE = """#!/bin/bash
#SBATCH --job-name=qmix_trl
#SBATCH --array=0-{last}%{jobs}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --output="{logs}/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@60
# A run that is told to end saves itself first; the next job of it goes on from there.
COMMANDS=(
{commands}
)
eval "exec srun --cpus-per-task={threads} ${{COMMANDS[$SLURM_ARRAY_TASK_ID]}}"
"""


def submit(cells: Sequence[Cell], runs: Path, jobs: int, options: Sequence[str]) -> str:
    """Put an array of jobs into the queue, a job for each cell; return the array's number.

    A job goes on with its run from the newest checkpoint, if there is one. The folder ``slurm`` of
    the table keeps the script, the output of each job, and the runs of each array.

    Args:
        cells: at least one.
        runs: the folder of the table.
        jobs: the number of runs that are trained at a time.
        options: of sbatch, which count more than those of the script.

    Raises:
        ConfigError: if sbatch refuses the array.
        SaveError: if the script cannot be written.
    """
    folder = runs / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        (folder / SCRIPT).write_text(array_script(cells, runs, jobs))
        said = _asked("sbatch", "--parsable", *options, str(folder / SCRIPT))
        array = said.partition(";")[0].strip()  # of NUMBER;CLUSTER
        arrays = _arrays(runs) | {array: [cell.name for cell in cells]}
        (folder / ARRAYS).write_text(json.dumps(arrays, indent=1))
    except OSError as error:
        raise SaveError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return array


def array_script(cells: Sequence[Cell], runs: Path, jobs: int) -> str:
    """Return the script of an array of jobs, of which job i trains the i-th cell."""
    threads = [load_config(cell.config, cell.settings).runtime.threads for cell in cells]
    return TEMPLATE.format(
        last=len(cells) - 1,
        jobs=jobs,
        threads=max(n if isinstance(n, int) else 1 for n in threads),
        logs=runs / FOLDER,
        commands="\n".join(shlex.quote(shlex.join(cell.resuming(runs))) for cell in cells),
    )


def queued_runs(runs: Path) -> dict[str, str]:
    """Return the array in which each run of the table waits or is trained, by the run's name.

    Raises:
        ConfigError: if squeue fails.
    """
    queued = set(_asked("squeue", "--me", "--noheader", "--format=%F").split())
    return {
        name: array for array, names in _arrays(runs).items() if array in queued for name in names
    }


def check_slurm() -> None:
    """Refuse a machine without Slurm.

    Raises:
        ConfigError: if a command is not found.
    """
    for command in ("sbatch", "squeue"):
        if shutil.which(command) is None:
            raise ConfigError(
                f"--launcher slurm: {command} is not found; start benchmark.py on a machine that "
                "submits jobs, or take --launcher local"
            )


def _arrays(runs: Path) -> dict[str, list[str]]:
    """Return the names of the runs of each array that was submitted for a table, by its number."""
    try:
        return json.loads((runs / FOLDER / ARRAYS).read_text())
    except (OSError, ValueError):
        return {}


def _asked(*command: str) -> str:
    """Return the output of a command of Slurm.

    Raises:
        ConfigError: if it fails.
    """
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        said = " ".join((asked.stderr or asked.stdout).split())
        raise ConfigError(f"{shlex.join(command)}: exit code {asked.returncode}: {said}")
    return asked.stdout
