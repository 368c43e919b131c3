"""Videos of a training: a greedy episode at each evaluation (``evaluation.video``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from support.run_folder import VIDEOS
from tensordict.nn import TensorDictModuleBase

from qmix_trl.checkpoint.streams import random_state, set_random_state
from qmix_trl.config.schema import RunConfig
from qmix_trl.errors import ConfigError, DivergedError, MachineError
from qmix_trl.logs import say


class Videos:
    """Draws a greedy episode to ``videos/`` of a run's folder, where the configuration asks for it.

    The environment and its seed are its own, and the process's random streams stay as they are, so
    a training's numbers do not change. A video that cannot be drawn or written ends no run.

    Args:
        config: of the run.
        folder: of the run.
        device: of the policy.
    """

    def __init__(self, config: RunConfig, folder: Path, device: torch.device) -> None:
        self._folder, self._recorder = folder, None
        if not config.evaluation.video:
            return
        from support.render.recording import Recorder  # only here are the packages needed

        alone = replace(config, evaluation=replace(config.evaluation, episodes=1))
        with randomness_kept(), self._ended_by_errors():
            self._recorder = Recorder(alone, device)

    def write(self, frames: int, agent: TensorDictModuleBase) -> None:
        """Write ``frames-FRAMES.gif``.

        Args:
            frames: collected so far.
            agent: whose best actions are taken.
        """
        recorder = self._recorder
        if recorder is None:
            return
        from support.render.files import write_film
        from support.render.films import Film, Part

        with randomness_kept(), self._ended_by_errors():
            episodes = recorder.record(*recorder.evaluation.with_greedy(agent), 1)
            film = Film(
                [Part(f"{self._folder.name}: {frames:,} frames", episodes)],
                recorder.painter.step_seconds,
            )
            write_film(film, self._folder / VIDEOS / f"frames-{frames:012d}.gif")

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """End the videos, and say so, if a ``with`` block raises an expected error."""
        try:
            yield
        except (ConfigError, MachineError, DivergedError) as error:
            say(f"no more videos: {error}")
            self._recorder = None


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Restore the process's random streams after a ``with`` block."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
