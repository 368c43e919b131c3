"""Rules for aten's elementwise operations."""

from collections.abc import Callable
from typing import Any

import torch

from qmix_trl.envs.compiled.lower.arrays import Array, Unlowerable, boxed
from qmix_trl.envs.compiled.lower.call import Call
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT
from qmix_trl.envs.compiled.lower.ops import FLOATS, NUMBERS, OPS

LARGEST = torch.finfo(torch.float32).max


def of_floats(op: str) -> Callable:
    """Return the rule of an operation on floats."""

    def apply(call: Call, *xs: Any) -> Array:
        return call.each(op, *xs, of=FLOAT)

    return apply


def of_numbers(op: str) -> Callable:
    """Return the rule of an operation on numbers of the result's type."""

    def apply(call: Call, *xs: Any) -> Array:
        return call.arithmetic(op, *xs)

    return apply


def add(call: Call, a: Any, b: Any, *, alpha: float = 1) -> Array:
    """Return a + alpha b."""
    return call.arithmetic("add", a, _scaled(call, b, alpha))


def sub(call: Call, a: Any, b: Any, *, alpha: float = 1) -> Array:
    """Return a - alpha b."""
    return call.arithmetic("sub", a, _scaled(call, b, alpha))


def rsub(call: Call, a: Any, b: Any, alpha: float = 1) -> Array:
    """Return b - alpha a."""
    return call.arithmetic("sub", b, _scaled(call, a, alpha))


def _scaled(call: Call, x: Any, factor: float) -> Any:
    return x if factor == 1 else call.arithmetic("mul", x, factor)


def div(call: Call, a: Any, b: Any, *, rounding_mode: str | None = None) -> Array:
    """Return a / b, or its floor."""
    if rounding_mode is None:
        return call.each("div", a, b, of=FLOAT)
    if rounding_mode != "floor":
        raise Unlowerable(f"division rounded to {rounding_mode}")
    if call.output_dtype == INT:
        return call.each("floor_divide", a, b, of=INT)
    return call.each("floor", call.each("div", a, b, of=FLOAT), of=FLOAT)


def floor_divide(call: Call, a: Any, b: Any) -> Array:
    """Return the floor of a / b."""
    return div(call, a, b, rounding_mode="floor")


def power(call: Call, x: Array, exponent: float) -> Array:
    """Return x to a whole power up to 8, or its square root."""
    if exponent == 0.5:
        return call.each("sqrt", x, of=FLOAT)
    if exponent != int(exponent) or not 1 <= abs(exponent) <= 8:
        raise Unlowerable(f"a power of {exponent}")
    x = call.cast(x, call.output_dtype)
    product = x
    for _ in range(int(abs(exponent)) - 1):
        product = call.arithmetic("mul", product, x)
    return product if exponent > 0 else call.each("div", 1.0, product, of=FLOAT)


def reciprocal(call: Call, x: Array) -> Array:
    """Return 1 / x."""
    return call.each("div", 1.0, x, of=FLOAT)


def clamp(call: Call, x: Array, low: Any = None, high: Any = None) -> Array:
    """Return x limited by two bounds."""
    if low is not None:
        x = call.arithmetic("maximum", x, low)
    return x if high is None else call.arithmetic("minimum", x, high)


def nan_to_num(call: Call, x: Array, nan=None, posinf=None, neginf=None) -> Array:
    """Return x with finite numbers in place of NaN and infinities."""
    top = LARGEST if posinf is None else posinf
    bottom = -LARGEST if neginf is None else neginf
    is_nan = call.each("isnan", x, of=FLOAT, to=BOOL)
    x = call.where(is_nan, 0.0 if nan is None else nan, x, FLOAT)
    x = call.where(call.each("lt", LARGEST, x, of=FLOAT, to=BOOL), top, x, FLOAT)
    return call.where(call.each("lt", x, -LARGEST, of=FLOAT, to=BOOL), bottom, x, FLOAT)


def compare(op: str, *, swapped: bool = False) -> Callable:
    """Return the rule of a comparison."""

    def apply(call: Call, a: Any, b: Any) -> Array:
        return call.compare(op, b, a) if swapped else call.compare(op, a, b)

    return apply


def logic(op: str) -> Callable:
    """Return the rule of an operation on booleans."""

    def apply(call: Call, *xs: Any) -> Array:
        if call.output_dtype != BOOL:
            raise Unlowerable(f"{op} of bits")
        return call.each(op, *xs, of=BOOL)

    return apply


def where(call: Call, condition: Any, a: Any, b: Any) -> Array:
    """Return a where the condition holds, b elsewhere."""
    return call.where(condition, a, b, call.output_dtype)


def isnan(call: Call, x: Array) -> Array:
    """Return whether x is NaN; integers and booleans never are."""
    if call.input_dtype(0) != FLOAT:
        return boxed(False, x.shape)
    return call.each("isnan", x, of=FLOAT, to=BOOL)


RULES: dict[str, Callable] = {
    **{name: of_floats(name) for name, op in OPS.items() if op.aten == FLOATS},
    **{name: of_numbers(name) for name, op in OPS.items() if op.aten == NUMBERS},
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "div": div,
    "floor_divide": floor_divide,
    "pow": power,
    "reciprocal": reciprocal,
    "clamp": clamp,
    "nan_to_num": nan_to_num,
    "lt": compare("lt"),
    "le": compare("le"),
    "gt": compare("lt", swapped=True),
    "ge": compare("le", swapped=True),
    "eq": compare("eq"),
    "ne": compare("ne"),
    "__and__": logic("and"),
    "bitwise_and": logic("and"),
    "logical_and": logic("and"),
    "__or__": logic("or"),
    "bitwise_or": logic("or"),
    "logical_or": logic("or"),
    "bitwise_xor": logic("ne"),
    "logical_xor": logic("ne"),
    "bitwise_not": logic("not"),
    "logical_not": logic("not"),
    "where": where,
    "isnan": isnan,
}
