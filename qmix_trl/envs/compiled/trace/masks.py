"""Boolean masks over environments: their reads and writes for all environments at once."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._pytree import tree_leaves

from qmix_trl.envs.compiled.trace.nodes import writes


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


def unmasked(x: Tensor, mask: Tensor, rest: tuple) -> Tensor:
    """Return ``x`` at the indices after a mask, for all environments: a view."""
    return x[(slice(None),) * mask.dim() + rest] if rest else x


def write_masked(x: Tensor, mask: Tensor, rest: tuple, value: Any) -> None:
    """Write ``x[mask, *rest] = value`` by ``torch.where``.

    Args:
        x: the tensor, [E, ..].
        mask: bool [E, ..], over environments.
        rest: the indices after the mask.
        value: numbers of all environments; those outside the mask are left out.
    """
    view = unmasked(x, mask, rest)
    if isinstance(value, Tensor):
        value = value.to(view.dtype)
    while mask.dim() < view.dim():
        mask = mask.unsqueeze(-1)
    view.copy_(torch.where(mask, value, view))


class MaskedReads:
    """Masked reads and the tensors computed from them, each with its mask."""

    def __init__(self) -> None:
        # By id, which no other tensor gets as long as the tensor is held.
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, tensor: Tensor, mask: Tensor) -> None:
        """Record a tensor that holds numbers of a mask's environments."""
        self._masks[id(tensor)] = tensor, mask

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._masks

    def masks_of(self, arguments: Any) -> list[Tensor]:
        """Return the masks of arguments of any nesting."""
        if not self._masks:
            return []
        found = (self._masks.get(id(argument)) for argument in tree_leaves(arguments))
        return [each[1] for each in found if each is not None]


def are_one_mask(a: Tensor, b: Tensor) -> bool:
    """Return whether two masks are one tensor, or were computed alike without writes between."""
    mode = get_proxy_mode()
    if a is b or mode is None:  # without a trace nothing is recorded
        return True
    tracked = [mode.tracer.tensor_tracker.get(mask) for mask in (a, b)]
    if None in tracked:
        return False
    one, other = (each.proxy.node for each in tracked)
    nodes = list(one.graph.nodes)
    first, last = sorted(nodes.index(node) for node in (one, other))
    return not any(map(writes, nodes[first:last])) and are_alike(one, other)


def are_alike(a: Any, b: Any) -> bool:
    """Return whether two arguments of nodes are equal, or made by equal calls."""
    if not (isinstance(a, Node) and isinstance(b, Node)):
        return not isinstance(a, Node) and not isinstance(b, Node) and a == b
    parts, others = _arguments(a), _arguments(b)
    return a is b or (
        a.op == b.op == "call_function"
        and a.target == b.target
        and len(parts) == len(others)
        and all(map(are_alike, parts, others))
    )


def _arguments(node: Node) -> list[Any]:
    return tree_leaves((node.args, node.kwargs))
