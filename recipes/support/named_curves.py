"""The learning curves of the runs that a command names, by task and group."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from support.curves import Curve, at_common_frames, read_curve, summary_of
from support.run_folder import CONFIG_FILE, runs_below
from support.run_labels import flat_run, groups_of, tasks_of

from qmix_trl.config.strict_yaml import read_values
from qmix_trl.errors import ConfigError, nearest


def named_curves(folders: Sequence[Path], keys: Sequence[str] | None, column: str) -> list[Curve]:
    """Return the curves of runs with points, by task and group; the others are told and left out.

    Args:
        folders: of runs, or with runs in them.
        keys: that make the groups; None takes those in which configurations differ.
        column: of the metrics.

    Raises:
        ConfigError: if a folder has no run, a key or the column is unknown, no run has a point, or
            the runs of a group have no point at the same frames.
    """
    runs = list(dict.fromkeys(run for folder in folders for run in runs_in(folder)))
    flat = [flat_run(read_values(run / CONFIG_FILE), trained_by(run)) for run in runs]
    tasks = tasks_of(flat)
    labels = zip(runs, tasks, groups_of(flat, tasks, keys), strict=True)
    curves = {run: read_curve(run, task, group, column) for run, task, group in labels}
    for run in [run for run, curve in curves.items() if not len(curve.frames)]:
        del curves[run]
        print(f"{run}: no {column} yet; left out")
    if not curves:
        raise ConfigError(f"expected a run with a {column}, got none yet")
    _check_groups(curves)
    return list(curves.values())


def _check_groups(curves: Mapping[Path, Curve]) -> None:
    """Tell seeds that a group has twice, and refuse groups without common frames.

    Raises:
        ConfigError: if the runs of a group have no point at the same frames.
    """
    groups: dict[tuple[str, str], dict[Path, Curve]] = {}
    for run, curve in curves.items():
        groups.setdefault((curve.task, curve.group), {})[run] = curve
    for (task, group), of_group in groups.items():
        paths = " ".join(map(str, of_group))
        if not len(at_common_frames(list(of_group.values()))[0].frames):
            raise ConfigError(
                f"{group} on {task}: expected points at the same frames, got none in common of "
                f"{paths}; --group-by name draws each alone"
            )
        n_seeds = len({curve.seed for curve in of_group.values()})
        if n_seeds < len(of_group):
            print(f"warning: {group} on {task}: {len(of_group)} runs have {n_seeds} seeds")


def runs_in(folder: Path) -> list[Path]:
    """Return a run's folder, or the folders of runs in it.

    Raises:
        ConfigError: if there is no run.
    """
    if (folder / CONFIG_FILE).is_file():
        return [folder]
    found = [folder / name for name in runs_below(folder)]
    if not found:
        beside = {path.name for path in folder.parent.glob("*/")} - {folder.name}
        deeper = [str(path) for path in folder.glob("*/") if runs_below(path)]
        hint = f"; {', '.join(deeper)} has runs" if deeper else nearest(folder.name, beside)
        raise ConfigError(f"expected a run's folder, or one with runs, got {folder}{hint}")
    return found


def trained_by(run: Path) -> str:
    """Return the name of the library that trained a run."""
    return "BenchMARL" if "packages" in summary_of(run) else "qmix_trl"
