"""The report of a training: the lines that it prints, ``metrics.csv`` and ``summary.json``."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from support.components import last_frame
from support.evaluation import compare
from support.run_folder import MISMATCH_FILE, SUMMARY_FILE
from tensordict import TensorDictBase

from qmix_trl.collect import finished_return
from qmix_trl.config import RunConfig
from qmix_trl.envs.compiled.shadow import Shadow
from qmix_trl.errors import WrongStepError
from qmix_trl.logs import Column, RunLog, write_json

COLUMNS = (
    Column("frames", "frames", ",d"),
    Column("frames_per_second", "frames/s", ",.0f"),
    Column("train_return", "training", ".2f"),
    Column("greedy_return", "greedy", ".2f"),
    Column("loss", "loss", ".4f"),
    Column("td_error", "|TD|", ".3f"),
    Column("total_value", "Q_tot", ".2f"),
    Column("grad_norm", "gradient", ".2f"),
    Column("epsilon", "epsilon", ".2f"),
    Column("seconds_left", "s left", ",.0f"),
)


class TrainingReport:
    """The progress of a training, printed and written; use it in a ``with`` statement.

    Args:
        config: of the run.
        folder: of the run.
        device: of the networks.
        parts: the environment, the collector and the update, by name; ``how`` of each tells
            which implementation runs.
        shadow: compares the environment's steps with VMAS; None if nothing does.
        baselines: the summaries of the returns of doing nothing and of random actions.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        device: torch.device,
        parts: Mapping[str, Any],
        shadow: Shadow | None,
        baselines: Mapping[str, dict[str, float]],
    ) -> None:
        self._config = config
        self._folder = folder
        self._device = device
        self._parts = parts
        self._shadow = shadow
        self._returns = dict(baselines)
        self._frames, self._seconds = 0, 0.0
        means = {name: returns["mean"] for name, returns in baselines.items()}
        caption = (
            f"return of {config.evaluation.episodes} episodes: "
            f"doing nothing {means['no_op']:.2f}, chance {means['random']:.2f}"
        )
        print(
            f"{folder}: {config.mixer.name} on {config.env.scenario}, {device}, seed {config.seed}"
        )
        for name, part in parts.items():
            print(f"{name}: {part.how}")
        if shadow is not None:
            print(f"verified: {shadow.how}")
        print(caption, flush=True)
        self._log = RunLog(folder, COLUMNS, caption=caption)

    def __enter__(self) -> "TrainingReport":
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
        if isinstance(error, WrongStepError):
            write_json(self._folder / MISMATCH_FILE, error.traces)

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
        self._frames, self._seconds = frames, time.perf_counter() - self._start
        if greedy:
            self._returns["greedy"] = greedy
        self._log.write(
            {
                "frames": frames,
                "frames_per_second": frames / self._seconds,
                "train_return": finished_return(batch),
                "greedy_return": greedy["mean"] if greedy else None,
                **{name: value.item() for name, value in means.items()},
                "epsilon": epsilon,
                "seconds_left": self._seconds * (last_frame(self._config) / frames - 1),
            }
        )

    def end(self, n_updates: int) -> None:
        """Write the summary and compare the greedy return with the baselines."""
        summary = {
            "frames": self._frames,
            "gradient_steps": n_updates,
            "seconds": self._seconds,
            "frames_per_second": self._frames / self._seconds,
            "seed": self._config.seed,
            "device": str(self._device),
            **{name: str(part.how) for name, part in self._parts.items()},
            "verified_steps": 0 if self._shadow is None else self._shadow.verified_steps,
            "return": self._returns,
        }
        write_json(self._folder / SUMMARY_FILE, summary)
        greedy = self._returns["greedy"]
        print(
            f"greedy return {greedy['mean']:.2f} after {self._frames:,} frames and "
            f"{self._seconds:.0f} s: {compare(greedy, self._returns['no_op'])} doing nothing, "
            f"{compare(greedy, self._returns['random'])} chance"
        )
