"""Environments of other packages, spread over processes, as a team under the contract."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qmix_trl.chosen import Chosen
from qmix_trl.envs.contract import check_resumed, env_repr
from qmix_trl.envs.python_team import (
    SAVED,
    PythonTeam,
    check_goes_on,
    check_reproduces,
    episode_seed,
)
from qmix_trl.envs.workers import Workers


class ProcessTeam(Workers):
    """A ``PythonTeam`` over P processes: a batch [P, E / P]; made by ``make_team``.

    Args:
        make_share: makes a process's part, by the number of its first environment, ``first``.
        n_processes: P.
        share: E / P.
        reproduces: whether episodes reproduce from their seeds.

    Attributes:
        how: the implementation that steps it.
    """

    def __init__(
        self, make_share: Callable[..., PythonTeam], n_processes: int, share: int, reproduces: bool
    ) -> None:
        firsts = [{"first": share * i} for i in range(n_processes)]
        super().__init__(n_processes, make_share, create_env_kwargs=firsts)
        self.how = Chosen(f"Python loop in {n_processes} processes")
        self._reproduces = reproduces

    def __repr__(self) -> str:
        return env_repr(self)

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Seed all processes alike, as environments differ by their numbers."""
        super().set_seed(seed, static_seed=True)
        return seed if static_seed or seed is None else episode_seed(seed, 0, 0)

    def run_state(self) -> dict[str, Any]:
        """Return the ``run_state`` of all environments in one process.

        Raises:
            TypeError: if episodes do not reproduce from their seeds.
        """
        check_reproduces(self._reproduces)
        parts = self.saved_episodes()
        joined = {name: torch.cat([part[name] for part in parts]) for name in SAVED}
        return {"seed": parts[0]["seed"], **joined}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``run_state``, as ``PythonTeam`` does.

        Raises:
            ValueError: if it is of other environments.
        """
        check_resumed("ProcessTeam", state, actions=self.run_state()["actions"])
        check_goes_on(all(self.load_episodes(state)))
