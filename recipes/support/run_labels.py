"""The tasks and the groups of runs, named by the keys in which their configurations differ."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from support.flat_config import flat

from qmix_trl.errors import ConfigError, nearest

# Keys of the section env on which the returns of an episode depend.
TASK = ("family", "scenario", "make", "group", "others", "pad", "actions_per_dimension")
TASK_KEYS = tuple(f"env.{key}" for key in (*TASK, "max_steps", "team_reward"))
KWARGS = ("env.scenario_kwargs.", "env.make_kwargs.")
# Keys that make no group: of a run alone, or without effect on what is learned.
NO_GROUP = ("name", "seed", "logging", "env.engine", "env.verify", "env.processes")
NO_GROUP_SECTIONS = ("runtime.", "checkpoint.")
ALGORITHM = "mixer.name"
TRAINED_BY = "trained by"  # as if it were a key: the library
Flat = Mapping[str, Any]


def flat_run(config: Mapping[str, Any], trained_by: str) -> dict[str, Any]:
    """Return the keys of a run's configuration, and the library that trained it."""
    return {**flat(config), TRAINED_BY: trained_by}


def tasks_of(runs: Sequence[Flat]) -> list[str]:
    """Return the task of each run: its scenario, and the keys in which tasks of one differ."""

    def name(run: Flat) -> str:
        return str(run.get("env.scenario") or run.get("env.make")).rpartition("/")[2]

    names: list[str] = []
    for run in runs:
        others = [other for other in runs if name(other) == name(run)]
        keys = _differing(others, lambda key: key in TASK_KEYS, KWARGS)
        names.append(", ".join([name(run), *_words(run, keys)]))
    return names


def groups_of(
    runs: Sequence[Flat], tasks: Sequence[str], keys: Sequence[str] | None = None
) -> list[str]:
    """Return the group of each run; runs of a group differ in the seed.

    Args:
        runs: their keys.
        tasks: of the runs.
        keys: that make the groups; None takes those in which runs of a task differ, and the mixer
            if it differs, or nothing does.

    Raises:
        ConfigError: if no run has one of the keys.
    """
    known = dict.fromkeys(key for run in runs for key in run)
    for key in keys or ():
        if key not in known:
            raise ConfigError(f"--group-by: no run has the key {key!r}{nearest(key, known)}")
    if keys is None:
        keys = _group_keys(runs, tasks)
    return [", ".join(_words(run, keys)) for run in runs]


def _group_keys(runs: Sequence[Flat], tasks: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for task in dict.fromkeys(tasks):
        of_task = [run for run, own in zip(runs, tasks, strict=True) if own == task]
        found |= dict.fromkeys(_differing(of_task, _makes_a_group))
    if not found or len({run.get(ALGORITHM) for run in runs}) > 1:
        found = {ALGORITHM: None} | found
    return list(found)


def _makes_a_group(key: str) -> bool:
    is_of_task = key in TASK_KEYS or key.startswith(KWARGS)
    return not (is_of_task or key in NO_GROUP or key.startswith(NO_GROUP_SECTIONS))


def _differing(
    runs: Sequence[Flat], counts: Callable[[str], bool], absent_counts: tuple[str, ...] = ()
) -> list[str]:
    """Return the keys in which runs differ.

    Args:
        runs: their keys.
        counts: whether a key counts.
        absent_counts: the beginnings of further keys, which differ where a run has none, too; a
            section's other keys follow from its name.
    """
    keys = dict.fromkeys(key for run in runs for key in run)
    found = []
    for key in keys:
        is_free = key.startswith(absent_counts) if absent_counts else False
        values = {repr(run.get(key)) for run in runs if is_free or key in run}
        if len(values) > 1 and (is_free or counts(key)):
            found.append(key)
    return found


def _words(run: Flat, keys: Collection[str]) -> list[str]:
    """Return the values of a run's keys: names alone, others behind the last part of the key."""
    last = [key.rpartition(".")[2] for key in keys]
    words = []
    for key, short in zip(keys, last, strict=True):
        if key not in run:
            continue
        value = "iql" if (key, run[key]) == (ALGORITHM, "none") else run[key]
        is_name = short == "name" or key == TRAINED_BY
        words.append(
            str(value) if is_name else f"{short if last.count(short) == 1 else key}={value}"
        )
    return words
