"""Train tasks x algorithms x seeds, or configurations of your own, and compare:

python recipes/benchmark.py [--tasks balance ..] [--seeds 5]
python recipes/benchmark.py mine.yaml other.yaml --seeds 0-9 --set loss.td_lambda=0.8,0.9

A cell is one command, `train.py FILE seed=N ..`. Finished cells are not trained again: the same
command continues an interrupted table. It leaves runs/benchmark/{NAME-N/, benchmark.csv,
benchmark.png}, and of several tasks comparison.csv and comparison.png; files and printed table show
the cells that the command names. With --launcher slurm the cells are jobs of a cluster's queue, and
the same command later compares those that have finished.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from support.benchmarl_process import make_virtualenv
from support.cells import (
    ALGORITHMS,
    COMPARED,
    TASKS,
    Cell,
    alternatives,
    own_cells,
    seeds_of,
    table_cells,
)
from support.comparison_report import (
    compared,
    draw_comparison,
    print_comparison,
    scores_of,
    write_comparison,
)
from support.curve_report import check_packages, draw, print_table, write_csv
from support.curves import Curve, names, read_curve
from support.shipped import config_file
from support.slurm import check_slurm, queued_runs, submit

from qmix_trl.errors import ConfigError, exit_on_mistake, nearest
from qmix_trl.native.lock import held

POLL_S = 0.2
LOCAL, SLURM = "local", "slurm"  # of --launcher


def run_cells(cells: Sequence[Cell], runs: Path, jobs: int) -> list[Cell]:
    """Train the unfinished cells, ``jobs`` at a time; return the cells that failed."""
    due = [cell for cell in cells if not cell.is_done(runs)]
    print(f"{len(cells)} runs, {len(cells) - len(due)} of them done, in {runs}", flush=True)
    if any(cell.recipe == "train_benchmarl.py" for cell in due):
        make_virtualenv()  # once, before several cells need it
    failed, start, stop = [], time.perf_counter(), Event()
    with ThreadPoolExecutor(jobs) as pool, stopping(stop, pool):
        futures = {pool.submit(run_cell, cell, runs, stop): cell for cell in due}
        for i, future in enumerate(as_completed(futures), 1):
            cell, error = futures[future], future.result()
            if error:
                failed.append(cell)
            minutes = (time.perf_counter() - start) * (len(due) / i - 1) / 60
            said = error or shown(read_curve(runs / cell.name, cell.task, cell.group))
            print(f"{i:>4}/{len(due)}  {cell.name:<34} {said}, {minutes:.0f} min left", flush=True)
    return failed


def run_cell(cell: Cell, runs: Path, stop: Event) -> str:
    """Train a cell from the start; return the error, or an empty string.

    It is terminated when ``stop`` is set.
    """
    folder = runs / cell.name
    if folder.is_dir():
        with held(folder) as is_held:
            if not is_held:
                return f"{folder}: another process trains it; wait for its end"
            shutil.rmtree(folder, ignore_errors=True)  # an interrupted run
    command = cell.command(runs)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # one process group with the processes that it starts
    ) as process:
        is_told = False  # once: a second signal would end it without a checkpoint
        while True:
            try:
                said, _ = process.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired:
                if stop.is_set() and not is_told:
                    os.killpg(process.pid, signal.SIGTERM)
                    is_told = True
    last = (said.strip().splitlines() or [""])[-1]
    if not process.returncode:
        return ""
    return f"exit code {process.returncode}: {last}\n{shlex.join(command)}"


@contextmanager
def stopping(stop: Event, pool: ThreadPoolExecutor) -> Iterator[None]:
    """If the block fails, stop the running cells and start no others."""
    try:
        yield
    except BaseException:
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise


def shown(curve: Curve) -> str:
    """Return the last greedy return of a run, and its seconds, as text."""
    return f"{curve.values[-1]:9.2f} in {curve.seconds[-1]:.0f} s"


def queue_cells(cells: Sequence[Cell], runs: Path, jobs: int, options: Sequence[str]) -> list[Cell]:
    """Put the unfinished cells that Slurm does not have into its queue; return all unfinished.

    Args:
        cells: of the table.
        runs: the folder of the table.
        jobs: the number of cells that are trained at a time.
        options: of sbatch.

    Raises:
        ConfigError: if a folder has a run of another configuration, or Slurm refuses.
        SaveError: if the script of the jobs cannot be written.
    """
    due, queued = [cell for cell in cells if not cell.is_done(runs)], queued_runs(runs)
    new = [cell for cell in due if cell.name not in queued]
    print(
        f"{len(cells)} runs, {len(cells) - len(due)} of them done, {len(due) - len(new)} in the "
        f"queue, in {runs}"
    )
    if any(cell.recipe == "train_benchmarl.py" for cell in new):
        make_virtualenv()
    if new:
        print(f"submitted array {submit(new, runs, jobs, options)} of {len(new)} runs")
    return due


def benchmark(
    cells: Sequence[Cell], jobs: int, runs: Path, launcher: str = LOCAL, sbatch: Sequence[str] = ()
) -> None:
    """Train the unfinished cells and compare all.

    Args:
        cells: of the table.
        jobs: the number of cells that are trained at a time.
        runs: the folder of the table.
        launcher: ``LOCAL``; or ``SLURM``, whose jobs are only put into the queue, so that the cells
            that have finished are compared.
        sbatch: options of Slurm's sbatch.

    Raises:
        ConfigError: if a folder has a run of another configuration, another process trains in the
            folder of the table, or Slurm is not there or refuses.
        SaveError: if a file of the comparison, or of the jobs, cannot be written.
        SystemExit: with 1, if a run failed.
    """
    if jobs < 1:
        raise ConfigError(f"expected --jobs of at least 1, got {jobs}")
    if sbatch and launcher != SLURM:
        raise ConfigError(f"expected --launcher slurm with --sbatch, got {launcher}")
    check_packages()
    if launcher == SLURM:
        check_slurm()
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--runs: {runs} cannot be made: {error.strerror}") from None
    with held(runs) as is_held:
        if not is_held:
            raise ConfigError(
                f"--runs: another benchmark.py trains in {runs}; wait for its end, or choose "
                "another folder"
            )
        if launcher == SLURM:
            due = queue_cells(cells, runs, jobs, sbatch)
            report([cell for cell in cells if cell not in due], runs)
            if due:
                print(f"{len(due)} are not finished; the same command goes on, and compares again")
            return
        failed = run_cells(cells, runs, jobs)
        report([cell for cell in cells if cell not in failed], runs)
        if failed:
            print(f"{len(failed)} failed; the same command tries them again", file=sys.stderr)
            raise SystemExit(1)


def report(finished: Sequence[Cell], runs: Path) -> None:
    """Compare cells that finished.

    Args:
        finished: of the table.
        runs: the folder of the table.

    Raises:
        SaveError: if a file cannot be written.
    """
    curves = [read_curve(runs / cell.name, cell.task, cell.group) for cell in finished]
    written = ["benchmark.csv"]
    write_csv(curves, runs / "benchmark.csv")
    if curves:
        print()
        print_table(curves)
        draw(curves, runs / "benchmark.png", ("frames", "seconds"))
        written.append("benchmark.png")
    if scores := scores_of(curves):
        lines = compared(scores)
        print_comparison(lines, len(next(iter(scores.values()))))
        write_comparison(lines, runs / "comparison.csv")
        draw_comparison(lines, names(curves)[1], runs / "comparison.png")
        written += ["comparison.csv", "comparison.png"]
    elif min(map(len, names(curves))) > 1:
        print(
            "not compared over tasks: that takes two tasks in which a group is above doing nothing "
            "and chance, and two groups that ran on all of them"
        )
    print(f"wrote {', '.join(str(runs / name) for name in written)}")


def chosen_cells(
    words: Sequence[str],
    tasks: Sequence[str] | None,
    algorithms: Sequence[str] | None,
    seeds: str,
    settings: Sequence[str],
) -> list[Cell]:
    """Return the cells that a command line names.

    Args:
        words: configurations, by file or name, and ``key.sub=value`` of all cells.
        tasks: of the table; None for all, or with files.
        algorithms: of the table; None for ``COMPARED``, or with files.
        seeds: a number N, or a range A-B.
        settings: ``key.sub=value,value..``: a cell for each combination.

    Raises:
        ConfigError: if one has a mistake.
    """
    overrides = [word for word in words if "=" in word]
    files = [word for word in words if "=" not in word]
    for setting in (*overrides, *settings):
        if setting.startswith(("seed=", "name=")):
            raise ConfigError(f"{setting}: seeds are those of --seeds, and names those of cells")
    if files and (tasks or algorithms):
        raise ConfigError(f"expected files such as {files[0]}, or --tasks and --algorithms")
    for file in files:
        if file in TASKS:
            raise ConfigError(f"expected CONFIG, got {file}; for the task: --tasks {file}")
    for listed, known in ((tasks or (), TASKS), (algorithms or (), ALGORITHMS)):
        for name in listed:
            if name not in known and not (known is TASKS and os.sep in name):
                hint = "; overrides stand before --tasks" if "=" in name else nearest(name, known)
                raise ConfigError(f"unknown name {name!r}{hint}; known: {', '.join(known)}")
    choices = [*([override] for override in overrides), *map(alternatives, settings)]
    if files:
        return own_cells([config_file(file) for file in files], seeds_of(seeds), choices)
    table = dict.fromkeys(tasks or TASKS), dict.fromkeys(algorithms or COMPARED)
    return table_cells(*table, seeds_of(seeds), choices)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key.sub=value",
        help="configurations, files or names, in place of the table; settings of all cells",
    )
    parser.add_argument(
        "--tasks", nargs="+", help=f"{', '.join(TASKS)}; or path/to/NAME of files NAME_qmix.yaml .."
    )
    parser.add_argument(
        "--algorithms",
        nargs="+",
        help=f"{', '.join(ALGORITHMS)}; by default {', '.join(COMPARED)}",
    )
    parser.add_argument("--seeds", default="5", help="N for 0 to N - 1, or A-B (default: 5)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key.sub=value,value..",
        help="a cell for each value; given more than once, for each combination",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="the number of runs at a time, each in one thread"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument(
        "--launcher",
        choices=(LOCAL, SLURM),
        default=LOCAL,
        help="trains on this machine, or puts an array of jobs into Slurm's queue",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="=--OPTION",
        help="an option of sbatch, such as --sbatch=--time=8:00:00; may be repeated",
    )
    given = parser.parse_intermixed_args()
    with exit_on_mistake():
        named = given.words, given.tasks, given.algorithms, given.seeds, given.set
        benchmark(chosen_cells(*named), given.jobs, given.runs, given.launcher, given.sbatch)
