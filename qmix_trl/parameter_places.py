"""Modules that compute with parameters that are held elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor, nn

Holder = dict[str, Tensor | None]  # the parameters, or the buffers, of one module


class ParameterPlaces:
    """The places of a module's parameters and buffers, filled by others for the time of a call.

    It is ``params.to_module(module)`` of tensordict in a tenth of its time, which a loss with four
    networks would spend at each step. Under ``torch.compile``, and where a part of the module
    keeps its parameters in a way of its own, such as ``nn.GRU``, it is that method.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        parts = dict(module.named_modules(remove_duplicate=False))
        self._is_plain = all(
            type(part).__setattr__ is nn.Module.__setattr__ for part in parts.values()
        )
        self._holders: dict[str, tuple[Holder, str]] = {}  # by the names of ``state_dict``
        for path, part in parts.items():
            for holder in (part._parameters, part._buffers):
                for key in holder:
                    self._holders[f"{path}.{key}" if path else key] = (holder, key)

    @contextmanager
    def filled(self, params: TensorDictBase) -> Iterator[None]:
        """Let the module compute with ``params`` inside the block.

        Args:
            params: its parameters and buffers, or others of the same names.
        """
        is_flat = isinstance(params, TensorDictParams)  # a module without parameters has no such
        if not (self._is_plain and is_flat) or torch.compiler.is_compiling():
            with params.to_module(self._module, preserve_module_state=False):
                yield
            return
        own = []
        try:
            for name, tensor in _named(params):
                holder, key = self._holders[name]
                own.append((holder, key, holder[key]))
                holder[key] = tensor
            yield
        finally:
            for holder, key, tensor in reversed(own):  # of a shared module one place has two names
                holder[key] = tensor


def _named(params: TensorDictBase, before: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested parameters by the names of ``state_dict``.

    They are read from the TensorDict, in which ``to_module`` puts others in their places: the
    parameters that ``nn.Module`` lists stay the loss's own.
    """
    for key, entry in params.items():
        if isinstance(entry, Tensor):
            yield f"{before}{key}", entry
        else:
            yield from _named(entry, f"{before}{key}.")
