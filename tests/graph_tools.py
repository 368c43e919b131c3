"""A stand-in for CUDA graphs on the CPU: it repeats operations of torch, and nothing of Python."""

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)
from torch.utils._pytree import tree_leaves


def tensors_in(tree):
    """Return the tensors of nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class RecordedGraph(TorchDispatchMode):
    """Records the operations of torch with the tensors that they read and write.

    As a CUDA graph, it repeats the same operations on the same tensors: numbers and branches of
    Python are frozen, tensors keep their places, and only generators go on. It has to compute in
    order to record; ``undo`` restores the tensors that existed before.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self._own = set()  # storages that recorded operations allocated
        self._before = {}  # storages that they changed, with their contents before

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._keep(written(function, args, kwargs))
        read = {x.untyped_storage()._cdata for x in tensors_in((args, kwargs))}
        result = function(*args, **kwargs)
        self._own |= {x.untyped_storage()._cdata for x in tensors_in(result)} - read
        self.calls.append((function, args, kwargs, result))
        return result

    def _keep(self, tensors):
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage._cdata not in self._own and storage._cdata not in self._before:
                self._before[storage._cdata] = storage, storage.clone()

    def undo(self):
        """Restore the contents of the tensors that existed before."""
        for storage, content in self._before.values():
            storage.copy_(content)

    def replay(self):
        """Compute the recorded operations once more, in place."""
        with torch.no_grad():
            for function, args, kwargs, result in self.calls:
                again = function(*args, **kwargs)
                for new, place in zip(tensors_in(again), tensors_in(result), strict=True):
                    if new is not place:
                        place.detach().copy_(new)


def written(function, args, kwargs):
    """Return the tensors that an operation changes in place."""
    found = []
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_in(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


def foreign(function):
    """Return a function that computes outside of torch as one recorded call; it is not undone."""

    def call(*args, **kwargs):
        modes = [m for m in _get_current_dispatch_mode_stack() if isinstance(m, RecordedGraph)]
        with _disable_current_modes():
            result = function(*args, **kwargs)
        for mode in modes:
            mode.calls.append((function, args, kwargs, result))
        return result

    return call


def captured(function, generators=()):
    """Stand in for ``cuda_graph.captured``: record a function, with the same outcome."""
    graph = RecordedGraph()
    states = [generator.get_state() for generator in generators]
    with graph:
        result = function()
    graph.undo()
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return result, graph.replay
