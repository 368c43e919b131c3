"""What each aten operation is on arrays of expressions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.arrays import (
    Arithmetic,
    Array,
    Unlowerable,
    as_array,
    boxed,
    select,
    unstacked,
)
from qmix_trl.envs.compiled.expressions import BOOL, FLOAT, INT, Expression

LARGEST = float(np.finfo(np.float32).max)

# ------------------------------------------------------------------------------ views


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
    return x.reshape(m.sizes())


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
    if m.node.args[0].meta["val"].shape[dim] == m.batch:
        raise Unlowerable("one environment's value for all")
    return select(x, dim, i)


def slice_(m: Arithmetic, x: Array, dim: int = 0, start=None, end=None, step: int = 1) -> Array:
    """Some places of an axis."""
    dim %= x.ndim
    if m.node.args[0].meta["val"].shape[dim] == m.batch:
        if m.meta().shape[dim] != m.batch:
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
    if m.node.args[0].meta["val"].shape[dim] == m.batch:
        raise Unlowerable("Python over the environments")
    return unstacked(x, dim)


def diagonal(m: Arithmetic, x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """A diagonal, as the last axis."""
    return np.diagonal(x, offset, dim1, dim2).reshape(m.sizes())


# ------------------------------------------------------------------------------ joining


def cat(m: Arithmetic, xs: Sequence[Array], dim: int = 0) -> Array:
    """Side by side along an axis."""
    if m.meta().shape[dim] % m.batch == 0:
        raise Unlowerable("environments side by side")
    parts = [m.cast(x, m.dtype()) for x in xs if x.ndim == m.meta().dim()]
    return np.concatenate(parts, dim)


def stack(m: Arithmetic, xs: Sequence[Array], dim: int = 0) -> Array:
    """Side by side along a new axis."""
    return np.stack([m.cast(x, m.dtype()) for x in xs], dim)


def repeat(m: Arithmetic, x: Array, repeats: Sequence[int]) -> Array:
    """Many times along axes."""
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


def scalar(m: Arithmetic, value: Any, **kwargs: Any) -> Array:
    """A constant."""
    return boxed(m.program.cast(value, m.dtype()))


def arange(m: Arithmetic, *args: Any, **kwargs: Any) -> Array:
    """Counting; over the environments it is the environment's own number."""
    start, _, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
    if m.meta().shape[0] == m.batch and (start, step) == (0, 1):
        return boxed(m.program.leaf("environment", dtype=INT), (1,))
    counted = boxed(None, m.sizes())
    counted[:] = [m.program.cast(start + step * i, m.dtype()) for i in range(len(counted))]
    return counted


def linspace(m: Arithmetic, start: Any, end: Any, steps: int, **kwargs: Any) -> Array:
    """Evenly from one constant to another."""
    spaced = boxed(None, (steps,))
    spaced[:] = [float(x) for x in np.linspace(start, end, steps, dtype=np.float32)]
    return spaced


# ------------------------------------------------------------------------------ arithmetic


def add(m: Arithmetic, a: Any, b: Any, *, alpha: float = 1) -> Array:
    """a + alpha b."""
    return m.arithmetic("add", a, _scaled(m, b, alpha))


def sub(m: Arithmetic, a: Any, b: Any, *, alpha: float = 1) -> Array:
    """a - alpha b."""
    return m.arithmetic("sub", a, _scaled(m, b, alpha))


def rsub(m: Arithmetic, a: Any, b: Any, alpha: float = 1) -> Array:
    """b - alpha a."""
    return m.arithmetic("sub", b, _scaled(m, a, alpha))


def _scaled(m: Arithmetic, x: Any, factor: float) -> Any:
    return x if factor == 1 else m.arithmetic("mul", x, factor)


def mul(m: Arithmetic, a: Any, b: Any) -> Array:
    """a b."""
    return m.arithmetic("mul", a, b)


def div(m: Arithmetic, a: Any, b: Any, *, rounding_mode: str | None = None) -> Array:
    """a / b, rounded if asked for."""
    if rounding_mode is None:
        return m.each("div", a, b, of=FLOAT)
    if rounding_mode != "floor":
        raise Unlowerable(f"division rounded to {rounding_mode}")
    if m.dtype() == INT:
        return m.each("floor_divide", a, b, of=INT)
    return m.each("floor", m.each("div", a, b, of=FLOAT), of=FLOAT)


def remainder(m: Arithmetic, a: Any, b: Any) -> Array:
    """The rest of a floored division."""
    return m.arithmetic("remainder", a, b)


def floor_divide(m: Arithmetic, a: Any, b: Any) -> Array:
    """A floored division."""
    return div(m, a, b, rounding_mode="floor")


def power(m: Arithmetic, x: Array, exponent: float) -> Array:
    """A small whole power, or a root."""
    if exponent == 0.5:
        return m.each("sqrt", x, of=FLOAT)
    if exponent != int(exponent) or not 1 <= abs(exponent) <= 8:
        raise Unlowerable(f"a power of {exponent}")
    x = m.cast(x, m.dtype())
    product = x
    for _ in range(int(abs(exponent)) - 1):
        product = m.arithmetic("mul", product, x)
    return product if exponent > 0 else m.each("div", 1.0, product, of=FLOAT)


def reciprocal(m: Arithmetic, x: Array) -> Array:
    """1 / x."""
    return m.each("div", 1.0, x, of=FLOAT)


def of_floats(op: str) -> Callable:
    """Return the rule of an operation on floats."""

    def apply(m: Arithmetic, *xs: Any) -> Array:
        return m.each(op, *xs, of=FLOAT)

    return apply


def of_numbers(op: str) -> Callable:
    """Return the rule of an operation on floats or whole numbers."""

    def apply(m: Arithmetic, *xs: Any) -> Array:
        return m.arithmetic(op, *xs)

    return apply


def clamp(m: Arithmetic, x: Array, low: Any = None, high: Any = None) -> Array:
    """Between two bounds."""
    if low is not None:
        x = m.arithmetic("maximum", x, low)
    return x if high is None else m.arithmetic("minimum", x, high)


def nan_to_num(m: Arithmetic, x: Array, nan=None, posinf=None, neginf=None) -> Array:
    """Finite numbers instead of those that are not."""
    top = LARGEST if posinf is None else posinf
    bottom = -LARGEST if neginf is None else neginf
    x = m.select(m.each("isnan", x, of=FLOAT, to=BOOL), 0.0 if nan is None else nan, x, FLOAT)
    x = m.select(m.each("lt", LARGEST, x, of=FLOAT, to=BOOL), top, x, FLOAT)
    return m.select(m.each("lt", x, -LARGEST, of=FLOAT, to=BOOL), bottom, x, FLOAT)


# ------------------------------------------------------------------------------ logic


def compare(op: str, *, swapped: bool = False) -> Callable:
    """Return the rule of a comparison."""

    def apply(m: Arithmetic, a: Any, b: Any) -> Array:
        return m.compare(op, b, a) if swapped else m.compare(op, a, b)

    return apply


def logic(op: str) -> Callable:
    """Return the rule of an operation on booleans."""

    def apply(m: Arithmetic, *xs: Any) -> Array:
        if m.dtype() != BOOL:
            raise Unlowerable(f"{op} of bits")
        return m.each(op, *xs, of=BOOL)

    return apply


def where(m: Arithmetic, condition: Any, a: Any, b: Any) -> Array:
    """a where the condition holds, else b."""
    return m.select(condition, a, b, m.dtype())


def isnan(m: Arithmetic, x: Array) -> Array:
    """Whether it is no number."""
    if m.arg_dtype(0) != FLOAT:
        return boxed(False, x.shape)
    return m.each("isnan", x, of=FLOAT, to=BOOL)


# ------------------------------------------------------------------------------ reductions


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


# ------------------------------------------------------------------------------ indices


def scatter(m: Arithmetic, x: Array, dim: int, index: Array, value: Any, **kwargs: Any) -> Array:
    """x with a constant where an index along one axis says."""
    if isinstance(value, np.ndarray) or index.shape[dim] != 1:
        raise Unlowerable("a scatter of many values")
    places = boxed(None, [x.shape[dim] if a == dim % x.ndim else 1 for a in range(x.ndim)])
    places.reshape(-1)[:] = list(range(x.shape[dim]))
    chosen = m.each("eq", index, places, of=INT, to=BOOL)
    return m.select(chosen, value, x, m.dtype())


def gather(m: Arithmetic, x: Array, dim: int, index: Array, **kwargs: Any) -> Array:
    """The values of x where an index along one axis says."""
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
        scaled = m.each("mul", number, boxed(size), of=INT)
        number = m.each("add", scaled, i, of=INT)
    flat = x.reshape(-1, *rest)
    parts = [flat[i] if rest else boxed(flat[i]) for i in range(len(flat))]
    while number.ndim < len(m.sizes()):
        number = np.expand_dims(number, -1)
    return parts, number


RULES: dict[str, Callable] = {
    **dict.fromkeys(("alias", "detach", "view_as"), same),
    **dict.fromkeys(("clone", "lift_fresh_copy", "_to_copy", "contiguous"), copied),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), view),
    "expand": expand,
    "select": select_,
    "slice": slice_,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "permute": permute,
    **dict.fromkeys(("transpose", "t"), transpose),
    "unbind": unbind,
    "diagonal": diagonal,
    "cat": cat,
    "stack": stack,
    "repeat": repeat,
    **dict.fromkeys(
        ("zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "empty", "empty_like"),
        full,
    ),
    **dict.fromkeys(("new_zeros", "new_ones"), full),
    **dict.fromkeys(("fill", "copy"), fill),
    "scalar_tensor": scalar,
    "arange": arange,
    "linspace": linspace,
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "mul": mul,
    "div": div,
    "remainder": remainder,
    "floor_divide": floor_divide,
    "pow": power,
    "reciprocal": reciprocal,
    **{op: of_floats(op) for op in ("sqrt", "exp", "log", "sin", "cos", "tan", "tanh", "atan2")},
    **{op: of_floats(op) for op in ("logaddexp", "floor")},
    **{op: of_numbers(op) for op in ("neg", "abs", "sign", "minimum", "maximum")},
    "clamp": clamp,
    "nan_to_num": nan_to_num,
    "lt": compare("lt"),
    "le": compare("le"),
    "gt": compare("lt", swapped=True),
    "ge": compare("le", swapped=True),
    "eq": compare("eq"),
    "ne": compare("ne"),
    **dict.fromkeys(("bitwise_and", "logical_and", "__and__"), logic("and")),
    **dict.fromkeys(("bitwise_or", "logical_or", "__or__"), logic("or")),
    **dict.fromkeys(("bitwise_xor", "logical_xor"), logic("ne")),
    **dict.fromkeys(("bitwise_not", "logical_not"), logic("not")),
    "where": where,
    "isnan": isnan,
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
    **dict.fromkeys(("mm", "bmm"), matrix_product),
    "_cdist_forward": distances,
    "cumsum": cumulative_sum,
    "linalg_solve_triangular": solve_triangular,
    "scatter": scatter,
    "gather": gather,
    "index": index,
    "index_put": index_put,
}
