"""TensorBoard and Weights & Biases beside ``metrics.csv``, through TorchRL's loggers.

Their packages, torch and TorchRL are imported where they are used: ``check_loggers`` tells a
missing one before that.
"""

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from support.flat_config import flat
from support.metrics import metric_lines

from qmix_trl.config.schema import RunConfig
from qmix_trl.errors import check_extra, one_line
from qmix_trl.logs import say

LOGGERS = ("tensorboard", "wandb")  # the names of packages, of extras and of folders in a run's
PACKAGES = ("qmix-trl", "torch", "torchrl", "tensordict", "vmas", "numpy")
# Read when wandb is imported. Otherwise it prints much, and reports its own errors to its makers.
WANDB_ENVIRONMENT = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
# Only the configuration, versions and metrics are logged, not the machine or the files of a user.
WANDB_SETTINGS = {
    "silent": True,
    "host": "",
    "console": "off",
    "save_code": False,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def check_loggers(config: RunConfig) -> None:
    """Refuse loggers whose package is not installed.

    Raises:
        ConfigError: if one is not.
    """
    for name in config.logging:
        check_extra(name, name, "logging")


class Loggers:
    """The loggers of a run: each has the lines of ``metrics.csv``, no more and no fewer.

    A run that goes on writes its loggers again from the start, as only ``metrics.csv`` is sure to
    be whole after a kill. A logger that fails, as without a network, says so and is left out; the
    run goes on.

    Args:
        config: of the run.
        folder: of the run.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._open: dict[str, TensorBoard | WandB] = {}
        self._begun = 0.0  # in seconds of time.time

    def open(self) -> None:
        """Open the loggers, say where they log, and log the lines that are there already."""
        lines = metric_lines(self._folder)
        self._begun = time.time() - (training_seconds(lines[-1]) if lines else 0)
        for name in self._config.logging:
            with self._left_out_if_it_fails(name):
                self._open[name] = KINDS[name](self._config, self._folder)
                say(f"{name}: {self._open[name].where}")
                for line in lines:
                    self._write(name, line)

    def write(self, metrics: Mapping[str, float | None]) -> None:
        """Log a line of metrics; None is left out."""
        values = {name: value for name, value in metrics.items() if value is not None}
        for name in list(self._open):
            with self._left_out_if_it_fails(name):
                self._write(name, values)

    def close(self) -> None:
        """Flush and end the loggers."""
        for name in list(self._open):
            with self._left_out_if_it_fails(name):
                self._open[name].logger.shutdown()

    def _write(self, name: str, values: Mapping[str, float]) -> None:
        """Log a line, at the time at which it would stand had training made no pause."""
        self._open[name].write(values, self._begun + training_seconds(values))

    @contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a package, the disk or the network
            self._open.pop(name, None)
            say(f"warning: no more is logged by {name}: {one_line(error)}; the run goes on")


class TensorBoard:
    """TensorBoard's files in ``tensorboard/``.

    Args:
        config: of the run.
        folder: of the run.

    Attributes:
        logger: TorchRL's logger.
        where: how the files are shown.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        from torchrl.record.loggers import TensorboardLogger

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.logger = TensorboardLogger("tensorboard", str(folder))
        self.where = f"tensorboard --logdir {folder.parent}"
        settings = flat({**asdict(config), "versions": versions()})
        shown = {key: x if isinstance(x, int | float) else str(x) for key, x in settings.items()}
        # In the same folder: a folder of its own would be a second run in TensorBoard.
        self.logger.experiment.add_hparams(shown, {}, run_name=".")

    def write(self, values: Mapping[str, float], at: float) -> None:
        """Log a line of metrics at a time; it is in the file when this returns."""
        for name, value in values.items():
            self.logger.experiment.add_scalar(name, value, int(values["frames"]), at)
        self.logger.flush()


class WandB:
    """A run of Weights & Biases, with files in ``wandb/``; offline where nobody is logged in.

    Variables of the environment count as everywhere in W&B, such as ``WANDB_PROJECT`` and
    ``WANDB_MODE``. What the server has already of a run that goes on stays there.

    Args:
        config: of the run.
        folder: of the run.

    Attributes:
        logger: TorchRL's logger.
        where: the run's address, or why it is offline.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        for name, value in WANDB_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import wandb
        from torchrl.record.loggers import WandbLogger

        known = next((path.name.rpartition("-")[2] for path in folder.glob("wandb/*run-*-*")), None)
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        is_chosen = "WANDB_MODE" in os.environ
        is_offline = not is_chosen and not wandb.login(verify=False, prompt=False)
        self.logger = WandbLogger(
            folder.name,
            save_dir=str(folder),
            id=known,
            project=os.environ.get("WANDB_PROJECT", "qmix_trl"),
            log_env_packages=False,
            mode="offline" if is_offline else None,
            settings=wandb.Settings(**WANDB_SETTINGS),
        )
        self.logger.log_hparams({**asdict(config), "versions": versions()})
        why = "as WANDB_MODE says" if is_chosen else "as nobody is logged in (wandb login)"
        offline = f"offline, {why}; to send it: wandb sync {folder}/wandb/offline-run-*"
        run = self.logger.experiment
        self.where = offline if run.offline else str(run.url)

    def write(self, values: Mapping[str, float], at: float) -> None:
        """Log a line of metrics at a time; W&B's step is the number of frames."""
        self.logger.experiment.log({**values, "_timestamp": at}, step=int(values["frames"]))


def training_seconds(line: Mapping[str, float]) -> float:
    """Return the seconds of training at a line of metrics."""
    return line["frames"] / line["frames_per_second"]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


KINDS = {"tensorboard": TensorBoard, "wandb": WandB}
