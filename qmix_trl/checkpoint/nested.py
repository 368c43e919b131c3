"""Nested states as JSON and bytes: the JSON holds all but the numbers of tensors.

A node of the JSON is a scalar, a list, or an object with one of these keys:

==============  ====================================================================
``tensor``      a dtype's name, with ``shape``; its bytes are the next ones of the file
``dict``        a list of pairs of key and value
``tuple``       a list of values
``tensordict``  a list of pairs of name and value, with ``batch_size``
``size``        a ``torch.Size``, a list of numbers
``device``      a ``torch.device``, its text
==============  ====================================================================

Tensors come back on the CPU, contiguous, without gradient, each with memory of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

MOST_DEEP = 50  # levels of nesting; a state dict of a deep module has one level for all its names
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128),
    )
}
SCALARS = (bool, int, float, str, type(None))
CONTAINERS = (list, tuple, Mapping, TensorDictBase, Tensor, torch.device)


class Damaged(Exception):
    """A checkpoint is not as it was written; the message is the reason."""


def encoded(value: Any, write: Callable[[Tensor], None], at: str, depth: int = 0) -> Any:
    """Return the JSON of a nested state, and write its tensors in order.

    Args:
        value: tensors, numbers, texts and None in lists, tuples, dictionaries and TensorDicts.
        write: takes each tensor.
        at: the value's name, for errors.
        depth: the number of levels above.

    Raises:
        TypeError: if it holds anything else, or is nested deeper than ``MOST_DEEP``.
    """
    if depth > MOST_DEEP:
        raise TypeError(f"{at}: expected at most {MOST_DEEP} levels, got more")
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, Tensor):
        return _tensor(value, write, at)

    def inner(name: Any, part: Any) -> Any:
        return encoded(part, write, f"{at}.{name}", depth + 1)

    if isinstance(value, TensorDictBase):
        entries = dict(value.items())
        if not _are_entries(entries):
            raise TypeError(f"{at}: expected a TensorDict of tensors, got {list(entries)}")
        pairs = [[name, inner(name, part)] for name, part in entries.items()]
        return {"tensordict": pairs, "batch_size": list(value.batch_size)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, SCALARS):
                raise TypeError(
                    f"{at}: expected keys of text or numbers, got {type(key).__name__} {key!r}"
                )
        return {"dict": [[key, inner(key, part)] for key, part in value.items()]}
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, (list, tuple)):
        values = [inner(i, part) for i, part in enumerate(value)]
        return values if isinstance(value, list) else {"tuple": values}
    raise TypeError(
        f"{at}: expected tensors, numbers, texts, None, lists, tuples and dictionaries, got "
        f"{type(value).__name__}; give an object that has state_dict and load_state_dict"
    )


def _tensor(value: Tensor, write: Callable[[Tensor], None], at: str) -> dict[str, Any]:
    name = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or name not in DTYPES or value.is_meta:
        raise TypeError(
            f"{at}: expected a dense tensor with numbers, got {value.dtype}, {value.layout} on "
            f"{value.device}"
        )
    write(value)
    return {"tensor": name, "shape": list(value.shape)}


def decoded(node: Any, read: Callable[[torch.dtype, list[int]], Tensor], depth: int = 0) -> Any:
    """Return the nested state of a JSON.

    Args:
        node: as ``encoded`` returned it, or anything else that JSON can hold.
        read: returns the next tensor, by dtype and shape.
        depth: the number of levels above.

    Raises:
        Damaged: if the JSON is not one of ``encoded``.
    """
    if depth > MOST_DEEP:
        raise Damaged(f"it is nested deeper than {MOST_DEEP} levels")
    if isinstance(node, SCALARS):
        return node

    def inner(part: Any) -> Any:
        return decoded(part, read, depth + 1)

    if isinstance(node, list):
        return [inner(part) for part in node]
    match node:
        case {"tensor": str(name), "shape": list(shape), **rest} if not rest and name in DTYPES:
            return read(DTYPES[name], _sizes(shape))
        case {"dict": list(pairs), **rest} if not rest:
            return {key: inner(part) for key, part in map(_pair, pairs)}
        case {"tuple": list(values), **rest} if not rest:
            return tuple(inner(part) for part in values)
        case {"tensordict": list(pairs), "batch_size": list(sizes), **rest} if not rest:
            entries = {key: inner(part) for key, part in map(_pair, pairs)}
            if not _are_entries(entries):
                raise Damaged("it holds an invalid TensorDict")
            return TensorDict(entries, _sizes(sizes))
        case {"size": list(sizes), **rest} if not rest:
            return torch.Size(_sizes(sizes))
        case {"device": str(name), **rest} if not rest:
            return torch.device(name)
    raise Damaged("it holds a node of no known kind")


def _are_entries(entries: Mapping[Any, Any]) -> bool:
    kinds = (Tensor, TensorDictBase)
    return all(isinstance(k, str) and isinstance(v, kinds) for k, v in entries.items())


def _sizes(sizes: list[Any]) -> list[int]:
    if all(type(size) is int and size >= 0 for size in sizes):
        return sizes
    raise Damaged("it holds an invalid shape")


def _pair(pair: Any) -> tuple[Any, Any]:
    match pair:
        case [key, value] if isinstance(key, SCALARS):
            return key, value
    raise Damaged("it holds an invalid dictionary")
