"""What elementwise operations of aten are on arrays of expressions."""

from collections.abc import Callable
from typing import Any

import torch

from qmix_trl.envs.compiled.lower.arrays import Arithmetic, Array, Unlowerable, boxed
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT

LARGEST = torch.finfo(torch.float32).max


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
