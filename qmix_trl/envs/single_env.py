"""One environment of another package, as a team of such environments steps it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from qmix_trl.envs.contract import EnvDims
from qmix_trl.errors import ConfigError


class Shown(NamedTuple):
    """All that one environment shows at a step.

    Attributes:
        observation: float32 [N, O].
        state: float32 [*S]; None if all observations are the state.
        action_mask: bool [N, A]; None if all actions are available.
    """

    observation: np.ndarray
    state: np.ndarray | None = None
    action_mask: np.ndarray | None = None


class SingleEnv(Protocol):
    """One environment of another package, with a team of agents.

    Attributes:
        dims: its sizes.
        has_state: whether it shows a state of its own.
        masked: whether it shows action masks.
    """

    dims: EnvDims
    has_state: bool
    masked: bool

    def reset(self, seed: int) -> Shown:
        """Begin the episode of a seed."""
        ...

    def step(self, action: list[int]) -> tuple[Shown, Sequence[float], bool, bool]:
        """Take a step; return all that is shown then, the N rewards, terminated and truncated."""
        ...

    def render(self) -> Any:
        """Return a picture."""
        ...

    def close(self) -> None:
        """Close the environment."""
        ...


def dims_of(envs: Sequence[SingleEnv]) -> EnvDims:
    """Return the sizes of environments.

    Raises:
        ConfigError: if they differ.
    """
    for env in envs:
        if env.dims != envs[0].dims:
            raise ConfigError(
                f"expected environments of equal sizes, got {envs[0].dims} and {env.dims}; make "
                "all alike"
            )
    return envs[0].dims
