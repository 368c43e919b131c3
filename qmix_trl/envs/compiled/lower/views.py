"""What views and copies of aten are on arrays of expressions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.lower.arrays import (
    Arithmetic,
    Array,
    Unlowerable,
    boxed,
    select,
    unstacked,
)
from qmix_trl.envs.compiled.lower.expressions import INT


def same(m: Arithmetic, x: Array, *args: Any, **kwargs: Any) -> Array:
    """A view of the whole."""
    return x


def copied(m: Arithmetic, x: Array, *args: Any, **kwargs: Any) -> Array:
    """A copy, of another type if asked for."""
    return m.cast(x, m.dtype()).copy()


def view(m: Arithmetic, x: Array, *args: Any) -> Array:
    """Another shape."""
    before, after = m.node.args[0].meta["val"].shape, m.meta().shape
    if _in_front_of_batch(m, before) != _in_front_of_batch(m, after):
        raise Unlowerable("a view that mixes environments")
    if "dtype" in str(m.node.target):
        raise Unlowerable("bits as another type")
    return reshaped(x, m.sizes())


def reshaped(x: Array, shape: Sequence[int]) -> Array:
    """Return a view of another shape; where there is none, a copy that cannot be written to."""
    same = x.view()
    try:
        same.shape = tuple(shape)
    except AttributeError:
        same = x.reshape(shape)
        same.setflags(write=False)
    return same


def _in_front_of_batch(m: Arithmetic, shape: Sequence[int]) -> int:
    """Return the number of elements between two environments' first ones, from the left."""
    in_front = 1
    for size in shape:
        if size and size % m.batch == 0:
            return in_front
        in_front *= size
    return 0


def expand(m: Arithmetic, x: Array, *args: Any, **kwargs: Any) -> Array:
    """One value in many places."""
    return np.broadcast_to(x, m.sizes())


def select_(m: Arithmetic, x: Array, dim: int, i: int) -> Array:
    """One place of an axis."""
    m.refuse_batch(dim, "one environment's value for all")
    return select(x, dim, i)


def slice_(m: Arithmetic, x: Array, dim: int = 0, start=None, end=None, step: int = 1) -> Array:
    """Some places of an axis."""
    dim %= x.ndim
    if m.is_batch(m.node.args[0].meta["val"].shape[dim]):
        if m.meta().shape[dim] != m.node.args[0].meta["val"].shape[dim]:
            raise Unlowerable("some of the environments")
        return x
    return x[(slice(None),) * dim + (slice(start, end, step),)]


def unsqueeze(m: Arithmetic, x: Array, dim: int) -> Array:
    """One axis more."""
    return np.expand_dims(x, dim)


def squeeze(m: Arithmetic, x: Array, *dims: Any) -> Array:
    """Fewer axes."""
    return x.reshape(m.sizes())


def permute(m: Arithmetic, x: Array, dims: Sequence[int]) -> Array:
    """Axes in another order."""
    return np.transpose(x, dims)


def transpose(m: Arithmetic, x: Array, a: int = 0, b: int = 1) -> Array:
    """Two axes exchanged."""
    return np.swapaxes(x, a, b) if x.ndim > 1 else x


def unbind(m: Arithmetic, x: Array, dim: int = 0) -> list[Array]:
    """All places of an axis."""
    m.refuse_batch(dim, "Python over the environments")
    return unstacked(x, dim)


def diagonal(m: Arithmetic, x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """A diagonal, as the last axis."""
    return np.diagonal(x, offset, dim1, dim2).reshape(m.sizes())


def cat(m: Arithmetic, xs: Sequence[Array], dim: int = 0) -> Array:
    """Side by side along an axis."""
    joined: Any = m.node.args[0]
    if any(m.is_batch(arg.meta["val"].shape[dim]) for arg in joined if _has(arg, dim)):
        raise Unlowerable("environments side by side")
    parts = [m.cast(x, m.dtype()) for x in xs if x.ndim == m.meta().dim()]
    return np.ascontiguousarray(np.concatenate(parts, dim))


def stack(m: Arithmetic, xs: Sequence[Array], dim: int = 0) -> Array:
    """Side by side along a new axis."""
    return np.ascontiguousarray(np.stack([m.cast(x, m.dtype()) for x in xs], dim))


def _has(arg: Any, dim: int) -> bool:
    """Say whether a tensor has an axis; an empty one of one axis may stand in any ``cat``."""
    shape = arg.meta["val"].shape
    return -len(shape) <= dim < len(shape)


def repeat(m: Arithmetic, x: Array, repeats: Sequence[int]) -> Array:
    """Many times along axes."""
    shape = m.node.args[0].meta["val"].shape
    for size, times in zip(reversed(shape), reversed(repeats), strict=False):
        if m.is_batch(size) and times != 1:
            raise Unlowerable("environments side by side")
    return np.tile(x, m.shape(repeats)).reshape(m.sizes())


def full(m: Arithmetic, *args: Any, **kwargs: Any) -> Array:
    """One constant in all places."""
    name = str(m.node.target)
    value = 0 if "zeros" in name or "empty" in name else 1 if "ones" in name else args[1]
    value = value.item() if isinstance(value, np.ndarray) else value
    return boxed(m.program.cast(value, m.dtype()), m.sizes())


def fill(m: Arithmetic, x: Array, value: Any) -> Any:
    """What is written over a tensor."""
    return value


def zero(m: Arithmetic, x: Array) -> Any:
    """What is written over a tensor that is set to zero."""
    return 0


def scalar(m: Arithmetic, value: Any, **kwargs: Any) -> Array:
    """A constant."""
    return boxed(m.program.cast(value, m.dtype()))


def arange(m: Arithmetic, *args: Any, **kwargs: Any) -> Array:
    """Counting; over the environments it is the environment's own number."""
    start, _, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
    if m.is_batch(m.meta().shape[0]):
        if (start, step, m.meta().shape[0]) != (0, 1, m.batch):
            raise Unlowerable("numbers of environments")
        return boxed(m.program.leaf("environment", dtype=INT), (1,))
    counted = boxed(None, m.sizes())
    counted[:] = [m.program.cast(start + step * i, m.dtype()) for i in range(len(counted))]
    return counted


def linspace(m: Arithmetic, start: Any, end: Any, steps: int, **kwargs: Any) -> Array:
    """Evenly from one constant to another."""
    if m.is_batch(steps):
        raise Unlowerable("numbers of environments")
    spaced = boxed(None, (steps,))
    spaced[:] = [float(x) for x in np.linspace(start, end, steps, dtype=np.float32)]
    return spaced
