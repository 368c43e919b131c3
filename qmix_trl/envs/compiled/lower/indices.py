"""What aten's accesses by computed indices are on arrays of expressions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.lower.arrays import (
    Arithmetic,
    Array,
    Unlowerable,
    as_array,
    boxed,
    unstacked,
)
from qmix_trl.envs.compiled.lower.expressions import BOOL, INT, Expression


def scatter(m: Arithmetic, x: Array, dim: int, index: Array, value: Any, **kwargs: Any) -> Array:
    """x with a constant where an index along one axis says."""
    m.refuse_batch(dim, "a scatter over the environments")
    others = [a for a in range(x.ndim) if a != dim % x.ndim]
    if kwargs or isinstance(value, np.ndarray) or index.shape[dim] != 1:
        raise Unlowerable("a scatter of many values")
    if any(index.shape[a] != x.shape[a] for a in others):
        raise Unlowerable("a scatter to a part")
    places = boxed(None, [x.shape[dim] if a == dim % x.ndim else 1 for a in range(x.ndim)])
    places.reshape(-1)[:] = list(range(x.shape[dim]))
    chosen = m.each("eq", index, places, of=INT, to=BOOL)
    return m.select(chosen, value, x, m.dtype())


def gather(m: Arithmetic, x: Array, dim: int, index: Array, **kwargs: Any) -> Array:
    """The values of x where an index along one axis says."""
    m.refuse_batch(dim, "a gather over the environments")
    parts = [np.expand_dims(part, dim) for part in unstacked(x, dim)]
    kept = tuple(slice(None) if a == dim % x.ndim else slice(n) for a, n in enumerate(index.shape))
    return m.pick([part[kept] for part in parts], index, m.dtype())


def index(m: Arithmetic, x: Array, indices: Sequence[Array | None]) -> Array:
    """The values of x at indices of its first axes."""
    return m.pick(*_places(m, x, indices), m.dtype())


def index_put(
    m: Arithmetic, x: Array, indices: Sequence[Array | None], values: Any, accumulate: bool = False
) -> Array:
    """x with values at one place of each environment."""
    parts, wanted = _places(m, x, indices)
    if accumulate or wanted.size != 1 or any(part.size != 1 for part in parts):
        raise Unlowerable("a write at several indices")
    values = as_array(values).reshape(-1)
    written = x.copy()
    flat = written.reshape(-1)
    for i in range(len(flat)):
        chosen = m.each("eq", wanted.reshape(-1), boxed(i), of=INT, to=BOOL)
        flat[i : i + 1] = m.select(chosen, values, flat[i : i + 1].copy(), m.dtype())
    return written


def _places(m: Arithmetic, x: Array, indices: Sequence[Array | None]) -> tuple[list[Array], Array]:
    """Return what stands at each place of the indexed axes, and the number of the wanted one."""
    if any(i is None for i in indices):
        raise Unlowerable("an index that leaves out an axis")
    sizes = x.shape[: len(indices)]
    rest = x.shape[len(indices) :]
    number = boxed(0)
    for axis, (i, size) in enumerate(zip(indices, sizes, strict=True)):
        if i.size == 1 and isinstance(i.item(), Expression) and i.item().op == "environment":
            if size != 1:
                raise Unlowerable("an index by environment of another axis")
            continue
        if m.node.args[0].meta["val"].shape[axis] == m.batch:
            raise Unlowerable("an index of environments")
        behind = m.each("add", i, boxed(size), of=INT)
        i = m.select(m.each("lt", i, boxed(0), of=INT, to=BOOL), behind, i, INT)
        scaled = m.each("mul", number, boxed(size), of=INT)
        number = m.each("add", scaled, i, of=INT)
    flat = x.reshape(-1, *rest)
    parts = [flat[i] if rest else boxed(flat[i]) for i in range(len(flat))]
    while number.ndim < len(m.sizes()):
        number = np.expand_dims(number, -1)
    return parts, number
