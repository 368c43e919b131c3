"""Reads and writes configurations."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from qmix_trl.config.checks import check
from qmix_trl.config.older_runs import with_added_keys
from qmix_trl.config.run_files import CONFIG_FILE
from qmix_trl.config.schema import RunConfig
from qmix_trl.config.strict_yaml import build, dump, overridden, read
from qmix_trl.config.user_files import with_whole_paths
from qmix_trl.errors import ConfigError, shown
from qmix_trl.logs import write_whole


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a run, from a file and overrides.

    Args:
        path: a YAML file.
        overrides: ``key.sub=value``, the value in YAML.

    Raises:
        ConfigError: with file, line, dotted path, what was expected and what was got.
    """
    config = read_config(path, overrides)
    try:
        config = with_whole_paths(config, Path(path).parent, overrides)
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{_origin(str(error), path, overrides)}: {error}") from None
    return config


def _origin(message: str, path: str | Path, overrides: Sequence[str]) -> str:
    """Return where the key was set with which a message begins: by an override, or in the file."""
    key = re.match(r"[\w.]*", message)
    names = key[0].split(".") if key else []
    for override in reversed(overrides):
        typed = override.partition("=")[0].split(".")
        if names[: len(typed)] == typed:
            return f"override {shown(override)!r}"
    return str(path)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a configuration as it stands in a file, whose files and packages may be absent here.

    The file of a run, ``config.yaml`` beside its metrics or weights, may lack keys that were added
    after the run.

    Args:
        path: a YAML file.
        overrides: ``key.sub=value``, the value in YAML.

    Raises:
        ConfigError: if a key is unknown or missing, or a value has the wrong type or range.
    """
    root = read(Path(path))
    if _is_of_run(Path(path)):
        root = with_added_keys(root)
    for override in overrides:
        root = overridden(root, override)
    return build(RunConfig, root)


def _is_of_run(path: Path) -> bool:
    """Return whether a configuration stands in the folder of a run."""
    others = (path.parent / name for name in ("metrics.csv", "weights.pt"))
    return path.name == CONFIG_FILE and any(other.exists() for other in others)


def save_config(config: RunConfig, path: Path) -> None:
    """Write a configuration to a file; ``load_config`` reads an equal one from it.

    Raises:
        SaveError: if it cannot be written; a file that was there before stays.
    """
    write_whole(path, dump(asdict(config)))
