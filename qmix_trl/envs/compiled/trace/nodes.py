"""The nodes of a traced graph, and its tensors bit by bit."""

import operator

import torch
from torch import Tensor
from torch.fx import Node

COPYING = (torch.ops.aten.clone.default, torch.ops.aten.detach.default)


def writes(node: Node) -> bool:
    """Say whether a node writes to its first argument in place."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    name = str(node.target).split(".")[1]
    return name.endswith("_") and not name.startswith("_")


def live_nodes(nodes: list[Node]) -> set[Node]:
    """Return the nodes that the output or a write in place depends on."""
    alive: set[Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or writes(node) or any(user in alive for user in node.users):
            alive.add(node)
    return alive


def without_copies(node: Node) -> Node:
    """Return the node whose value a node copies; the node itself if it is no copy."""
    while node.target in COPYING:
        node = node.all_input_nodes[0]
    return node


def same(a: Tensor, b: Tensor | None) -> bool:
    """Return whether two tensors have the same bits, but for the bits of NaN."""
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
