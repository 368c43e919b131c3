"""Spaces of gymnasium: observations as vectors, and numbers of actions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces  # pyright: ignore[reportMissingImports]

from qmix_trl.errors import ConfigError


class VectorSpace(NamedTuple):
    """Observations of one agent as vectors.

    Attributes:
        size: of the vectors.
        vector: returns an observation's vector, float32 [size].
    """

    size: int
    vector: Callable[[Any], np.ndarray]


def vector_space(space: spaces.Space, agent: str) -> VectorSpace:
    """Return the vectors of a space, as gymnasium flattens it: numbers of choices are one-hot.

    Args:
        space: of observations.
        agent: its name, for the message.

    Raises:
        ConfigError: if observations have no fixed size.
    """
    if not space.is_np_flattenable:
        raise ConfigError(
            f"expected observations of a fixed size, got {space} of {agent}; wrap the environment "
            "to return arrays"
        )
    size = spaces.flatdim(space)
    return VectorSpace(size, Flatten(space, size, agent))


class Flatten:
    """Returns an observation's vector, float32 [size]; it can be sent to another process.

    Args:
        space: of the observations.
        size: of the vectors.
        agent: its name, for the message.

    Raises:
        ConfigError: when called with an observation of another size.
    """

    def __init__(self, space: spaces.Space, size: int, agent: str) -> None:
        self._space, self._size, self._agent = space, size, agent
        self._is_box = isinstance(space, spaces.Box)  # gymnasium's flatten takes longer

    def __call__(self, observation: Any) -> np.ndarray:
        numbers = observation if self._is_box else spaces.flatten(self._space, observation)
        flat = np.asarray(numbers, np.float32).reshape(-1)
        if flat.shape != (self._size,):
            raise ConfigError(
                f"expected an observation of {self._size} numbers, as {self._agent}'s space says, "
                f"got {len(flat)}"
            )
        return flat


def discrete(space: spaces.Space, agent: str) -> tuple[int, int]:
    """Return the number of actions of a space, and the number of its first action.

    Args:
        space: of actions.
        agent: its name, for the message.

    Raises:
        ConfigError: if actions are not discrete.
    """
    if not isinstance(space, spaces.Discrete):
        raise ConfigError(
            f"expected discrete actions, one for each agent, got {space} of {agent}; make the "
            "environment with discrete actions"
        )
    return int(space.n), int(space.start)
