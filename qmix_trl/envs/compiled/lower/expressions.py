"""A step as scalar expressions of one environment: shared, folded, and of three types.

An expression's value is one number for each environment. Constants are plain Python numbers.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

FLOAT, INT, BOOL, PAIR = "f", "i", "b", "p"


@dataclass(eq=False, slots=True)
class Expression:
    """One operation.

    Attributes:
        index: its place in the program; arguments come before it.
        op: a name in ``FOLDS``; of a leaf, "state", "action", "uniform", "normal", "environment";
            or "spawn", which gives a PAIR, with "first" and "second" of one.
        args: expressions and constants; a leaf's say which number it is.
        dtype: FLOAT (32 bits), INT (32 bits), BOOL, or PAIR of floats.
    """

    index: int
    op: str
    args: tuple
    dtype: str

    @property
    def inputs(self) -> list["Expression"]:
        """The arguments that are expressions."""
        return [arg for arg in self.args if isinstance(arg, Expression)]


Scalar = Expression | float | int | bool


def single(x: float) -> float:
    """Return a number as float32 has it."""
    with np.errstate(over="ignore"):
        return float(np.float32(x))


def _divide(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float32(a) / np.float32(b))


def _unary(function: Callable[[np.float32], np.float32]) -> Callable[[float], float]:
    def fold(a: float) -> float:
        with np.errstate(all="ignore"):
            return float(function(np.float32(a)))

    return fold


# What each operation is on constants: the definition of its meaning.
FOLDS: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "neg": lambda a: -a,
    "abs": abs,
    "sign": lambda a: (a > 0) - (a < 0),
    "floor": _unary(np.floor),
    "sqrt": _unary(np.sqrt),
    "exp": _unary(np.exp),
    "log": _unary(np.log),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "tan": _unary(np.tan),
    "tanh": _unary(np.tanh),
    "atan2": lambda a, b: math.atan2(a, b),
    "logaddexp": lambda a, b: float(np.logaddexp(a, b)),
    "minimum": lambda a, b: a if a != a or a < b else b,
    "maximum": lambda a, b: a if a != a or a > b else b,
    "remainder": lambda a, b: a - b * math.floor(a / b),
    "floor_divide": lambda a, b: a // b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "isnan": lambda a: a != a,
    "where": lambda c, a, b: a if c else b,
    "cast": lambda a: a,
}
COMMUTATIVE = {"add", "mul", "eq", "ne", "and", "or", "logaddexp"}
CASTS = {FLOAT: single, INT: int, BOOL: bool}


@dataclass
class Program:
    """Builds expressions; equal ones are one, and 0 times anything is 0, also times NaN."""

    expressions: list[Expression] = field(default_factory=list)
    known: dict[tuple, Expression] = field(default_factory=dict)

    def leaf(self, op: str, *args: int | str, dtype: str) -> Expression:
        """Return an input of the step."""
        return self._shared(op, args, dtype)

    def apply(self, op: str, *args: Scalar, dtype: str) -> Scalar:
        """Return an operation on arguments of the types that it wants, simplified."""
        if not any(isinstance(arg, Expression) for arg in args):
            return CASTS[dtype](FOLDS[op](*args))
        simpler = self._simplified(op, args, dtype)
        return self._shared(op, args, dtype) if simpler is None else simpler

    def cast(self, x: Scalar, dtype: str) -> Scalar:
        """Return a value as another type; to BOOL: whether it is not zero; to INT: truncated."""
        if not isinstance(x, Expression):
            return CASTS[dtype](x)
        return x if x.dtype == dtype else self._shared("cast", (x,), dtype)

    def _shared(self, op: str, args: tuple, dtype: str) -> Expression:
        parts = [_identity(arg) for arg in args]
        if op in COMMUTATIVE:
            parts.sort(key=repr)
        key = (op, dtype, *parts)
        if key not in self.known:
            self.known[key] = Expression(len(self.expressions), op, args, dtype)
            self.expressions.append(self.known[key])
        return self.known[key]

    def _simplified(self, op: str, args: tuple, dtype: str) -> Scalar | None:
        """Return something simpler that is equal, None if there is nothing."""
        a, b = args[0], args[1] if len(args) > 1 else None
        match op:
            case "add" | "or":
                return _if_constant(args, 0)
            case "sub" if is_constant(b, 0):
                return a
            case "mul" if is_constant(a, 0) or is_constant(b, 0):
                return CASTS[dtype](0)
            case "mul" | "and":
                return _if_constant(args, 1) if op == "mul" else self._conjunction(a, b)
            case "div" if is_constant(b, 1):
                return a
            case "div" if isinstance(b, float) and _has_exact_inverse(b):
                return self.apply("mul", a, 1 / b, dtype=dtype)
            case "minimum" | "maximum" if a is b:
                return a
            case "neg" if a.op == "neg":
                return a.args[0]
            case "not" if a.op == "not":
                return a.args[0]
            case "where":
                return self._chosen(*args)
        return None

    def _conjunction(self, a: Scalar, b: Scalar) -> Scalar | None:
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, Expression):
                return other if one else False
        return None

    def _chosen(self, condition: Scalar, a: Scalar, b: Scalar) -> Scalar | None:
        if not isinstance(condition, Expression):
            return a if condition else b
        if a is b or (_identity(a) == _identity(b)):
            return a
        if condition.op == "not":
            return self.apply("where", condition.args[0], b, a, dtype=dtype_of(a, b))
        return None


def _has_exact_inverse(x: float) -> bool:
    """Say whether x is a power of two whose inverse is a normal float32."""
    mantissa, exponent = math.frexp(x)
    return abs(mantissa) == 0.5 and abs(exponent) < 120


def dtype_of(*values: Scalar) -> str:
    """Return the widest type among values."""
    kinds = [v.dtype if isinstance(v, Expression) else _constant_dtype(v) for v in values]
    return next(kind for kind in (FLOAT, INT, BOOL) if kind in kinds)


def _constant_dtype(x: float | int | bool) -> str:
    return BOOL if isinstance(x, bool) else INT if isinstance(x, int) else FLOAT


def is_constant(x: Scalar | None, value: float) -> bool:
    """Say whether x is this constant."""
    return x is not None and not isinstance(x, Expression) and x == value


def _if_constant(args: Iterable[Scalar], value: float) -> Scalar | None:
    """Return the other of two arguments if one is this constant."""
    a, b = args
    return b if is_constant(a, value) else a if is_constant(b, value) else None


def _identity(x: Scalar) -> tuple:
    if isinstance(x, Expression):
        return ("e", x.index)
    return (type(x).__name__, repr(x))
