"""The files of a run's folder, and its name."""

import os
from pathlib import Path

from qmix_trl.config import CONFIG_FILE
from qmix_trl.errors import ConfigError, nearest

SUMMARY_FILE = "summary.json"
MISMATCH_FILE = "mismatch.json"
CHECKPOINTS = "checkpoints"
VIDEOS = "videos"
REPLAY_FOLDER = "replay"  # of replay.storage: memmap, while the run goes on


def run_stem(config_path: Path) -> str:
    """Return the name that runs of a configuration get, before their number.

    It is the file's name; for the configuration in a run's folder it is the folder's name.
    """
    is_of_a_run = config_path.name == CONFIG_FILE
    return config_path.resolve().parent.name if is_of_a_run else config_path.stem


def check_is_run(folder: Path) -> None:
    """Refuse a folder that is no run's.

    Raises:
        ConfigError: if it has no configuration; it names the nearest runs beside it.
    """
    if not os.path.isfile(folder / CONFIG_FILE):
        runs = [path.parent.name for path in folder.parent.glob(f"*/{CONFIG_FILE}")]
        raise ConfigError(
            f"{folder}: expected a run's folder, with {CONFIG_FILE} in it, got none"
            f"{nearest(folder.name, runs)}"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the folder of a run's newest checkpoint, whole or not; None if it has none."""
    return max((folder / CHECKPOINTS).glob("checkpoint-*"), default=None)
