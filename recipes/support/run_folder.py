"""The files of a run's folder, and its name."""

from pathlib import Path

CONFIG_FILE = "config.yaml"
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
