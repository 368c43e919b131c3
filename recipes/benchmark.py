"""Train tasks x algorithms x seeds and compare: python recipes/benchmark.py [--tasks balance ..]

A cell of the table is one command, `train.py configs/TASK_ALGORITHM.yaml seed=N`. Finished cells
are not trained again: the same command continues an interrupted table. It leaves
runs/benchmark/{TASK_ALGORITHM-N/, benchmark.csv, benchmark.png}; the last two, and the printed
table, show the cells that the command names.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from support.benchmark_report import COLORS, Curve, draw, print_table, read_curve, write_csv
from support.benchmarl_process import make_virtualenv
from support.command_line import check_pictures
from support.run_folder import CONFIG_FILE, SUMMARY_FILE
from support.sources import changes

from qmix_trl import load_config
from qmix_trl.config import is_own_scenario
from qmix_trl.errors import ConfigError, exit_on_mistake, nearest
from qmix_trl.native.lock import held

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
TASKS = (
    "balance",
    "navigation",
    "simple_spread",
    "dispersion",
    "wheel",
    "give_way",
    "transport",
    "memory",
)
BENCHMARL = "benchmarl_qmix"
ALGORITHMS = tuple(COLORS)
COMPARED = ("qmix", "vdn", "iql")  # the default
POLL_S = 0.2


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        task: one of ``TASKS``, or the path of files of your own without their ``_ALGORITHM.yaml``.
        algorithm: one of ``ALGORITHMS``.
        seed: of the run.
        overrides: ``key.sub=value`` of all cells.
    """

    task: str
    algorithm: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"{Path(self.task).name}_{self.algorithm}-{self.seed}"

    @property
    def config(self) -> Path:
        """The file of its configuration; BenchMARL shares that of QMIX."""
        algorithm = "qmix" if self.algorithm == BENCHMARL else self.algorithm
        folder = Path() if os.sep in self.task else CONFIGS
        return folder / f"{self.task}_{algorithm}.yaml"

    @property
    def settings(self) -> tuple[str, ...]:
        """All overrides, seed and name included; an interrupted cell is trained from its start."""
        own = f"seed={self.seed}", f"name={self.name}"
        return ("checkpoint.every_seconds=null", *self.overrides, *own)

    def command(self, runs: Path) -> list[str]:
        """Return the command that trains the cell."""
        recipe = "train_benchmarl.py" if self.algorithm == BENCHMARL else "train.py"
        return [
            *(sys.executable, str(HERE / recipe), str(self.config)),
            *self.settings,
            *("--runs", str(runs)),
        ]

    @property
    def exists(self) -> bool:
        """Whether the cell has a configuration; BenchMARL has the tasks of VMAS alone."""
        if not self.config.exists():
            return False
        env = load_config(self.config).env if self.algorithm == BENCHMARL else None
        return env is None or (env.family == "vmas" and not is_own_scenario(env.scenario))

    def is_done(self, runs: Path) -> bool:
        """Return whether its run has finished; a damaged summary does not count.

        Raises:
            ConfigError: if its folder has another configuration, or this one has a mistake.
        """
        config, folder = load_config(self.config, self.settings), runs / self.name
        if not (folder / CONFIG_FILE).exists():
            return False
        if load_config(folder / CONFIG_FILE) != config:
            raise ConfigError(
                f"{folder} is a run of another configuration than {self.config} is now; "
                "delete it, or choose another folder by --runs"
            )
        for change in changes(folder):
            raise ConfigError(f"{folder}: {change}; delete it, or choose another folder by --runs")
        try:
            return isinstance(json.loads((folder / SUMMARY_FILE).read_text()), dict)
        except (OSError, ValueError):
            return False


def cells_of(
    tasks: Iterable[str], algorithms: Iterable[str], seeds: int, overrides: Sequence[str]
) -> list[Cell]:
    """Return the cells that have a configuration, seed by seed.

    Args:
        tasks: some of ``TASKS``.
        algorithms: some of ``ALGORITHMS``.
        seeds: their number; they begin at 0.
        overrides: of all cells.

    Raises:
        ConfigError: if no cell has a configuration.
    """
    cells = [
        Cell(task, algorithm, seed, tuple(overrides))
        for seed in range(seeds)
        for task in tasks
        for algorithm in algorithms
    ]
    cells = [cell for cell in cells if cell.exists]
    if not cells:
        raise ConfigError(f"no configuration of these tasks and algorithms is in {CONFIGS}")
    return cells


def run_cells(cells: Sequence[Cell], runs: Path, jobs: int) -> list[Cell]:
    """Train the unfinished cells, ``jobs`` at a time; return the cells that failed."""
    due = [cell for cell in cells if not cell.is_done(runs)]
    print(f"{len(cells)} runs, {len(cells) - len(due)} of them done, in {runs}", flush=True)
    if any(cell.algorithm == BENCHMARL for cell in due):
        make_virtualenv()  # once, before several cells need it
    failed, start, stop = [], time.perf_counter(), Event()
    with ThreadPoolExecutor(jobs) as pool, stopping(stop, pool):
        futures = {pool.submit(run_cell, cell, runs, stop): cell for cell in due}
        for i, future in enumerate(as_completed(futures), 1):
            cell, error = futures[future], future.result()
            if error:
                failed.append(cell)
            minutes = (time.perf_counter() - start) * (len(due) / i - 1) / 60
            said = error or shown(read_curve(runs / cell.name, cell.task, cell.algorithm))
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
    return f"{curve.returns[-1]:9.2f} in {curve.seconds[-1]:.0f} s"


def benchmark(
    tasks: Sequence[str],
    algorithms: Sequence[str],
    seeds: int,
    jobs: int,
    runs: Path,
    overrides: Sequence[str],
) -> None:
    """Train the unfinished cells and compare all.

    Args:
        tasks: some of ``TASKS``, or paths of files of your own as in ``Cell``.
        algorithms: some of ``ALGORITHMS``.
        seeds: their number; they begin at 0.
        jobs: the number of cells that are trained at a time.
        runs: the folder of the table.
        overrides: of all cells.

    Raises:
        ConfigError: if a name is unknown, a folder has a run of another configuration, or another
            process trains in the folder of the table.
        SystemExit: with 1, if a run failed.
    """
    for names, known in ((tasks, TASKS), (algorithms, ALGORITHMS)):
        for name in names:
            if name not in known and not (known is TASKS and os.sep in name):
                hint = "; overrides stand before --tasks" if "=" in name else nearest(name, known)
                raise ConfigError(f"unknown name {name!r}{hint}")
    for override in overrides:
        if override.startswith(("seed=", "name=")):
            raise ConfigError(
                f"{override}: seeds are 0 to --seeds - 1, and names are those of cells"
            )
    if seeds < 1 or jobs < 1:
        raise ConfigError(f"expected --seeds and --jobs of at least 1, got {seeds} and {jobs}")
    cells = cells_of(dict.fromkeys(tasks), dict.fromkeys(algorithms), seeds, overrides)
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
        failed = run_cells(cells, runs, jobs)
        report(cells, failed, runs)


def report(cells: Sequence[Cell], failed: Sequence[Cell], runs: Path) -> None:
    """Compare the cells that finished.

    Args:
        cells: of the table.
        failed: the ones that did not finish.
        runs: the folder of the table.

    Raises:
        SystemExit: with 1, if a run failed.
    """
    finished = [cell for cell in cells if cell not in failed]
    curves = [read_curve(runs / cell.name, cell.task, cell.algorithm) for cell in finished]
    write_csv(curves, runs / "benchmark.csv")
    if curves:
        print_table(curves)
        draw(curves, runs / "benchmark.png")
    if failed:
        print(f"{len(failed)} failed; the same command tries them again", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="of all cells", metavar="key.sub=value")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=TASKS,
        help=f"{', '.join(TASKS)}; or path/to/NAME of files NAME_qmix.yaml ..",
    )
    parser.add_argument(
        "--algorithms",
        nargs="+",
        default=COMPARED,
        help=f"{', '.join(ALGORITHMS)}; by default {', '.join(COMPARED)}",
    )
    parser.add_argument("--seeds", type=int, default=5, help="the number of seeds, from 0")
    parser.add_argument(
        "--jobs", type=int, default=2, help="the number of runs at a time, each in one thread"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    with exit_on_mistake():
        check_pictures()
        benchmark(**vars(parser.parse_intermixed_args()))
