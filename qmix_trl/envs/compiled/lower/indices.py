"""Rules for aten's reads and writes at computed indices."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.lower.arrays import Array, Unlowerable, as_array, boxed, unstacked
from qmix_trl.envs.compiled.lower.call import Call
from qmix_trl.envs.compiled.lower.expressions import BOOL, INT, Expression


def scatter(call: Call, x: Array, dim: int, index: Array, value: Any, **kwargs: Any) -> Array:
    """Return x with a constant at one index [.., 1, ..] of an axis."""
    call.refuse_batch(dim, "a scatter over the environments")
    others = [a for a in range(x.ndim) if a != dim % x.ndim]
    if kwargs or isinstance(value, np.ndarray) or index.shape[dim] != 1:
        raise Unlowerable("a scatter of many values")
    if any(index.shape[a] != x.shape[a] for a in others):
        raise Unlowerable("a scatter to a part")
    places = boxed(None, [x.shape[dim] if a == dim % x.ndim else 1 for a in range(x.ndim)])
    places.reshape(-1)[:] = list(range(x.shape[dim]))
    chosen = call.each("eq", index, places, of=INT, to=BOOL)
    return call.where(chosen, value, x, call.output_dtype)


def gather(call: Call, x: Array, dim: int, index: Array, **kwargs: Any) -> Array:
    """Return the values of x at indices of one axis."""
    call.refuse_batch(dim, "a gather over the environments")
    parts = [np.expand_dims(part, dim) for part in unstacked(x, dim)]
    kept = tuple(slice(None) if a == dim % x.ndim else slice(n) for a, n in enumerate(index.shape))
    return call.pick([part[kept] for part in parts], index, call.output_dtype)


def index(call: Call, x: Array, indices: Sequence[Array | None]) -> Array:
    """Return the values of x at indices of its first axes."""
    return call.pick(*_parts_and_number(call, x, indices), call.output_dtype)


def index_put(
    call: Call,
    x: Array,
    indices: Sequence[Array | None],
    values: Any,
    accumulate: bool = False,
) -> Array:
    """Return x with a value at one place of each environment.

    Args:
        call: the call.
        x: the array before the write.
        indices: one for each axis of x, that of the environments included.
        values: one value.
        accumulate: must be False.
    """
    parts, number = _parts_and_number(call, x, indices)
    if accumulate or number.size != 1 or any(part.size != 1 for part in parts):
        raise Unlowerable("a write at several indices")
    values = as_array(values).reshape(-1)
    written = x.copy()
    flat = written.reshape(-1)
    for i in range(len(flat)):
        chosen = call.each("eq", number.reshape(-1), boxed(i), of=INT, to=BOOL)
        flat[i : i + 1] = call.where(chosen, values, flat[i : i + 1].copy(), call.output_dtype)
    return written


def _parts_and_number(
    call: Call, x: Array, indices: Sequence[Array | None]
) -> tuple[list[Array], Array]:
    """Return x at each place of the indexed axes, and the number of the place that is indexed."""
    if any(i is None for i in indices):
        raise Unlowerable("an index that leaves out an axis")
    sizes = x.shape[: len(indices)]
    rest = x.shape[len(indices) :]
    number = boxed(0)
    for axis, (i, size) in enumerate(zip(indices, sizes, strict=True)):
        if _is_own_environment(i):
            if size != 1:
                raise Unlowerable("an index by environment of another axis")
            continue
        if call.input(0).shape[axis] == call.batch:
            raise Unlowerable("an index of environments")
        from_end = call.each("add", i, boxed(size), of=INT)
        i = call.where(call.each("lt", i, boxed(0), of=INT, to=BOOL), from_end, i, INT)
        scaled = call.each("mul", number, boxed(size), of=INT)
        number = call.each("add", scaled, i, of=INT)
    flat = x.reshape(-1, *rest)
    parts = [flat[i] if rest else boxed(flat[i]) for i in range(len(flat))]
    while number.ndim < len(call.output_shape):
        number = np.expand_dims(number, -1)
    return parts, number


def _is_own_environment(index: Array) -> bool:
    """Say whether an index is the number of each environment, as in ``x[arange(E), ...]``."""
    i = index.item() if index.size == 1 else None
    return isinstance(i, Expression) and i.op == "environment"


RULES: dict[str, Callable] = {
    "scatter": scatter,
    "gather": gather,
    "index": index,
    "index_put": index_put,
}
