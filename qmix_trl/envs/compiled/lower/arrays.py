"""Arrays of expressions that stand for the tensors of a graph.

A tensor [E, ...] becomes an array [1, ...] of the expressions of one environment. Views of tensors
are then views of arrays: selecting, stacking, expanding and writing in place add no expressions,
and only arithmetic remains. An operation *across* environments has no such form and is refused.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT
from qmix_trl.errors import Refused

Array = np.ndarray  # of expressions and constants
LETTERS = {torch.float32: FLOAT, torch.int32: INT, torch.int64: INT, torch.bool: BOOL}
LETTERS[torch.float64] = FLOAT  # of copies alone, which are exact


class Unlowerable(Refused):
    """An operation has no form for one environment; the message names it."""


def dtype_letter(dtype: torch.dtype) -> str:
    """Return the expression type of a torch dtype.

    Raises:
        Unlowerable: if it rounds or wraps in another way: half, double, and integers below 32 bits.
    """
    if dtype not in LETTERS:
        raise Unlowerable(f"there is no {dtype} in a kernel")
    return LETTERS[dtype]


def holds_batch(size: int, batch: int) -> bool:
    """Say whether an axis of this size holds the environments, of which the graph has ``batch``."""
    return size > 0 and size % batch == 0


def without_batch(shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """Return the shape of the array that stands for a tensor of this shape."""
    return tuple(n // batch if holds_batch(n, batch) else n for n in shape)


def boxed(value: Any, shape: Sequence[int] = ()) -> Array:
    """Return an array with one value in all places."""
    array = np.empty(tuple(shape), object)
    array.fill(value)
    return array


def as_array(x: Any) -> Array:
    """Return x as an array; NumPy returns a bare value in place of an array without axes."""
    return x if isinstance(x, np.ndarray) else boxed(x)


def unstacked(x: Array, axis: int) -> list[Array]:
    """Return the views of all places of an axis."""
    return [select(x, axis, i) for i in range(x.shape[axis])]


def select(x: Array, axis: int, i: int) -> Array:
    """Return the view of one place of an axis."""
    axis, i = axis % x.ndim, i % x.shape[axis]
    return np.squeeze(x[(slice(None),) * axis + (slice(i, i + 1),)], axis)
