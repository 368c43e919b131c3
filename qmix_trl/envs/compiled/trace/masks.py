"""Boolean masks over environments: their reads and writes for all environments at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode
from torch.utils._pytree import tree_leaves

from qmix_trl.envs.compiled.trace.nodes import same, writes


def split_mask(index: Any, n_envs: int) -> tuple[Tensor | None, tuple]:
    """Split an index into a boolean mask over environments and the indices after it.

    Args:
        index: the index of a tensor's first axes.
        n_envs: E.

    Returns:
        the mask, bool [E, ..], and the other indices; (None, ()) for any other index.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if not parts or not (isinstance(parts[0], Tensor) and parts[0].dtype == torch.bool):
        return None, ()
    if parts[0].shape[:1] != (n_envs,):
        return None, ()
    if any(isinstance(part, Tensor) for part in parts[1:]):
        return None, ()
    return parts[0], parts[1:]


def read_masked(x: Tensor, mask: Tensor, rest: tuple) -> Tensor:
    """Return a copy of ``x[mask, *rest]`` for all places of the mask, those outside it, too.

    Args:
        x: the tensor, [E, ..].
        mask: bool [E, ..], over environments, or over environments and agents.
        rest: the indices after the mask.
    """
    read = _unmasked(x, mask, rest).clone()
    return read.flatten(0, mask.dim() - 1) if mask.dim() > 1 else read


def write_masked(x: Tensor, mask: Tensor, rest: tuple, value: Any) -> None:
    """Write ``x[mask, *rest] = value`` by ``torch.where``.

    Args:
        x: the tensor, [E, ..].
        mask: bool [E, ..], over environments, or over environments and agents.
        rest: the indices after the mask.
        value: a number, or numbers of all places of the mask; those outside it are left out.
    """
    view = _unmasked(x, mask, rest)
    if isinstance(value, Tensor):
        value = value.to(view.dtype)
        if mask.dim() > 1 and value.shape[:1] == (mask.numel(),):
            value = value.reshape(*mask.shape, *value.shape[1:])
    while mask.dim() < view.dim():
        mask = mask.unsqueeze(-1)
    view.copy_(torch.where(mask, value, view))


def _unmasked(x: Tensor, mask: Tensor, rest: tuple) -> Tensor:
    """Return ``x`` at the indices after a mask, for all environments: a view."""
    return x[(slice(None),) * mask.dim() + rest] if rest else x


@dataclass(frozen=True)
class Mask:
    """A mask as it was when numbers were read by it."""

    tensor: Tensor
    version: int

    @staticmethod
    def of(tensor: Tensor) -> "Mask":
        """Return the present state of a mask."""
        return Mask(tensor, tensor._version)


class MaskedReads:
    """Masked reads and the tensors computed from them, each with its mask."""

    def __init__(self) -> None:
        # By id, which no other tensor gets as long as the tensor is held.
        self._masks: dict[int, tuple[Tensor, Mask]] = {}

    def add(self, tensor: Tensor, mask: Mask) -> None:
        """Record a tensor that holds numbers of a mask's places."""
        self._masks[id(tensor)] = tensor, mask

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._masks

    def masks_of(self, arguments: Any) -> list[Mask]:
        """Return the masks of arguments of any nesting."""
        if not self._masks:
            return []
        found = (self._masks.get(id(tensor)) for tensor in tensors_in(arguments))
        return [each[1] for each in found if each is not None]


def tensors_in(arguments: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments of any nesting; a walk of pytrees takes five times as long."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            yield from tensors_in(argument)
    elif isinstance(arguments, dict):
        yield from tensors_in(list(arguments.values()))


def are_one_mask(a: Mask, b: Mask) -> bool:
    """Return whether two masks are one tensor, or were computed alike without writes between."""
    mode = get_proxy_mode()
    if mode is None:  # without a trace nothing is recorded
        return True
    if a.tensor is b.tensor:
        return a.version == b.version
    tracked = [mode.tracer.tensor_tracker.get(mask.tensor) for mask in (a, b)]
    if None in tracked:
        return False
    one, other = (each.proxy.node for each in tracked)
    return not any(map(writes, between(one, other))) and Likeness(mode.tracer).are_alike(one, other)


def between(one: Node, other: Node) -> list[Node]:
    """Return the nodes from one node to another, in the order of the graph."""
    order = {node: i for i, node in enumerate(one.graph.nodes)}
    first, last = sorted((order[one], order[other]))
    return list(order)[first:last]


class Likeness:
    """Compares nodes of a graph by the calls that made them.

    Args:
        tracer: of the graph; it holds the constants.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._known: dict[tuple[Node, Node], bool] = {}

    def are_alike(self, a: Any, b: Any) -> bool:
        """Return whether two arguments of nodes are equal, or made by equal calls."""
        if not (isinstance(a, Node) and isinstance(b, Node)):
            return not isinstance(a, Node) and not isinstance(b, Node) and a == b
        if (a, b) not in self._known:
            self._known[a, b] = a is b or self._made_alike(a, b)
        return self._known[a, b]

    def _made_alike(self, a: Node, b: Node) -> bool:
        if a.op == b.op == "get_attr":
            with disable_proxy_modes_tracing():
                return same(*(getattr(self._tracer.root, node.target) for node in (a, b)))
        parts, others = ([*tree_leaves((node.args, node.kwargs))] for node in (a, b))
        return (
            a.op == b.op == "call_function"
            and a.target == b.target
            and len(parts) == len(others)
            and all(map(self.are_alike, parts, others))
        )
