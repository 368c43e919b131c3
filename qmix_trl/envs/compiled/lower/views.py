"""Rules for aten's views, copies and constants."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.lower.arrays import (
    Array,
    Unlowerable,
    boxed,
    select,
    unstacked,
    without_batch,
)
from qmix_trl.envs.compiled.lower.call import Call
from qmix_trl.envs.compiled.lower.expressions import INT


def same(call: Call, x: Array, *args: Any, **kwargs: Any) -> Array:
    """Return x itself, as a view."""
    return x


def copied(call: Call, x: Array, *args: Any, **kwargs: Any) -> Array:
    """Return a copy, of the result's type."""
    return call.cast(x, call.output_dtype).copy()


def view(call: Call, x: Array, *args: Any) -> Array:
    """Return x in the result's shape."""
    before, after = call.input(0).shape, call.output.shape
    if _in_front_of_batch(call, before) != _in_front_of_batch(call, after):
        raise Unlowerable("a view that mixes environments")
    if "dtype" in call.operation:
        raise Unlowerable("bits as another type")
    return reshaped(x, call.output_shape)


def reshaped(x: Array, shape: Sequence[int]) -> Array:
    """Return a view of another shape, or a read-only copy where no view has it."""
    same = x.view()
    try:
        same.shape = tuple(shape)
    except AttributeError:
        same = x.reshape(shape)
        same.setflags(write=False)
    return same


def _in_front_of_batch(call: Call, shape: Sequence[int]) -> int:
    """Return the product of the sizes in front of the batch's axis; 0 where there is none."""
    in_front = 1
    for size in shape:
        if call.is_batch(size):
            return in_front
        in_front *= size
    return 0


def expand(call: Call, x: Array, *args: Any, **kwargs: Any) -> Array:
    """Return x broadcast to the result's shape."""
    return np.broadcast_to(x, call.output_shape)


def select_(call: Call, x: Array, dim: int, i: int) -> Array:
    """Return one place of an axis."""
    call.refuse_batch(dim, "one environment's value for all")
    return select(x, dim, i)


def slice_(call: Call, x: Array, dim: int = 0, start=None, end=None, step: int = 1) -> Array:
    """Return the places start, start + step, .. of an axis up to end.

    Args:
        call: the call.
        x: the array.
        dim: the axis.
        start: the first place; None for 0.
        end: the place behind the last one; None for the axis's end.
        step: the distance of two places.
    """
    dim %= x.ndim
    size = call.input(0).shape[dim]
    if call.is_batch(size):
        if call.output.shape[dim] != size:
            raise Unlowerable("some of the environments")
        return x
    return x[(slice(None),) * dim + (slice(start, end, step),)]


def unsqueeze(call: Call, x: Array, dim: int) -> Array:
    """Return x with a new axis of size 1."""
    return np.expand_dims(x, dim)


def squeeze(call: Call, x: Array, *dims: Any) -> Array:
    """Return x without axes of size 1."""
    return x.reshape(call.output_shape)


def permute(call: Call, x: Array, dims: Sequence[int]) -> Array:
    """Return x with its axes in another order."""
    return np.transpose(x, dims)


def transpose(call: Call, x: Array, a: int = 0, b: int = 1) -> Array:
    """Return x with two axes exchanged."""
    return np.swapaxes(x, a, b) if x.ndim > 1 else x


def unbind(call: Call, x: Array, dim: int = 0) -> list[Array]:
    """Return all places of an axis."""
    call.refuse_batch(dim, "Python over the environments")
    return unstacked(x, dim)


def diagonal(call: Call, x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """Return a diagonal, as the last axis.

    Args:
        call: the call.
        x: the array.
        offset: how far above the main diagonal.
        dim1: the axis of the lines.
        dim2: the axis of the columns.
    """
    return np.diagonal(x, offset, dim1, dim2).reshape(call.output_shape)


def cat(call: Call, xs: Sequence[Array], dim: int = 0) -> Array:
    """Return arrays joined along an axis."""
    shapes = [tensor.shape for tensor in call.inputs(0)]
    # An empty tensor of one axis may be among tensors of any number of axes.
    if any(call.is_batch(shape[dim]) for shape in shapes if -len(shape) <= dim < len(shape)):
        raise Unlowerable("environments side by side")
    parts = [call.cast(x, call.output_dtype) for x in xs if x.ndim == call.output.dim()]
    return np.ascontiguousarray(np.concatenate(parts, dim))


def stack(call: Call, xs: Sequence[Array], dim: int = 0) -> Array:
    """Return arrays joined along a new axis."""
    return np.ascontiguousarray(np.stack([call.cast(x, call.output_dtype) for x in xs], dim))


def repeat(call: Call, x: Array, repeats: Sequence[int]) -> Array:
    """Return x repeated along its axes."""
    for size, times in zip(reversed(call.input(0).shape), reversed(repeats), strict=False):
        if call.is_batch(size) and times != 1:
            raise Unlowerable("environments side by side")
    # A number of repeats is a size of the result where x lacks the axis: it may be the batch.
    return np.tile(x, without_batch(repeats, call.batch)).reshape(call.output_shape)


def zeros(call: Call, *args: Any, **kwargs: Any) -> Array:
    """Return zeros of the result's shape."""
    return _filled(call, 0)


def ones(call: Call, *args: Any, **kwargs: Any) -> Array:
    """Return ones of the result's shape."""
    return _filled(call, 1)


def full(call: Call, shape: Any, value: Any, **kwargs: Any) -> Array:
    """Return a constant in all places of the result's shape."""
    return _filled(call, value.item() if isinstance(value, np.ndarray) else value)


def _filled(call: Call, value: Any) -> Array:
    return boxed(call.program.cast(value, call.output_dtype), call.output_shape)


def fill(call: Call, x: Array, value: Any) -> Any:
    """Return the value that is written over x."""
    return value


def zero(call: Call, x: Array) -> Any:
    """Return the zero that is written over x."""
    return 0


def scalar(call: Call, value: Any, **kwargs: Any) -> Array:
    """Return a constant without axes."""
    return boxed(call.program.cast(value, call.output_dtype))


def arange(call: Call, *args: Any, **kwargs: Any) -> Array:
    """Return numbers at equal distances; over the environments, each environment's own number."""
    start, _, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
    size = call.output.shape[0]
    if call.is_batch(size):
        if (start, step, size) != (0, 1, call.batch):
            raise Unlowerable("numbers of environments")
        return boxed(call.program.leaf("environment", dtype=INT), (1,))
    counted = boxed(None, call.output_shape)
    counted[:] = [call.program.cast(start + step * i, call.output_dtype) for i in range(size)]
    return counted


def linspace(call: Call, start: Any, end: Any, steps: int, **kwargs: Any) -> Array:
    """Return numbers at equal distances from one constant to another, both included."""
    if call.is_batch(steps):
        raise Unlowerable("numbers of environments")
    spaced = boxed(None, (steps,))
    spaced[:] = [float(x) for x in np.linspace(start, end, steps, dtype=np.float32)]
    return spaced


RULES: dict[str, Callable] = {
    "alias": same,
    "detach": same,
    "view_as": same,
    "clone": copied,
    "contiguous": copied,
    "lift_fresh_copy": copied,
    "_to_copy": copied,
    "view": view,
    "reshape": view,
    "_reshape_alias": view,
    "_unsafe_view": view,
    "expand": expand,
    "select": select_,
    "slice": slice_,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "permute": permute,
    "transpose": transpose,
    "t": transpose,
    "unbind": unbind,
    "diagonal": diagonal,
    "cat": cat,
    "stack": stack,
    "repeat": repeat,
    "empty": zeros,
    "empty_like": zeros,
    "zeros": zeros,
    "zeros_like": zeros,
    "new_zeros": zeros,
    "ones": ones,
    "ones_like": ones,
    "new_ones": ones,
    "full": full,
    "full_like": full,
    "fill": fill,
    "copy": fill,
    "zero": zero,
    "scalar_tensor": scalar,
    "arange": arange,
    "linspace": linspace,
}
