"""QMIX's mixing network on the CPU, forward and back, as one call each."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.library import Layer, Layers, both_ways, pointers

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Mixer(ctypes.Structure):
    """``Mixer`` of ``mixer.h``."""

    _fields_ = [
        *((name, _INT) for name in ("n_rows", "n_agents", "n_embed", "n_state")),
        *((name, _INT) for name in ("n_layers", "threads")),
        ("layers", ctypes.POINTER(Layer)),
        ("layers_of", ctypes.POINTER(_INT)),
        *((name, _POINTER) for name in ("chosen", "state")),
        ("kept", ctypes.POINTER(_POINTER)),
        *((name, _POINTER) for name in ("total", "grad_total", "grad_chosen")),
    ]


library = both_ways("mixer", Mixer)


def forward(
    chosen: Tensor,
    state: Tensor,
    n_layers: Sequence[int],
    parameters: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return joint values, and with ``keep`` what the way back needs.

    Args:
        chosen: float [R, N], contiguous.
        state: float [R, S], contiguous.
        n_layers: of the hypernetworks of w1 [N E], b1 [E], w2 [E] and V [1]: one, or two with
            ReLUs between them.
        parameters: weight and bias of all their layers in turn.

    Returns:
        float [R, 1], and of each layer its outputs, float [R, H].
    """
    total = chosen.new_empty(len(chosen), 1)
    kept = []
    if keep:
        kept = [empty(len(chosen), len(bias), dtype=chosen.dtype) for bias in parameters[1::2]]
    layers = Layers(parameters, back=False)
    call = _call(chosen, state, n_layers, layers, kept)
    call.total = total.data_ptr()
    library(chosen.dtype).forward(ctypes.byref(call))
    return total, kept


def backward(
    chosen: Tensor,
    state: Tensor,
    n_layers: Sequence[int],
    parameters: Sequence[Tensor],
    kept: Sequence[Tensor],
    grad_total: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of ``chosen`` and of the parameters.

    Args:
        chosen, state, n_layers, parameters: as in ``forward``.
        kept: of ``forward``.
        grad_total: float [R, 1], contiguous.
    """
    grad_chosen = torch.empty_like(chosen)
    layers = Layers(parameters, back=True)
    call = _call(chosen, state, n_layers, layers, kept)
    call.grad_total, call.grad_chosen = grad_total.data_ptr(), grad_chosen.data_ptr()
    library(chosen.dtype).backward(ctypes.byref(call))
    return grad_chosen, layers.gradients


def _call(
    chosen: Tensor,
    state: Tensor,
    n_layers: Sequence[int],
    layers: Layers,
    kept: Sequence[Tensor],
) -> Mixer:
    """Return the arguments that both ways have in common; what they point at is kept elsewhere."""
    return Mixer(
        n_rows=len(chosen),
        n_agents=chosen.shape[1],
        n_embed=layers.pointer[sum(n_layers[:2]) - 1].outputs,  # of b1
        n_state=state.shape[1],
        n_layers=len(layers.pointer),
        threads=torch.get_num_threads(),
        layers=layers.pointer,
        layers_of=(_INT * len(n_layers))(*n_layers),
        chosen=chosen.data_ptr(),
        state=state.data_ptr(),
        kept=pointers(kept) if kept else None,
    )
