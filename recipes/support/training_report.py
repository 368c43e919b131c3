"""The report of a training: the lines that it prints, ``metrics.csv`` and ``summary.json``."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from support.commands import typed
from support.components import last_frame
from support.evaluation import compare
from support.loggers import Loggers
from support.possible_values import PossibleValues
from support.run_folder import MISMATCH_FILE, SUMMARY_FILE
from support.shares import about_shares
from support.terminal import filled
from tensordict import TensorDictBase

from qmix_trl.collect import finished_return
from qmix_trl.config.schema import RAY, CustomMixerConfig, RunConfig
from qmix_trl.envs.compiled.shadow import Shadow
from qmix_trl.errors import WrongStepError
from qmix_trl.logs import Column, RunLog, say, write_json
from qmix_trl.ranks import Ranks

COLUMNS = (
    Column("frames", "frames", ",d"),
    Column("frames_per_second", "frames/s", ",.0f"),
    Column("train_return", "training", ".2f"),
    Column("greedy_return", "greedy", ".2f"),
    Column("loss", "loss", ".4f"),
    Column("td_error", "|TD|", ".3f"),
    Column("total_value", "Q_tot", ".2f"),
    Column("beyond_bound"),
    Column("grad_norm", "gradient", ".2f"),
    Column("epsilon", "epsilon", ".2f"),
    Column("seconds_left", "s left", ",.0f"),
)
STALENESS = Column("staleness", "stale", ".2f")  # with actors of Ray


def training_report(ranks: Ranks, folder: Path, *arguments: Any) -> "TrainingReport | NoReport":
    """Return the report of a rank.

    Args:
        ranks: that train together.
        folder: of the run.
        *arguments: the others of ``TrainingReport``, the report of the first rank.
    """
    return TrainingReport(ranks, folder, *arguments) if ranks.is_first else NoReport(folder)


class NoReport:
    """The report of a rank other than the first: it tells nothing.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> "NoReport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _write_traces(self._folder, error)

    def write(self, *arguments: Any) -> None:
        """Write nothing."""

    def end(self, n_updates: int) -> None:
        """Write nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing."""


def _write_traces(folder: Path, error: BaseException | None) -> None:
    """Write both traces of an episode, where a step differs from VMAS's."""
    if isinstance(error, WrongStepError):
        write_json(folder / MISMATCH_FILE, error.traces)


class TrainingReport:
    """The progress of a training, printed and written; use it in a ``with`` statement.

    It is a part of checkpoints: a resumed run continues its metrics and its seconds.

    Args:
        ranks: that train together; this is the report of the first one.
        folder: of the run.
        config: of the run.
        device: of the networks.
        parts: the environment, the collector and the update, by name; ``how`` of each tells
            which implementation runs.
        baselines: the summaries of the returns of doing nothing and of random actions.
    """

    def __init__(
        self,
        ranks: Ranks,
        folder: Path,
        config: RunConfig,
        device: torch.device,
        parts: Mapping[str, Any],
        baselines: Mapping[str, dict[str, float]],
    ) -> None:
        self._config = config
        self._n_ranks = ranks.size
        self._folder = folder
        self._device = device
        self._parts = parts
        self._shadow: Shadow | None = None  # compares the environment's steps with VMAS
        if config.env.family == "vmas":
            self._shadow = parts["engine"].shadow
        self._returns = dict(baselines)
        self._frames, self._seconds = 0, 0.0
        self._before = {"seconds": 0.0, "verified_steps": 0}  # the run was resumed
        self._bound = PossibleValues(
            gamma=config.loss.gamma,
            max_steps=config.env.max_steps,
            reward_scale=config.loss.reward_scale,
            of_agents=config.mixer.name == "none",
        )
        self._is_exceeded = False
        means = {name: returns["mean"] for name, returns in baselines.items()}
        caption = (
            f"return of {config.evaluation.episodes} episodes: "
            f"doing nothing {means['no_op']:.2f}, chance {means['random']:.2f}"
        )
        task = Path(config.env.scenario).name
        own = isinstance(config.mixer, CustomMixerConfig)
        mixer = Path(config.mixer.make).name if own else config.mixer.name
        say(f"{folder}: {mixer} on {task}, {device}, seed {config.seed}")
        if ranks.size > 1:
            say(f"ranks: {about_shares(config, ranks.size)}")
        for name, part in parts.items():
            say(filled(f"{name}: {part.how}"))
        if config.env.family == "vmas":
            for of, note in parts["engine"].notes.items():
                say(filled(f"{of}: {note}"))
        if self._shadow is not None:
            say(filled(f"verified: {self._shadow.how}"))
        say(filled(caption))
        self._loggers = Loggers(config, folder)
        is_remote = config.collection.collector == RAY
        self._columns = (*COLUMNS, STALENESS) if is_remote else COLUMNS
        self._log = RunLog(folder, self._columns, caption=caption)

    def __enter__(self) -> "TrainingReport":
        self._loggers.open()
        self._start = time.perf_counter()
        self._log.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log.__exit__(kind, error, traceback)
        self._loggers.close()
        _write_traces(self._folder, error)

    def write(
        self,
        frames: int,
        batch: TensorDictBase,
        means: TensorDictBase,
        epsilon: float,
        greedy: dict[str, float] | None,
    ) -> None:
        """Write and print the metrics of a batch.

        Args:
            frames: collected so far, this batch included.
            batch: as collected, [E, T].
            means: of the outputs of the batch's updates.
            epsilon: of the exploration.
            greedy: the summary of the greedy returns; None where they are not measured.
        """
        self._frames = frames
        self._seconds = self._before["seconds"] + time.perf_counter() - self._start
        if greedy:
            self._returns["greedy"] = greedy
        learned = {name: value.item() for name, value in means.items()}
        values = learned["total_value"], learned["target_value"]
        self._bound.see(batch)
        self._tell_overestimation(*values)
        metrics = {
            "frames": frames,
            "frames_per_second": frames / self._seconds,
            "train_return": finished_return(batch),
            "greedy_return": greedy["mean"] if greedy else None,
            **learned,
            "beyond_bound": self._bound.excess(*values),
            "epsilon": epsilon,
            "seconds_left": self._seconds * (last_frame(self._config) / frames - 1),
        }
        if STALENESS in self._columns:
            metrics[STALENESS.name] = self._parts["collector"].staleness
        self._log.write(metrics)
        self._loggers.write({column.name: metrics[column.name] for column in self._columns})

    def _tell_overestimation(self, value: float, target: float) -> None:
        """Say when a mean value or target lies where none can, once until all lie inside."""
        if self._bound.excess(value, target) == 0:
            self._is_exceeded = False
        if self._is_exceeded or not self._bound.is_exceeded(value, target):
            return
        self._is_exceeded = True
        low, high = self._bound.interval
        name = "Q_a" if self._config.mixer.name == "none" else "Q_tot"
        rewards = f"{self._bound.least_reward:.4g} and {self._bound.greatest_reward:.4g}"
        double_q = "" if self._config.loss.double_q else "loss.double_q=true, "
        say(
            f"warning: the values are overestimated from frame {self._frames:,} on: the mean "
            f"{name} is {value:.4g}, its target {target:.4g}, but rewards between {rewards} allow "
            f"values between {low:.4g} and {high:.4g} only; try {double_q}a lower "
            "update.optimizer.lr or slower targets (update.target)"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the size of the metrics, which are flushed to the disk, and all that adds up.

        Raises:
            SaveError: if the metrics cannot be flushed.
        """
        self._log.file.flush()
        return {
            "metrics_bytes": self._log.file.n_bytes,
            "frames": self._frames,
            "seconds": self._seconds,
            "verified_steps": self._verified_steps,
            "greedy": self._returns.get("greedy"),
            "bound": self._bound.state_dict(),
            "is_exceeded": self._is_exceeded,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``; later lines of the metrics are removed.

        Raises:
            ValueError: if the metrics are shorter than they were.
        """
        self._log.file.cut(state["metrics_bytes"])
        self._before = {name: state[name] for name in self._before}
        self._frames, self._seconds = state["frames"], state["seconds"]
        if state["greedy"] is not None:
            self._returns["greedy"] = state["greedy"]
        self._bound.load_state_dict(state["bound"])
        self._is_exceeded = state["is_exceeded"]

    def set_greedy(self, greedy: dict[str, float]) -> None:
        """Set the summary of the greedy returns of the last weights."""
        self._returns["greedy"] = greedy

    @property
    def _verified_steps(self) -> int:
        """The number of steps that were compared with VMAS's."""
        now = 0 if self._shadow is None else self._shadow.verified_steps
        return self._before["verified_steps"] + now

    def end(self, n_updates: int) -> None:
        """Write the summary and compare the greedy return with the baselines."""
        summary = {
            "frames": self._frames,
            "gradient_steps": n_updates,
            "seconds": self._seconds,
            "frames_per_second": self._frames / self._seconds,
            "seed": self._config.seed,
            "device": str(self._device),
            "ranks": self._n_ranks,
            **{name: str(part.how) for name, part in self._parts.items()},
            "verified_steps": self._verified_steps,
            "return": self._returns,
        }
        write_json(self._folder / SUMMARY_FILE, summary)
        greedy = self._returns["greedy"]
        text = (
            f"greedy return {greedy['mean']:.2f} after {self._frames:,} frames and "
            f"{self._seconds:.0f} s: {compare(greedy, self._returns['no_op'])} doing nothing, "
            f"{compare(greedy, self._returns['random'])} chance"
        )
        say(filled(text))
        say(f"next: {typed('evaluate', self._folder)}")
