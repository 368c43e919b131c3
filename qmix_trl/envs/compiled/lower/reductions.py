"""What reductions, products and norms of aten are on arrays of expressions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.lower.arrays import Arithmetic, Array, Unlowerable, as_array
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT


def total(m: Arithmetic, x: Array, dims=None, keepdim: bool = False, **kwargs: Any) -> Array:
    """The sum."""
    return m.fold("add", x, m.axes(dims), keepdim, m.dtype())


def mean(m: Arithmetic, x: Array, dims=None, keepdim: bool = False, **kwargs: Any) -> Array:
    """The mean."""
    axes = m.axes(dims)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return m.each("div", m.fold("add", x, axes, keepdim, FLOAT), float(count), of=FLOAT)


def every(m: Arithmetic, x: Array, dims=None, keepdim: bool = False) -> Array:
    """Whether all hold."""
    return m.fold("and", x, m.axes(dims), keepdim, BOOL)


def some(m: Arithmetic, x: Array, dims=None, keepdim: bool = False) -> Array:
    """Whether any holds."""
    return m.fold("or", x, m.axes(dims), keepdim, BOOL)


def product(m: Arithmetic, x: Array, dim=None, keepdim: bool = False, **kwargs: Any) -> Array:
    """The product."""
    return m.fold("mul", x, m.axes(dim), keepdim, m.dtype())


def extreme(op: str) -> Callable:
    """Return the rule of a least or greatest value, with its index along one axis."""

    def apply(m: Arithmetic, x: Array, dim=None, keepdim: bool = False) -> Any:
        if isinstance(dim, np.ndarray):
            return m.arithmetic(op, x, dim)
        if dim is None or isinstance(dim, (list, tuple)):
            return m.fold(op, x, m.axes(dim), keepdim, m.dtype())
        return m.first_index(op, x, dim, keepdim)

    return apply


def extreme_index(op: str) -> Callable:
    """Return the rule of the index of a least or greatest value."""

    def apply(m: Arithmetic, x: Array, dim=None, keepdim: bool = False) -> Array:
        if dim is None:
            raise Unlowerable(f"{m.node.target} over the environments")
        return m.first_index(op, x, dim, keepdim)[1]

    return apply


def extreme_value(op: str) -> Callable:
    """Return the rule of a least or greatest value over axes."""

    def apply(m: Arithmetic, x: Array, dims=None, keepdim: bool = False) -> Array:
        return m.fold(op, x, m.axes(dims), keepdim, m.dtype())

    return apply


def vector_norm(
    m: Arithmetic, x: Array, order: float = 2, dims=None, keepdim: bool = False, **kwargs: Any
) -> Array:
    """The Euclidean norm."""
    if order != 2:
        raise Unlowerable(f"a norm of order {order}")
    axes = m.axes(dims)
    if all(x.shape[axis] == 1 for axis in axes):
        return m.fold("add", m.each("abs", x, of=FLOAT), axes, keepdim, FLOAT)
    squares = m.each("mul", x, x, of=FLOAT)
    return m.each("sqrt", m.fold("add", squares, axes, keepdim, FLOAT), of=FLOAT)


def matrix_product(m: Arithmetic, a: Array, b: Array) -> Array:
    """[.., i, k] x [.., k, j]."""
    if m.node.args[0].meta["val"].shape[-1] % m.batch == 0:
        raise Unlowerable("a product over the environments")
    products = m.each("mul", a[..., :, :, None], b[..., None, :, :], of=FLOAT)  # [.., i, k, j]
    return _summed(m, products, -2)


def distances(m: Arithmetic, a: Array, b: Array, order: float, mode: Any) -> Array:
    """Euclidean distances between two sets of points, [.., i, d] and [.., j, d]."""
    if order != 2:
        raise Unlowerable(f"distances of order {order}")
    difference = m.each("sub", a[..., :, None, :], b[..., None, :, :], of=FLOAT)
    squares = m.each("mul", difference, difference, of=FLOAT)
    return m.each("sqrt", _summed(m, squares, -1), of=FLOAT)


def _summed(m: Arithmetic, x: Array, axis: int) -> Array:
    function = np.frompyfunc(lambda p, q: m.program.apply("add", p, q, dtype=FLOAT), 2, 1)
    return as_array(function.reduce(x, axis=axis))


def cumulative_sum(m: Arithmetic, x: Array, dim: int, **kwargs: Any) -> Array:
    """Sums of all that stands in front, included."""
    m.axes(dim)
    function = np.frompyfunc(lambda p, q: m.program.apply("add", p, q, dtype=m.dtype()), 2, 1)
    return function.accumulate(m.cast(x, m.dtype()), axis=dim).astype(object)


def solve_triangular(
    m: Arithmetic, a: Array, b: Array, *, upper: bool, left: bool = True, unitriangular=False
) -> Array:
    """x with a x = b, for a lower triangular a [.., k, k] and b [.., k, j]."""
    if upper or not left or unitriangular:
        raise Unlowerable("a triangular system that is not lower")
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:])
    a = np.broadcast_to(a, (*shape[:-2], *a.shape[-2:]))
    b = np.broadcast_to(b, shape)
    solved: list[Array] = []
    for i in range(a.shape[-1]):
        rest = b[..., i, :]
        for j, known in enumerate(solved):
            rest = m.each("sub", rest, m.each("mul", a[..., i, j, None], known, of=FLOAT), of=FLOAT)
        solved.append(m.each("div", rest, a[..., i, i, None], of=FLOAT))
    return np.stack(solved, -2)
