"""Scalar expressions of one environment: simplified, and equal ones shared.

An expression has one value for each environment. Constants are plain Python numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qmix_trl.envs.compiled.lower.ops import OPS

FLOAT, INT, BOOL, PAIR = "f", "i", "b", "p"


@dataclass(eq=False, slots=True)
class Expression:
    """One operation.

    Attributes:
        index: its place in the program; arguments come before it.
        op: a name in ``OPS``; or that of a leaf: "state", "action", "uniform", "normal",
            "environment", "spawn" (a PAIR), "first" or "second" (of a PAIR).
        args: expressions and constants; the arguments of a leaf identify it.
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
    """Return a number rounded to float32."""
    with np.errstate(over="ignore"):
        return float(np.float32(x))


CASTS = {FLOAT: single, INT: int, BOOL: bool}


@dataclass
class Program:
    """Builds expressions and shares equal ones.

    Attributes:
        expressions: all, each after its arguments.
        known: the same by operation, type and arguments.
        positive_zeros: the floats of which it is certain that they are not -0.0.
    """

    expressions: list[Expression] = field(default_factory=list)
    known: dict[tuple, Expression] = field(default_factory=dict)
    positive_zeros: set[Expression] = field(default_factory=set)

    def leaf(self, op: str, *args: int | str, dtype: str) -> Expression:
        """Return an input of the step."""
        return self._shared(op, args, dtype)

    def apply(self, op: str, *args: Scalar, dtype: str) -> Scalar:
        """Return an operation, simplified.

        Args:
            op: a name in ``OPS``.
            *args: of the types that the operation takes.
            dtype: of the result.
        """
        if not any(isinstance(arg, Expression) for arg in args):
            return CASTS[dtype](OPS[op].fold(*args))
        simpler = self._simplified(op, args, dtype)
        return self._shared(op, args, dtype) if simpler is None else simpler

    def cast(self, x: Scalar, dtype: str) -> Scalar:
        """Return a value as another type: as BOOL, whether it is not zero; as INT, truncated."""
        if not isinstance(x, Expression):
            return CASTS[dtype](x)
        return x if x.dtype == dtype else self._shared("cast", (x,), dtype)

    def _shared(self, op: str, args: tuple, dtype: str) -> Expression:
        parts = [_identity(arg) for arg in args]
        if op in OPS and OPS[op].commutes:
            parts.sort(key=repr)
        key = (op, dtype, *parts)
        if key not in self.known:
            new = self.known[key] = Expression(len(self.expressions), op, args, dtype)
            self.expressions.append(new)
            if dtype == FLOAT and self._zero_is_positive(new):
                self.positive_zeros.add(new)
        return self.known[key]

    def _simplified(self, op: str, args: tuple, dtype: str) -> Scalar | None:
        """Return a simpler value that is equal, or None."""
        a, b = args[0], args[1] if len(args) > 1 else None
        match op:
            case "add" if dtype == FLOAT:
                return self._sum_with_zero(a, b)
            case "add" | "or":
                return _if_constant(args, 0)
            case "sub" if is_constant(b, 0) and not _is_minus_zero(b):
                return a
            case "mul" if dtype == INT and (is_constant(a, 0) or is_constant(b, 0)):
                return 0  # a float may be infinite, or NaN
            case "mul":
                return _if_constant(args, 1)
            case "and":
                return self._conjunction(a, b)
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

    def _sum_with_zero(self, a: Scalar, b: Scalar) -> Scalar | None:
        """Return the other term of a sum of floats if one is 0 and adding it changes no bit."""
        for zero, other in ((a, b), (b, a)):
            # -0.0 + 0.0 is 0.0, which 1 / x and atan2 tell from -0.0.
            if is_constant(zero, 0) and (_is_minus_zero(zero) or self._has_no_minus_zero(other)):
                return other
        return None

    def _has_no_minus_zero(self, x: Scalar) -> bool:
        return x in self.positive_zeros if isinstance(x, Expression) else not _is_minus_zero(x)

    def _zero_is_positive(self, x: Expression) -> bool:
        """Return whether a float is certainly not -0.0."""
        match x.op:
            case "cast" | "abs" | "exp" | "uniform":
                return True
            case "mul":
                return x.args[0] is x.args[1]
            case "add":
                return any(map(self._has_no_minus_zero, x.args))
            case "sub" | "sqrt":
                return self._has_no_minus_zero(x.args[0])
            case "where":
                return all(map(self._has_no_minus_zero, x.args[1:]))
        return False

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


def live(outputs: Iterable[Scalar]) -> set[Expression]:
    """Return the expressions that outputs depend on."""
    found: set[Expression] = set()
    waiting = [x for x in outputs if isinstance(x, Expression)]
    while waiting:
        expression = waiting.pop()
        if expression not in found:
            found.add(expression)
            waiting.extend(expression.inputs)
    return found


def _has_exact_inverse(x: float) -> bool:
    """Say whether x is a power of two whose inverse is a normal float32."""
    mantissa, exponent = math.frexp(x)
    return abs(mantissa) == 0.5 and abs(exponent) < 120


def widest(*dtypes: str) -> str:
    """Return the widest of types: FLOAT before INT before BOOL."""
    return next(dtype for dtype in (FLOAT, INT, BOOL) if dtype in dtypes)


def dtype_of(*values: Scalar) -> str:
    """Return the widest type of values."""
    return widest(*(v.dtype if isinstance(v, Expression) else _constant_dtype(v) for v in values))


def _constant_dtype(x: float | int | bool) -> str:
    return BOOL if isinstance(x, bool) else INT if isinstance(x, int) else FLOAT


def is_constant(x: Scalar | None, value: float) -> bool:
    """Say whether x is this constant."""
    return x is not None and not isinstance(x, Expression) and x == value


def _is_minus_zero(x: Scalar) -> bool:
    return is_constant(x, 0) and math.copysign(1, x) < 0


def _if_constant(args: Sequence[Scalar], value: float) -> Scalar | None:
    """Return the other of two arguments if one is this constant."""
    a, b = args
    return b if is_constant(a, value) else a if is_constant(b, value) else None


def _identity(x: Scalar) -> tuple:
    if isinstance(x, Expression):
        return ("e", x.index)
    return (type(x).__name__, repr(x))
