"""The weights that a run keeps: of its last evaluation, and of its highest greedy return."""

from collections.abc import Mapping
from pathlib import Path

from tensordict.nn import TensorDictModuleBase
from torch import nn

from qmix_trl import CheckpointError, EnvDims, save_weights
from qmix_trl.checkpoint.weights import about_weights, weights_path
from qmix_trl.logs import say


class RunWeights:
    """Saves the weights of a run after each evaluation, the best ones in a file of their own.

    The highest return so far stands in that file, so that a run that goes on knows it.

    Args:
        folder: of the run.
        agent: of the run.
        mixer: of the run; None without one.
        dims: the sizes from which both were built.
    """

    def __init__(
        self,
        folder: Path,
        agent: TensorDictModuleBase,
        mixer: nn.Module | None,
        dims: EnvDims,
    ) -> None:
        self._folder, self._agent, self._mixer, self._dims = folder, agent, mixer, dims
        self._best = self._saved_best()

    def save(self, greedy: Mapping[str, float]) -> None:
        """Save the weights as the last ones, and as the best if no greedy return was as high.

        Args:
            greedy: the summary of their greedy returns.

        Raises:
            DivergedError: if a weight is not finite.
            SaveError: if a file cannot be written.
        """
        self._save("last", greedy["mean"])
        if self._best is None or greedy["mean"] > self._best:
            self._save("best", greedy["mean"])
            self._best = greedy["mean"]

    def _save(self, weights: str, greedy_return: float) -> None:
        save_weights(
            self._folder,
            self._agent,
            self._mixer,
            weights=weights,
            dims=self._dims,
            greedy_return=greedy_return,
        )

    def _saved_best(self) -> float | None:
        """Return the return of the best weights so far; None if there are none that are whole."""
        if not weights_path(self._folder, "best").exists():
            return None
        try:
            return about_weights(self._folder, "best").greedy_return
        except CheckpointError as error:
            say(f"warning: {error}; the next evaluation replaces it")
            return None
