"""The run that a command of train.py names: a new one, or one that goes on.

Torch is not imported here, so that a mistake is told at once.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from support.flat_config import flat
from support.loggers import LOGGERS, check_loggers
from support.run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    REPLAY_FOLDER,
    SUMMARY_FILE,
    config_of_run,
    newest_checkpoint,
    ranks_of_checkpoint,
    run_stem,
)
from support.shares import KEEP, of_all_ranks, share_of
from support.sources import changes, check_sources, save_sources, with_sources

from qmix_trl.config.load import load_config
from qmix_trl.config.run_files import SOURCES, WEIGHTS
from qmix_trl.config.schema import RunConfig
from qmix_trl.errors import ConfigError, check_extra
from qmix_trl.logs import AUTO, METRICS_FILE, make_run_folder
from qmix_trl.native.lock import held
from qmix_trl.ranks import ALONE, Ranks

NEWEST = "auto"  # of --resume
# Keys that a resumed run may change: its length, and what has no effect on what is learned. By
# another number of threads or torch.compile the last digits may differ. Random streams cannot go on
# on another kind of device.
RUNTIME = tuple(f"runtime.{key}" for key in ("threads", "compile", "cuda_graph"))
MAY_DIFFER = ("collection.total_frames", "evaluation.*", "checkpoint.*", "logging", *RUNTIME)
# What a run leaves that is killed before it has written its configuration.
EARLY_FILES = {METRICS_FILE, REPLAY_FOLDER, SOURCES, f"{CONFIG_FILE}.part"}
OF_FILMS = ("matplotlib", "PIL")  # the packages that draw


@dataclass(frozen=True)
class PlannedRun:
    """A run that a command names.

    Attributes:
        config: of the run, of all its ranks together.
        runs: the folder in which a new run's folder is made.
        stem: of the names of new folders.
        folder: of the run that goes on; None for a new one.
        left: a folder of the same run that was killed before its first checkpoint, in which it
            begins again; None to make one.
        n_ranks: the number of processes that train it.
    """

    config: RunConfig
    runs: Path
    stem: str
    folder: Path | None
    left: Path | None = None
    n_ranks: int = 1

    @cached_property
    def task(self) -> RunConfig:
        """The configuration of the environments: with copies where the user's files are gone."""
        return with_sources(self.config, self.folder)

    @cached_property
    def share(self) -> RunConfig:
        """The part of ``task`` that each rank takes: its environments, and its rows of replay."""
        return share_of(self.task, self.n_ranks)

    @contextmanager
    def opened(self, ranks: Ranks = ALONE) -> Iterator[Path]:
        """Yield the run's folder for a ``with`` block, made, locked and prepared by the first rank.

        Args:
            ranks: that train the run.

        Raises:
            ConfigError: if it cannot be made, or another process has it.
            SaveError: if the copies of the user's files cannot be written.
        """
        with ExitStack() as stack:
            yield ranks.by_first(lambda: stack.enter_context(self._open_first()))

    @contextmanager
    def _open_first(self) -> Iterator[Path]:
        """Make the run's folder, or take the one that goes on, and lock it for a ``with`` block.

        The user's files are copied to it.

        Raises:
            ConfigError: if it cannot be made, or another process has it.
            SaveError: if the copies cannot be written.
        """
        folder = self.folder or self.left
        folder = folder or make_run_folder(self.runs, self.config.name, stem=self.stem)
        with held(folder) as is_held:
            if not is_held:
                raise ConfigError(f"{folder}: another process trains this run; wait for its end")
            if self.left is not None:
                self._begin_again(self.left)
            save_sources(self.config, folder)
            yield folder

    def _begin_again(self, folder: Path) -> None:
        """Remove files of a run that was killed which one that goes on would keep.

        Raises:
            ConfigError: if it has a checkpoint or a summary by now, of another process.
        """
        if not _is_left(folder, self.config):
            raise ConfigError(f"{folder}: another process has trained this run; start again")
        for name in (METRICS_FILE, WEIGHTS["best"]):
            (folder / name).unlink(missing_ok=True)
        for name in (SOURCES, *LOGGERS):
            shutil.rmtree(folder / name, ignore_errors=True)


def planned_run(
    config: str | None,
    overrides: Sequence[str],
    runs: str,
    resume: str | None = None,
    frames_per_rank: str = KEEP,
    n_ranks: int = 1,
) -> PlannedRun:
    """Return the run that a command names.

    Args:
        config: a YAML file; None where ``resume`` is a run's folder, which has its own.
        overrides: ``key.sub=value``, the value in YAML.
        runs: the folder of runs.
        resume: a run's folder, or "auto": the newest run of this configuration that has a
            checkpoint, or a new one if there is none, also in the folder of its name that a kill
            has left without a checkpoint; None for a new one.
        frames_per_rank: how several ranks read a configuration, as in ``shares.of_all_ranks``; a
            run's folder has that of all ranks already.
        n_ranks: the number of processes that train the run.

    Raises:
        ConfigError: if the configuration has a mistake, a key differs that a resumed run cannot
            change, there is no checkpoint, it is of another number of ranks, or a package of a
            logger or of videos is not installed.
    """
    run = _with_folder(
        config, overrides, runs, resume, lambda one: of_all_ranks(one, n_ranks, frames_per_rank)
    )
    run = replace(run, n_ranks=n_ranks)
    _check_ranks(run)
    share_of(run.config, n_ranks)
    if run.config.evaluation.video:
        check_drawing("evaluation.video")
    return run


def check_drawing(of: str) -> None:
    """Refuse drawings without the packages that draw.

    Args:
        of: the setting or command that asks for them.

    Raises:
        ConfigError: if one is not installed.
    """
    for package in OF_FILMS:
        check_extra(package, "recipes", of)


def _check_ranks(run: PlannedRun) -> None:
    """Refuse to go on with a run of another number of ranks.

    Raises:
        ConfigError: if its newest checkpoint is of another one.
    """
    saved = None if run.folder is None else ranks_of_checkpoint(run.folder)
    if saved not in (None, run.n_ranks):
        by = f"torchrun --nproc-per-node {saved}" if saved != 1 else "python, without torchrun"
        raise ConfigError(
            f"--resume: {run.folder}: expected the {saved} ranks with which the run began, got "
            f"{run.n_ranks}; go on by {by} (of several machines, with as many in all)"
        )


def _with_folder(
    config: str | None,
    overrides: Sequence[str],
    runs: str,
    resume: str | None,
    of_all: Callable[[RunConfig], RunConfig],
) -> PlannedRun:
    """Return a new run, or one that goes on, with its folder; see ``planned_run``.

    ``of_all`` returns the configuration of all ranks, from that of a file.
    """
    if resume is not None and resume != NEWEST:
        return _resumed(Path(resume), overrides)
    if config is None:
        raise ConfigError("expected a configuration, got none")
    wanted = of_all(load_config(config, overrides))
    check_loggers(wanted)
    folder = _newest_of(wanted, Path(runs)) if resume == NEWEST else None
    left = None
    if folder is not None:
        wanted = replace(wanted, name=load_config(folder / CONFIG_FILE).name)
    elif resume == NEWEST and _is_left(Path(runs) / wanted.name, wanted):
        left = Path(runs) / wanted.name
    else:
        check_name_is_free(wanted, Path(runs))
    return PlannedRun(wanted, Path(runs), run_stem(Path(config)), folder, left)


def check_name_is_free(config: RunConfig, runs: Path) -> None:
    """Refuse the name of a run that exists, and a folder of runs that is a file.

    Raises:
        ConfigError: if the run's folder exists, or none can be made there.
    """
    there = next((path for path in (runs, *runs.parents) if os.path.lexists(path)), Path())
    if not there.is_dir():
        raise ConfigError(f"--runs: expected a folder, got {runs}; {there} is a file")
    folder = runs / config.name
    if config.name != AUTO and folder.exists():
        raise ConfigError(
            f"name: {folder} exists and is not overwritten; choose another, name=..., or name=auto"
        )


def _resumed(folder: Path, overrides: Sequence[str]) -> PlannedRun:
    """Return the run of a folder, with overrides.

    Raises:
        ConfigError: if it cannot go on with them or its source has changed, or has no checkpoint.
    """
    path = config_of_run(folder, "--resume: expected a run's folder, or auto")
    config = load_config(path, overrides)
    check_loggers(config)
    check_same(asdict(load_config(path)), config, folder)
    check_sources(folder)
    if newest_checkpoint(folder) is None:
        raise ConfigError(
            f"--resume: {folder / CHECKPOINTS} has no checkpoint; train a new run of {path}"
        )
    return PlannedRun(config, folder.parent, folder.name, folder)


def _newest_of(config: RunConfig, runs: Path) -> Path | None:
    """Return the folder of the newest run of a configuration that can go on; None without one."""
    found: dict[Path, int] = {}
    for path in runs.glob(f"*/{CONFIG_FILE}"):
        if config.name not in (AUTO, path.parent.name):
            continue
        try:
            newest = newest_checkpoint(path.parent)
            if newest and _is_of(path, config):
                found[path.parent] = newest.stat().st_mtime_ns
        except OSError:  # a run under way has removed it
            continue
    return max(found, key=found.__getitem__, default=None)


def _is_left(folder: Path, config: RunConfig) -> bool:
    """Return whether a folder is of a run that was killed before its first checkpoint."""
    if config.name == AUTO or not folder.is_dir() or newest_checkpoint(folder) is not None:
        return False
    path = folder / CONFIG_FILE
    if path.is_file():
        return _is_of(path, config) and not (folder / SUMMARY_FILE).exists()
    return {part.name for part in folder.iterdir()} <= EARLY_FILES


def _is_of(path: Path, config: RunConfig) -> bool:
    """Return whether a file of a run is of a configuration, but for ``MAY_DIFFER``.

    A run of a scenario whose source has changed is not.
    """
    try:
        is_same = not _differences(asdict(load_config(path)), config)
        return is_same and all(change.now is None for change in changes(path.parent))
    except ConfigError:  # of another version, or no file of ours
        return False


def check_same(saved: Mapping[str, Any], config: RunConfig, folder: Path) -> None:
    """Refuse to go on with other values of keys that decide about learning.

    Args:
        saved: the configuration with which the run began, as nested dictionaries.
        config: the one with which it is to go on.
        folder: of the run.

    Raises:
        ConfigError: if a key differs that is not in ``MAY_DIFFER``.
    """
    differences = _differences(saved, config)
    if saved.get("name") != config.name:
        differences["name"] = saved.get("name"), config.name
    for key, (before, now) in differences.items():
        raise ConfigError(
            f"{folder}: {key}: expected {before!r}, with which the run began, got {now!r}; "
            f"a resumed run can change {', '.join(MAY_DIFFER)}"
        )


def _differences(saved: Mapping[str, Any], config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return both values of each key that differs, but for the name and ``MAY_DIFFER``."""
    before, now = flat(saved), flat(asdict(config))
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    fixed = [key for key in keys if key != "name" and not _may_differ(key)]
    return {key: (before.get(key), now.get(key)) for key in fixed}


def _may_differ(key: str) -> bool:
    return any(fnmatchcase(key, free) for free in MAY_DIFFER)
