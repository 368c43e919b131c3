"""Arithmetic on arrays of expressions.

A tensor of a graph stands as an array of expressions of the same shape, with 1 where the graph
has the batch. Views of tensors are then views of arrays: selecting, stacking, expanding and
writing in place cost nothing in the result, and only arithmetic is left. An operation *across*
the batch has no such form and is refused.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, Expression, Program
from qmix_trl.errors import Refused

Array = np.ndarray  # of expressions and constants


# What an operation on numbers is on booleans.
OF_BOOLEANS = {"add": "or", "mul": "and", "minimum": "and", "maximum": "or"}


class Unlowerable(Refused):
    """An operation has no form for one environment; says which."""


def dtype_letter(dtype: torch.dtype) -> str:
    """Return the type of expressions that stands for a tensor's."""
    if dtype == torch.bool:
        return BOOL
    return FLOAT if dtype.is_floating_point else INT


def boxed(value: Any, shape: Sequence[int] = ()) -> Array:
    """Return an array that is full of one value."""
    array = np.empty(tuple(shape), object)
    array.fill(value)
    return array


def as_array(x: Any) -> Array:
    """Return what numpy gives for arrays without axes as such an array."""
    return x if isinstance(x, np.ndarray) else boxed(x)


def unstacked(x: Array, axis: int) -> list[Array]:
    """Return views along an axis."""
    return [select(x, axis, i) for i in range(x.shape[axis])]


def select(x: Array, axis: int, i: int) -> Array:
    """Return a view at one place of an axis."""
    axis, i = axis % x.ndim, i % x.shape[axis]
    return np.squeeze(x[(slice(None),) * axis + (slice(i, i + 1),)], axis)


class Arithmetic:
    """Builds the expressions of one node of a graph after the other.

    Attributes:
        program: where expressions are built.
        batch: the size that stands for the environments in the graph.
        node: what is being built.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self.program = program
        self.batch = batch
        self.node: Node

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape of the graph with the batch taken out."""
        return tuple(n // self.batch if self.is_batch(n) else n for n in shape)

    def dtype(self) -> str:
        return dtype_letter(self.meta().dtype)

    def meta(self) -> Tensor:
        return self.node.meta["val"]

    def sizes(self) -> tuple[int, ...]:
        return self.shape(self.meta().shape)

    def arg_dtype(self, i: int) -> str:
        arg = self.node.args[i]
        if isinstance(arg, Node):
            return dtype_letter(arg.meta["val"].dtype)
        return BOOL if isinstance(arg, bool) else INT if isinstance(arg, int) else FLOAT

    def cast(self, x: Any, dtype: str) -> Array:
        x = x if isinstance(x, np.ndarray) else boxed(x)
        return as_array(np.frompyfunc(lambda a: self.program.cast(a, dtype), 1, 1)(x))

    def each(self, op: str, *xs: Any, of: str, to: str | None = None) -> Array:
        """Apply an operation to arguments of type ``of``; it gives ``to``, the same if None."""
        arrays = [self.cast(x, of) for x in xs]
        function = np.frompyfunc(
            lambda *args: self.program.apply(op, *args, dtype=to or of), len(xs), 1
        )
        return as_array(function(*arrays))

    def arithmetic(self, op: str, *xs: Any) -> Array:
        dtype = self.dtype()
        return self.each(OF_BOOLEANS.get(op, op) if dtype == BOOL else op, *xs, of=dtype)

    def compare(self, op: str, a: Any, b: Any) -> Array:
        kinds = [self.arg_dtype(0), self.arg_dtype(1)]
        dtype = next(kind for kind in (FLOAT, INT, BOOL) if kind in kinds)
        if dtype == BOOL and op in ("lt", "le"):
            dtype = INT
        return self.each(op, a, b, of=dtype, to=BOOL)

    def fold(self, op: str, x: Array, axes: Sequence[int], keepdim: bool, dtype: str) -> Array:
        """Reduce over axes by an operation of two arguments, from the left."""
        x = self.cast(x, dtype)
        op = OF_BOOLEANS.get(op, op) if dtype == BOOL else op
        if any(x.shape[axis] == 0 for axis in axes):
            raise Unlowerable(f"{self.node.target} of nothing")
        function = np.frompyfunc(lambda a, b: self.program.apply(op, a, b, dtype=dtype), 2, 1)
        for axis in sorted(axes, reverse=True):
            x = as_array(function.reduce(x, axis=axis, keepdims=keepdim))
        return x

    def is_batch(self, size: int) -> bool:
        """Say whether an axis of this size in the graph holds the environments."""
        return size > 0 and size % self.batch == 0

    def refuse_batch(self, dim: int, what: str) -> None:
        """Refuse an operation along an axis of the first argument that holds the environments.

        Raises:
            Unlowerable: if it does; ``what`` says what was asked for.
        """
        shape = self.node.args[0].meta["val"].shape
        if shape and self.is_batch(shape[dim]):
            raise Unlowerable(what)

    def axes(self, dims: int | Sequence[int] | None) -> list[int]:
        """Return axes of the first argument, none of which may be the batch."""
        shape = self.node.args[0].meta["val"].shape
        if dims is None or dims == []:
            dims = range(len(shape))
        axes = [dim % max(1, len(shape)) for dim in ([dims] if isinstance(dims, int) else dims)]
        for axis in axes:
            if shape and self.is_batch(shape[axis]):
                raise Unlowerable(f"{self.node.target} over the environments")
        return axes if shape else []

    def first_index(self, op: str, x: Array, dim: int, keepdim: bool) -> tuple[Array, Array]:
        """Return the least (or greatest) along an axis and its index."""
        dtype = INT if self.arg_dtype(0) == BOOL else self.arg_dtype(0)
        (axis,) = self.axes(dim)
        parts = [self.cast(part, dtype) for part in unstacked(x, axis)]
        best, index = parts[0], boxed(0, parts[0].shape)
        for i, part in enumerate(parts[1:], 1):
            pair = (part, best) if op == "minimum" else (best, part)
            better = self.each("lt", *pair, of=dtype, to=BOOL)
            index = self.select(better, boxed(i), index, INT)
            best = self.each(op, best, part, of=dtype)
        if keepdim:
            best, index = np.expand_dims(best, axis), np.expand_dims(index, axis)
        return best, index

    def select(self, condition: Any, a: Any, b: Any, dtype: str) -> Array:
        condition, a, b = self.cast(condition, BOOL), self.cast(a, dtype), self.cast(b, dtype)
        function = np.frompyfunc(lambda *xs: self.program.apply("where", *xs, dtype=dtype), 3, 1)
        return as_array(function(condition, a, b))

    def pick(self, parts: list[Array], index: Array, dtype: str) -> Array:
        """Return, elementwise, the part that an index names."""
        if all(not isinstance(i, Expression) for i in index.flat):
            out = boxed(None, np.broadcast_shapes(index.shape, parts[0].shape))
            full = [np.broadcast_to(part, out.shape) for part in parts]
            where = np.broadcast_to(index, out.shape)
            for place in np.ndindex(out.shape):
                out[place] = full[where[place]][place]
            return out
        picked = parts[0]
        for i, part in enumerate(parts[1:], 1):
            chosen = self.each("eq", index, boxed(i), of=INT, to=BOOL)
            picked = self.select(chosen, part, picked, dtype)
        return picked
