"""Whole paths of the user's files that a configuration names.

A run's folder keeps them, so that the run is evaluated from any folder.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmix_trl.config.run_files import CONFIG_FILE, SOURCES, SOURCES_FILE
from qmix_trl.config.schema import (
    OTHERS,
    CustomConfig,
    CustomMixerConfig,
    EnvConfig,
    PettingZooConfig,
    RunConfig,
    VmasConfig,
)
from qmix_trl.errors import ConfigError, nearest, shown


def with_whole_paths(config: RunConfig, folder: Path, overrides: Sequence[str]) -> RunConfig:
    """Return a configuration with the whole paths of the user's files in it.

    Args:
        config: as it was read.
        folder: of the file, to which its paths are relative.
        overrides: ``key.sub=value``, whose paths are relative to the current folder.

    Raises:
        ConfigError: if there is no such file, or ``make`` names no function or class.
    """
    overridden_keys = {override.partition("=")[0] for override in overrides}
    return replace(
        config,
        env=_resolved(config.env, folder, overridden_keys),
        mixer=_resolved_mixer(config.mixer, folder, overridden_keys),
    )


def _resolved(env: EnvConfig, folder: Path, overridden_keys: Collection[str]) -> EnvConfig:
    """Return a section ``env`` with the whole paths of the user's files in it.

    Args:
        env: the section.
        folder: of the configuration.
        overridden_keys: the keys that the command line sets.

    Raises:
        ConfigError: as ``with_whole_paths``.
    """
    if not isinstance(env, (VmasConfig, PettingZooConfig, CustomConfig)):
        return env
    typed = {key.removeprefix("env.") for key in overridden_keys}

    def base(key: str) -> Path | None:
        """Return the folder to which a path in a key is relative."""
        return None if key in typed or "env" in typed else folder

    if isinstance(env, VmasConfig):
        env = replace(env, others=_run_or_name(env.others, base("others")))
    if not isinstance(env, CustomConfig):
        scenario = with_whole_path("env.scenario", env.scenario, base("scenario"))
        return replace(env, scenario=scenario)
    return replace(env, make=_whole_name("env.make", env.make, "function", base("make")))


def _resolved_mixer(mixer: Any, folder: Path, overridden_keys: Collection[str]) -> Any:
    """Return a section ``mixer`` with the whole path of the user's file, if it names one.

    Args:
        mixer: the section.
        folder: as in ``_resolved``.
        overridden_keys: as in ``_resolved``.

    Raises:
        ConfigError: as ``with_whole_paths``.
    """
    if not isinstance(mixer, CustomMixerConfig):
        return mixer
    base = None if {"mixer", "mixer.make"} & set(overridden_keys) else folder
    return replace(mixer, make=_whole_name("mixer.make", mixer.make, "Class", base))


def _whole_name(key: str, make: str, kind: str, folder: Path | None) -> str:
    """Return the name of a function or class with the whole path of its file, if it is in one.

    Args:
        key: dotted, for the message.
        make: "path/to/file.py:name" or "module:name".
        kind: of the thing, as an error calls it.
        folder: as in ``with_whole_path``.

    Raises:
        ConfigError: if ``make`` has another form, or there is no such file.
    """
    where, _, name = make.rpartition(":")
    if not where or not name.isidentifier():
        raise ConfigError(
            f"{key}: expected path/to/file.py:{kind} or module:{kind}, got {shown(make)!r}"
        )
    return with_whole_path(key, make, folder)


def with_whole_path(key: str, spec: str, folder: Path | None = None) -> str:
    """Return the name of a thing of the user's with the whole path of its file, if it is in one.

    Args:
        key: dotted, for the message.
        spec: "path/to/file.py", "path/to/file.py:name", or any other name.
        folder: to which a path is relative: of the configuration; None for the current one.

    Raises:
        ConfigError: if there is no such file.
    """
    where, colon, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    if not where.endswith(".py"):
        return spec
    file = _whole_path(key, where, folder)
    if not (os.path.isfile(file) or _is_copied(folder)):
        of = "the configuration's" if folder else "the current"
        raise ConfigError(
            f"{key}: expected a file, relative to {of} folder, got "
            f"{shown(where)!r}; there is no {shown(str(file))}"
        )
    return f"{file}{colon}{name}"


def _run_or_name(others: str, folder: Path | None) -> str:
    """Return one of ``OTHERS``, or the whole path of a run's folder.

    Args:
        others: of a section ``env``.
        folder: as in ``with_whole_path``.

    Raises:
        ConfigError: if it is neither.
    """
    if others in OTHERS:
        return others
    run = _whole_path("env.others", others, folder)
    if not (os.path.isfile(run / CONFIG_FILE) or _is_copied(folder)):
        raise ConfigError(
            f"env.others: expected one of {', '.join(OTHERS)}, or a run's folder, got "
            f"{shown(others)!r}{nearest(shown(others), OTHERS)}; there is no "
            f"{shown(str(run))}/{CONFIG_FILE}"
        )
    return str(run)


def _whole_path(key: str, where: str, folder: Path | None) -> Path:
    """Return a whole path; the file may be absent, or its name too long for any file.

    Raises:
        ConfigError: if no file can have the path, as it holds a zero byte, or a loop of links.
    """
    try:
        return (folder or Path()).joinpath(where).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}: expected a path, got {shown(where)!r}: {error}") from error


def _is_copied(folder: Path | None) -> bool:
    """Return whether a configuration is a run's that has copies of the user's files, or a copy."""
    lists = () if folder is None else (folder / SOURCES, folder.parent)
    return any((place / SOURCES_FILE).is_file() for place in lists)
