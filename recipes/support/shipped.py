"""The configurations that come with the recipes, by name."""

import os
from pathlib import Path

from qmix_trl.errors import ConfigError, nearest, shown

CONFIGS = Path(__file__).parents[1] / "configs"


def shipped_configs() -> list[str]:
    """Return the names of the configurations in ``recipes/configs/``, without ".yaml"."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def shipped_config(name: str) -> Path:
    """Return the file of a configuration that comes with the recipes.

    Raises:
        ConfigError: if there is none of that name; it names the nearest.
    """
    names = shipped_configs()
    if name not in names:
        stem = shown(os.path.basename(name).removesuffix(".yaml"))
        raise ConfigError(
            f"CONFIG: expected a file, or the name of a configuration, got {name!r}"
            f"{nearest(stem, names)}; `qmix-trl copy` lists the names"
        )
    return CONFIGS / f"{name}.yaml"


def config_file(text: str) -> str:
    """Return the file of a configuration: a path, or the name of one that comes with the recipes.

    Raises:
        ConfigError: if there is neither.
    """
    return text if os.path.lexists(text) else str(shipped_config(text))
