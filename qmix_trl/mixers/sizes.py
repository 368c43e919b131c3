"""Checks of mixers: the sizes that they are made with, and the shapes that they are called with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_trl.chosen import named

StateShape = int | Sequence[int]  # an int is a vector of that size


def checked_state_shape(mixer: str, state_shape: StateShape, **sizes: int) -> torch.Size:
    """Return the shape of one state.

    Args:
        mixer: the name of the mixer.
        state_shape: the argument of the mixer.
        **sizes: other arguments of the mixer.

    Raises:
        ValueError: if a size, or the number of a state's entries, is below 1.
    """
    shape = torch.Size((state_shape,) if isinstance(state_shape, int) else state_shape)
    if min(shape.numel(), *sizes.values()) < 1:
        got = named({"state_shape": tuple(shape), **sizes})
        raise ValueError(f"{mixer}: expected sizes of at least 1, got {got}")
    return shape


def check_shapes(mixer: str, **entries: tuple[Tensor, tuple[int, ...]]) -> None:
    """Refuse entries that do not fit a mixer.

    Args:
        mixer: the name of the mixer.
        **entries: each tensor with the shape that is expected.

    Raises:
        ValueError: if a shape differs.
    """
    for name, (entry, expected) in entries.items():
        if tuple(entry.shape) != expected:
            raise ValueError(
                f"{mixer}: expected {name} of shape {list(expected)}, got {list(entry.shape)}"
            )
