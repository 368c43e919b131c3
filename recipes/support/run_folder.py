"""The files of a run's folder, and its name."""

import json
import os
from pathlib import Path

from qmix_trl.config.run_files import CONFIG_FILE
from qmix_trl.errors import ConfigError, nearest, shown

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


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the folder of a run's newest checkpoint, whole or not; None if it has none."""
    return max((folder / CHECKPOINTS).glob("checkpoint-*"), default=None)


def ranks_of_checkpoint(folder: Path) -> int | None:
    """Return the number of ranks that wrote a run's newest checkpoint; None if it is damaged.

    A checkpoint that does not tell is of one process. Loading it checks the number again.
    """
    newest = newest_checkpoint(folder)
    try:
        text = "" if newest is None else (newest / "manifest.json").read_text()
        ranks = json.loads(text.partition("\n")[2]).get("ranks", 1)
    except (OSError, ValueError, AttributeError):
        return None
    return ranks if type(ranks) is int else None


def config_of_run(folder: Path, expected: str = "expected a run's folder") -> Path:
    """Return the configuration's file in a run's folder.

    Args:
        folder: of the run.
        expected: the beginning of the message.

    Raises:
        ConfigError: if there is none; it names the runs in it, the nearest or all beside it.
    """
    path = folder / CONFIG_FILE
    if os.path.isfile(path):
        return path
    runs = runs_below(folder)
    near = "" if runs else nearest(folder.name, runs_below(folder.parent))
    place, runs = (folder, runs) if runs else (folder.parent, runs_below(folder.parent))
    there = near or f"; runs in {place}: {shown(', '.join(runs)) or 'none'}"
    raise ConfigError(f"{expected}, got {folder}, which has no {CONFIG_FILE}{there}")


def runs_below(folder: Path) -> list[str]:
    """Return the names of the runs in a folder, sorted; none if it cannot be read."""
    try:
        return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    except OSError:
        return []
