"""The operations of expressions: one line for each.

An elementwise operation of aten is added here. If its form calls a function of a new name, that
function is added to ``simd.h`` and ``triton_simd.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FLOATS, NUMBERS = "floats", "numbers"


@dataclass(frozen=True)
class Op:
    """One operation on the numbers of an environment.

    Attributes:
        fold: computes it from Python numbers; this defines its meaning.
        form: its code in a printed step, with {0}, {1} .. for its arguments; a language may have
            another one. None for a cast, whose code depends on two types.
        int_form: its code where the result is an integer, if that differs.
        cost: of computing it, in additions.
        commutes: its two arguments may be exchanged.
        aten: FLOATS or NUMBERS (of the result's type) generates the rule of aten's operation of
            the same name; None: a rule is written by hand, or aten has no such operation.
    """

    fold: Callable
    form: str | None
    int_form: str | None = None
    cost: int = 1
    commutes: bool = False
    aten: str | None = None


def _in_float32(function: Callable[..., np.float32]) -> Callable[..., float]:
    def fold(*args: float) -> float:
        with np.errstate(all="ignore"):
            return float(function(*map(np.float32, args)))

    return fold


OPS: dict[str, Op] = {
    "add": Op(lambda a, b: a + b, "({0} + {1})", commutes=True),
    "sub": Op(lambda a, b: a - b, "({0} - {1})"),
    "mul": Op(lambda a, b: a * b, "({0} * {1})", commutes=True, aten=NUMBERS),
    "div": Op(_in_float32(np.divide), "({0} / {1})", cost=5),
    "neg": Op(lambda a: -a, "(-{0})", aten=NUMBERS),
    "abs": Op(abs, "vabs({0})", "iabs({0})", aten=NUMBERS),
    "sign": Op(lambda a: (a > 0) - (a < 0), "vsign({0})", "isign({0})", aten=NUMBERS),
    "floor": Op(_in_float32(np.floor), "vfloor({0})", aten=FLOATS),
    "sqrt": Op(_in_float32(np.sqrt), "vsqrt({0})", cost=5, aten=FLOATS),
    "exp": Op(_in_float32(np.exp), "vexp({0})", cost=20, aten=FLOATS),
    "log": Op(_in_float32(np.log), "vlog({0})", cost=20, aten=FLOATS),
    "sin": Op(_in_float32(np.sin), "vsin({0})", cost=20, aten=FLOATS),
    "cos": Op(_in_float32(np.cos), "vcos({0})", cost=20, aten=FLOATS),
    "tan": Op(_in_float32(np.tan), "vtan({0})", cost=20, aten=FLOATS),
    "tanh": Op(_in_float32(np.tanh), "vtanh({0})", cost=20, aten=FLOATS),
    "atan2": Op(math.atan2, "vatan2({0}, {1})", cost=20, aten=FLOATS),
    "logaddexp": Op(np.logaddexp, "vlogaddexp({0}, {1})", cost=50, commutes=True, aten=FLOATS),
    "minimum": Op(
        lambda a, b: a if a != a or a < b else b, "vmin({0}, {1})", "imin({0}, {1})", aten=NUMBERS
    ),
    "maximum": Op(
        lambda a, b: a if a != a or a > b else b, "vmax({0}, {1})", "imax({0}, {1})", aten=NUMBERS
    ),
    "remainder": Op(
        lambda a, b: a - b * math.floor(a / b),
        "vremainder({0}, {1})",
        "iremainder({0}, {1})",
        cost=5,
        aten=NUMBERS,
    ),
    "floor_divide": Op(lambda a, b: a // b, "floor_divide({0}, {1})", cost=5),
    "lt": Op(lambda a, b: a < b, "({0} < {1})"),
    "le": Op(lambda a, b: a <= b, "({0} <= {1})"),
    "eq": Op(lambda a, b: a == b, "({0} == {1})", commutes=True),
    "ne": Op(lambda a, b: a != b, "({0} != {1})", commutes=True),
    "and": Op(lambda a, b: a and b, "({0} & {1})", commutes=True),
    "or": Op(lambda a, b: a or b, "({0} | {1})", commutes=True),
    "not": Op(lambda a: not a, "(~{0})"),
    "isnan": Op(lambda a: a != a, "({0} != {0})"),
    "where": Op(lambda c, a, b: a if c else b, "({0} ? {1} : {2})"),
    "cast": Op(lambda a: a, None),
}
