"""The checkpoints of a run: when they are due, their content, and saves that fail."""

import contextlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from support.commands import typed
from support.components import last_frame
from support.evaluation import Evaluation
from support.planned_run import check_same
from support.run_folder import CHECKPOINTS
from support.run_weights import RunWeights
from tensordict.nn import TensorDictModuleBase

from qmix_trl import (
    CheckpointError,
    ConfigError,
    LoadedRun,
    MachineError,
    SaveError,
    load_run,
    save_run,
)
from qmix_trl.checkpoint.nested import encoded
from qmix_trl.checkpoint.parts import part_state
from qmix_trl.config.schema import RunConfig
from qmix_trl.logs import say
from qmix_trl.ranks import ALONE, Ranks

# Of a state that cannot be saved: a part has none, or a scenario changed a thing without a form.
UNSAVED = (TypeError, ConfigError)


class Checkpoints:
    """Saves a run now and then, and lets it go on from its newest checkpoint.

    A checkpoint that cannot be written does not end the run: the failure is told once, and the next
    one that is due is tried again. A state that cannot be saved at all ends the checkpoints, with a
    message. The first of several ranks decides when all save.

    Args:
        config: of the run.
        folder: of the run.
        parts: all that later steps depend on, in the order in which they are loaded.
        ranks: that train together, each with parts of its own and an equal ``update``.

    Attributes:
        refusal: why there are no checkpoints; None if there are.
    """

    def __init__(
        self, config: RunConfig, folder: Path, parts: Mapping[str, Any], ranks: Ranks = ALONE
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._run = folder
        self._folder = folder / CHECKPOINTS
        self._parts = parts
        self._failed = False
        self._saved_at = time.perf_counter()
        self._saved_frames: int | None = None
        self.refusal = next(filter(None, ranks.gathered(self._why_none())), None)
        if self.refusal and config.checkpoint.every_seconds is not None:
            say(f"no checkpoints: {self.refusal}")

    def _why_none(self) -> str | None:
        if self._config.checkpoint.every_seconds is None:
            return "checkpoint.every_seconds is null"
        try:
            state = part_state("collector", self._parts["collector"])
            encoded(state, lambda tensor: None, "collector")
        except UNSAVED as error:
            return str(error)
        return None

    def load(
        self, evaluation: Evaluation, agent: TensorDictModuleBase, weights: RunWeights
    ) -> tuple[int, int]:
        """Let the parts go on from the newest checkpoint; return its frames and its updates.

        Weights that are not trained further, as the run is shortened, are evaluated and saved
        unless the checkpoint has their greedy return.

        Args:
            evaluation: of the run.
            agent: of the run.
            weights: of the run.

        Raises:
            ConfigError: if the run began with another configuration, or is longer already.
            CheckpointError: if no checkpoint is whole, or it does not fit.
            DivergedError: if a weight or a return is not finite.
            SaveError: if the weights cannot be written.
            MachineError: if the weights of ranks differ.
        """
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run = load_run(self._folder, ranks=self._ranks, **self._parts)
        self._check_equal()
        for warning in told:
            say(f"warning: {warning.message}")
        saved, frames, n_updates = _checked_values(run)
        check_same(saved, self._config, self._run)
        if frames > last_frame(self._config):
            raise ConfigError(
                f"{self._run}: expected collection.total_frames of at least {frames}, which the "
                f"run has collected, got {self._config.collection.total_frames}"
            )
        say(f"resumed: {run.path}, {frames:,} frames")
        self._saved_at, self._saved_frames = time.perf_counter(), frames
        is_last = frames == last_frame(self._config)
        if self._ranks.is_first and is_last and run.manifest.get("greedy_return") is None:
            greedy = evaluation.greedy(agent)
            self._parts["report"].set_greedy(greedy)
            weights.save(greedy)
        return frames, n_updates

    def save_if_due(self, frames: int, n_updates: int, greedy: Mapping[str, float] | None) -> None:
        """Write a checkpoint after a batch, if one is due.

        It waits for the next evaluation, though not longer than for as long again, so that the
        best checkpoint is one of high greedy return.

        Args:
            frames: collected so far.
            n_updates: taken so far.
            greedy: the summary of the greedy returns of these weights; None if not measured.

        Raises:
            MachineError: if the weights of ranks differ.
        """
        every = self._config.checkpoint.every_seconds
        if every is None:
            return
        elapsed = time.perf_counter() - self._saved_at
        waited = elapsed >= (every if greedy else 2 * every)
        if self._ranks.from_first(waited) or frames == last_frame(self._config):
            self.save(frames, n_updates, greedy)

    def save(self, frames: int, n_updates: int, greedy: Mapping[str, float] | None) -> None:
        """Write a checkpoint, unless there are none.

        Args:
            frames: collected so far.
            n_updates: taken so far.
            greedy: the summary of the greedy returns of these weights; None if not measured.

        Raises:
            MachineError: if the weights of ranks differ.
        """
        self._check_equal()
        if self.refusal is not None:
            return
        try:
            save_run(
                self._folder,
                ranks=self._ranks,
                keep=self._config.checkpoint.keep,
                greedy_return=greedy["mean"] if greedy else None,
                config=asdict(self._config),
                frames=frames,
                n_updates=n_updates,
                **self._parts,
            )
            self._saved_frames, self._failed = frames, False
        except SaveError as error:
            if not self._failed:
                say(f"warning: {error}; the run goes on and tries again")
            self._failed = True
        except UNSAVED as error:
            self.refusal = str(error)
            say(f"warning: no more checkpoints: {self.refusal}")
        self._saved_at = time.perf_counter()

    def _check_equal(self) -> None:
        """Refuse to go on where ranks learn different networks, as on unlike processors.

        Raises:
            MachineError: if they differ.
        """
        if self._ranks.size == 1:
            return
        found = self._ranks.gathered(self._parts["update"].fingerprint())
        unlike = [rank for rank, hash_ in enumerate(found) if hash_ != found[0]]
        if unlike:
            raise MachineError(
                f"ranks {', '.join(map(str, unlike))}: expected the weights of rank 0, got others; "
                "start all ranks on processors or GPUs of one kind"
            )

    def stop(self, frames: int, n_updates: int) -> str:
        """Save a run that is stopped; return how it goes on.

        Args:
            frames: collected so far.
            n_updates: taken so far.
        """
        if self._saved_frames != frames:
            self.save(frames, n_updates, None)
        if self._saved_frames is None:
            how = f"no checkpoint: {self.refusal or 'none could be written'}"
        else:
            behind = "" if self._saved_frames == frames else f" from {self._saved_frames:,} frames"
            by = " by as many ranks" if self._ranks.size > 1 else ""
            how = f"go on{behind}{by}: {typed('train', '--resume', self._run)}"
        return f"stopped at {frames:,} frames; {how}"


def _checked_values(run: LoadedRun) -> tuple[Mapping[str, Any], int, int]:
    """Return the configuration, the frames and the updates of a checkpoint.

    Raises:
        CheckpointError: if one is missing or of another type.
    """
    config, *counts = (run.values.get(name) for name in ("config", "frames", "n_updates"))
    if isinstance(config, Mapping) and all(type(count) is int and count >= 0 for count in counts):
        with contextlib.suppress(TypeError):  # it has tensors
            json.dumps(config)
            return config, counts[0], counts[1]
    raise CheckpointError(
        f"{run.path}: expected a configuration, a number of frames and one of updates, as train.py "
        "saves them, got other values; resume from a checkpoint of train.py"
    )
