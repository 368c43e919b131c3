"""A call of an aten operation: the node that a rule lowers, and methods that build expressions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from qmix_trl.envs.compiled.lower.arrays import (
    Array,
    Unlowerable,
    as_array,
    boxed,
    dtype_letter,
    holds_batch,
    unstacked,
    without_batch,
)
from qmix_trl.envs.compiled.lower.expressions import (
    BOOL,
    FLOAT,
    INT,
    Expression,
    Program,
    dtype_of,
    widest,
)

# The operation on booleans that stands for one on numbers.
OF_BOOLEANS = {"add": "or", "mul": "and", "minimum": "and", "maximum": "or"}


@dataclass(frozen=True)
class Call:
    """One call of an aten operation in a graph.

    Attributes:
        node: the call; its tensors are as they were traced.
        program: builds the expressions.
        batch: the number of environments in the graph.
    """

    node: Node
    program: Program
    batch: int

    # ------------------------------------------------------------------ the traced call

    @property
    def operation(self) -> str:
        """The full name of the operation, overload included."""
        return str(self.node.target)

    @property
    def output(self) -> Tensor:
        """The traced result."""
        return self.node.meta["val"]

    @property
    def output_dtype(self) -> str:
        """The expression type of the result."""
        return dtype_letter(self.output.dtype)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the array that stands for the result."""
        return without_batch(self.output.shape, self.batch)

    def input(self, i: int) -> Tensor:
        """Return the traced tensor of an argument."""
        return self.node.args[i].meta["val"]

    def inputs(self, i: int) -> list[Tensor]:
        """Return the traced tensors of an argument that is a list of them."""
        nodes: Any = self.node.args[i]
        return [node.meta["val"] for node in nodes]

    def input_dtype(self, i: int) -> str:
        """Return the expression type of an argument, a tensor or a number."""
        arg = self.node.args[i]
        return dtype_letter(arg.meta["val"].dtype) if isinstance(arg, Node) else dtype_of(arg)

    def is_batch(self, size: int) -> bool:
        """Say whether an axis of this size in the graph holds the environments."""
        return holds_batch(size, self.batch)

    def refuse_batch(self, dim: int, message: str) -> None:
        """Refuse an operation along the axis of the first argument that holds the environments.

        Raises:
            Unlowerable: with ``message``, if ``dim`` is that axis.
        """
        shape = self.input(0).shape
        if shape and self.is_batch(shape[dim]):
            raise Unlowerable(message)

    def axes(self, dims: int | Sequence[int] | None) -> list[int]:
        """Return axes of the first argument as numbers from 0; all of them for None or [].

        Raises:
            Unlowerable: if one of them holds the environments.
        """
        shape = self.input(0).shape
        if dims is None or dims == []:
            dims = range(len(shape))
        axes = [dim % max(1, len(shape)) for dim in ([dims] if isinstance(dims, int) else dims)]
        for axis in axes:
            self.refuse_batch(axis, f"{self.operation} over the environments")
        return axes if shape else []

    # ---------------------------------------------------------------- its expressions

    def cast(self, x: Any, dtype: str) -> Array:
        """Return an array, or a number as an array without axes, as another type."""
        return _elementwise(lambda a: self.program.cast(a, dtype), as_array(x))

    def each(self, op: str, *xs: Any, of: str, to: str | None = None) -> Array:
        """Return an operation on arrays, elementwise and broadcast.

        Args:
            op: a name in ``OPS``.
            *xs: arrays and numbers.
            of: the type that the arguments are cast to.
            to: the type of its result; None for the same.
        """

        def apply(*args: Any) -> Any:
            return self.program.apply(op, *args, dtype=to or of)

        return _elementwise(apply, *(self.cast(x, of) for x in xs))

    def arithmetic(self, op: str, *xs: Any) -> Array:
        """Return an operation on arrays that it takes as the type of the call's result."""
        dtype = self.output_dtype
        return self.each(OF_BOOLEANS.get(op, op) if dtype == BOOL else op, *xs, of=dtype)

    def compare(self, op: str, a: Any, b: Any) -> Array:
        """Return a comparison in the wider type of the call's two arguments."""
        dtype = widest(self.input_dtype(0), self.input_dtype(1))
        if dtype == BOOL and op in ("lt", "le"):
            dtype = INT
        return self.each(op, a, b, of=dtype, to=BOOL)

    def where(self, condition: Any, a: Any, b: Any, dtype: str) -> Array:
        """Return, elementwise, ``a`` where a condition holds and ``b`` elsewhere.

        Args:
            condition: an array, taken as booleans.
            a: an array or a constant.
            b: an array or a constant.
            dtype: the type of both, and of the result.
        """

        def apply(*args: Any) -> Any:
            return self.program.apply("where", *args, dtype=dtype)

        condition, a, b = self.cast(condition, BOOL), self.cast(a, dtype), self.cast(b, dtype)
        return _elementwise(apply, condition, a, b)

    def reduce(self, op: str, x: Array, axes: Sequence[int], *, keepdim: bool, dtype: str) -> Array:
        """Return an array reduced over axes, from the first element to the last.

        Args:
            op: an operation of two arguments.
            x: the array.
            axes: numbers from 0, or one of any sign.
            keepdim: reduced axes keep the size 1.
            dtype: the type that x is cast to, and of the result.

        Raises:
            Unlowerable: if an axis is empty.
        """
        op = OF_BOOLEANS.get(op, op) if dtype == BOOL else op
        if any(x.shape[axis] == 0 for axis in axes):
            raise Unlowerable(f"{self.operation} of nothing")
        x = self.cast(x, dtype)
        function = np.frompyfunc(lambda a, b: self.program.apply(op, a, b, dtype=dtype), 2, 1)
        for axis in sorted(axes, reverse=True):
            x = as_array(function.reduce(x, axis=axis, keepdims=keepdim))
        return x

    def first_index(self, op: str, x: Array, dim: int, *, keepdim: bool) -> tuple[Array, Array]:
        """Return an extreme along an axis, and the first index that has it.

        Args:
            op: "minimum" or "maximum".
            x: the array; the call's first argument.
            dim: the axis, of any sign.
            keepdim: the axis keeps the size 1.

        Raises:
            Unlowerable: if the axis is the batch's.
        """
        dtype = INT if self.input_dtype(0) == BOOL else self.input_dtype(0)
        (axis,) = self.axes(dim)
        parts = [self.cast(part, dtype) for part in unstacked(x, axis)]
        best, index = parts[0], boxed(0, parts[0].shape)
        for i, part in enumerate(parts[1:], 1):
            pair = (part, best) if op == "minimum" else (best, part)
            better = self.each("lt", *pair, of=dtype, to=BOOL)
            if dtype == FLOAT:  # the first NaN is the extreme
                is_nan = [self.each("isnan", x, of=FLOAT, to=BOOL) for x in (part, best)]
                first = self.each("lt", is_nan[1], is_nan[0], of=INT, to=BOOL)
                better = self.each("or", better, first, of=BOOL)
            index = self.where(better, boxed(i), index, INT)
            best = self.each(op, best, part, of=dtype)
        if keepdim:
            best, index = np.expand_dims(best, axis), np.expand_dims(index, axis)
        return best, index

    def pick(self, parts: list[Array], index: Array, dtype: str) -> Array:
        """Return, elementwise, the part with the number that an index has there."""
        if all(not isinstance(i, Expression) for i in index.flat):
            out = boxed(None, np.broadcast_shapes(index.shape, parts[0].shape))
            full = [np.broadcast_to(part, out.shape) for part in parts]
            numbers = np.broadcast_to(index, out.shape)
            for place in np.ndindex(out.shape):
                out[place] = full[numbers[place]][place]
            return out
        picked = parts[0]
        for i, part in enumerate(parts[1:], 1):
            chosen = self.each("eq", index, boxed(i), of=INT, to=BOOL)
            picked = self.where(chosen, part, picked, dtype)
        return picked


def _elementwise(function: Callable[..., Any], *arrays: Array) -> Array:
    return as_array(np.frompyfunc(function, len(arrays), 1)(*arrays))
