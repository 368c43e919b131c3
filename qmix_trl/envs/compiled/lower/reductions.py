"""Rules for aten's reductions, products of matrices and norms."""

from collections.abc import Callable
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.lower.arrays import Array, Unlowerable
from qmix_trl.envs.compiled.lower.call import Call
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT


def total(call: Call, x: Array, dims=None, keepdim: bool = False, **kwargs: Any) -> Array:
    """Return the sum."""
    return call.reduce("add", x, call.axes(dims), keepdim=keepdim, dtype=call.output_dtype)


def mean(call: Call, x: Array, dims=None, keepdim: bool = False, **kwargs: Any) -> Array:
    """Return the mean."""
    axes = call.axes(dims)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    summed = call.reduce("add", x, axes, keepdim=keepdim, dtype=FLOAT)
    return call.each("div", summed, float(count), of=FLOAT)


def every(call: Call, x: Array, dims=None, keepdim: bool = False) -> Array:
    """Return whether all elements hold."""
    return call.reduce("and", x, call.axes(dims), keepdim=keepdim, dtype=BOOL)


def some(call: Call, x: Array, dims=None, keepdim: bool = False) -> Array:
    """Return whether any element holds."""
    return call.reduce("or", x, call.axes(dims), keepdim=keepdim, dtype=BOOL)


def product(call: Call, x: Array, dim=None, keepdim: bool = False, **kwargs: Any) -> Array:
    """Return the product."""
    return call.reduce("mul", x, call.axes(dim), keepdim=keepdim, dtype=call.output_dtype)


def extreme(op: str) -> Callable:
    """Return the rule of ``min`` or ``max``: of two tensors, over axes, or with the index."""

    def apply(call: Call, x: Array, dim=None, keepdim: bool = False) -> Any:
        if isinstance(dim, np.ndarray):
            return call.arithmetic(op, x, dim)
        if dim is None or isinstance(dim, (list, tuple)):
            return call.reduce(op, x, call.axes(dim), keepdim=keepdim, dtype=call.output_dtype)
        return call.first_index(op, x, dim, keepdim=keepdim)

    return apply


def extreme_index(op: str) -> Callable:
    """Return the rule of ``argmin`` or ``argmax``."""

    def apply(call: Call, x: Array, dim=None, keepdim: bool = False) -> Array:
        if dim is None:
            raise Unlowerable(f"{call.operation} over the environments")
        return call.first_index(op, x, dim, keepdim=keepdim)[1]

    return apply


def extreme_value(op: str) -> Callable:
    """Return the rule of ``amin`` or ``amax``."""

    def apply(call: Call, x: Array, dims=None, keepdim: bool = False) -> Array:
        return call.reduce(op, x, call.axes(dims), keepdim=keepdim, dtype=call.output_dtype)

    return apply


def vector_norm(
    call: Call, x: Array, order: float = 2, dims=None, keepdim: bool = False, **kwargs: Any
) -> Array:
    """Return the Euclidean norm."""
    if order != 2:
        raise Unlowerable(f"a norm of order {order}")
    axes = call.axes(dims)
    if all(x.shape[axis] == 1 for axis in axes):
        size = call.each("abs", x, of=FLOAT)
        return call.reduce("add", size, axes, keepdim=keepdim, dtype=FLOAT)
    squares = call.each("mul", x, x, of=FLOAT)
    summed = call.reduce("add", squares, axes, keepdim=keepdim, dtype=FLOAT)
    return call.each("sqrt", summed, of=FLOAT)


def matrix_product(call: Call, a: Array, b: Array) -> Array:
    """Return [.., i, j] of a [.., i, k] and b [.., k, j]."""
    call.refuse_batch(-1, "a product over the environments")
    products = call.each("mul", a[..., :, :, None], b[..., None, :, :], of=FLOAT)  # [.., i, k, j]
    return call.reduce("add", products, [-2], keepdim=False, dtype=FLOAT)


def distances(call: Call, a: Array, b: Array, order: float, mode: Any) -> Array:
    """Return the Euclidean distances [.., i, j] between points a [.., i, d] and b [.., j, d]."""
    if order != 2:
        raise Unlowerable(f"distances of order {order}")
    difference = call.each("sub", a[..., :, None, :], b[..., None, :, :], of=FLOAT)
    squares = call.each("mul", difference, difference, of=FLOAT)  # [.., i, j, d]
    summed = call.reduce("add", squares, [-1], keepdim=False, dtype=FLOAT)
    return call.each("sqrt", summed, of=FLOAT)


def cumulative_sum(call: Call, x: Array, dim: int, **kwargs: Any) -> Array:
    """Return the sums along an axis up to each element, itself included."""
    call.axes(dim)
    dtype = call.output_dtype
    function = np.frompyfunc(lambda a, b: call.program.apply("add", a, b, dtype=dtype), 2, 1)
    return function.accumulate(call.cast(x, dtype), axis=dim).astype(object)


def solve_triangular(
    call: Call, a: Array, b: Array, *, upper: bool, left: bool = True, unitriangular=False
) -> Array:
    """Return x with a x = b, for a lower triangular a [.., k, k] and b [.., k, j]."""
    if upper or not left or unitriangular:
        raise Unlowerable("a triangular system that is not lower")
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:])
    a = np.broadcast_to(a, (*shape[:-2], *a.shape[-2:]))
    b = np.broadcast_to(b, shape)
    solved: list[Array] = []
    for i in range(a.shape[-1]):
        rest = b[..., i, :]
        for j, known in enumerate(solved):
            part = call.each("mul", a[..., i, j, None], known, of=FLOAT)
            rest = call.each("sub", rest, part, of=FLOAT)
        solved.append(call.each("div", rest, a[..., i, i, None], of=FLOAT))
    return np.stack(solved, -2)


RULES: dict[str, Callable] = {
    "sum": total,
    "mean": mean,
    "prod": product,
    "all": every,
    "any": some,
    "min": extreme("minimum"),
    "max": extreme("maximum"),
    "amin": extreme_value("minimum"),
    "amax": extreme_value("maximum"),
    "argmin": extreme_index("minimum"),
    "argmax": extreme_index("maximum"),
    "linalg_vector_norm": vector_norm,
    "mm": matrix_product,
    "bmm": matrix_product,
    "_cdist_forward": distances,
    "cumsum": cumulative_sum,
    "linalg_solve_triangular": solve_triangular,
}
