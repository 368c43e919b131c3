"""QMIX's mixing network on the CPU: one call of C++ forward, one backward."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.layers import INT, READ, WRITTEN, Layer, Layers, pointers
from qmix_trl.native.networks.library import loader


class Mixer(ctypes.Structure):
    """The arguments of ``mixer.h``."""

    _fields_ = [
        ("n_samples", INT),
        ("n_agents", INT),  # N
        ("n_embed", INT),  # E, the width of the mixing network
        ("n_state", INT),  # S
        ("n_layers", INT),  # of all hypernetworks together
        ("threads", INT),
        ("layers", ctypes.POINTER(Layer)),  # [n_layers], of w1, b1, w2 and V, one or two each
        ("net_layers", ctypes.POINTER(INT)),  # [4], the number of layers of each hypernetwork
        ("chosen", READ),  # [n_samples, N]
        ("state", READ),  # [n_samples, S]
        ("kept", ctypes.POINTER(WRITTEN)),  # [n_layers] of [n_samples, outputs]; null: not kept
        ("total", WRITTEN),  # [n_samples]
        ("grad_total", READ),  # [n_samples]
        ("grad_chosen", WRITTEN),  # [n_samples, N]
    ]


library = loader("mixer", Mixer)


def forward(
    chosen: Tensor,
    state: Tensor,
    n_layers: Sequence[int],
    parameters: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return joint values and, with ``keep``, the outputs of all layers for ``backward``.

    Args:
        chosen: float [samples, N], contiguous.
        state: float [samples, S], contiguous.
        n_layers: of the hypernetworks of w1 [N E], b1 [E], w2 [E] and V [1]: 1, or 2 with a ReLU
            between them.
        parameters: weight and bias of the first layer, then of the next, of all hypernetworks.
        keep: there will be a ``backward``.

    Returns:
        float [samples, 1]; and float [samples, H] for each layer, or an empty list.
    """
    total = chosen.new_empty(len(chosen), 1)
    kept = []
    if keep:
        kept = [empty(len(chosen), len(bias), dtype=chosen.dtype) for bias in parameters[1::2]]
    layers = Layers(parameters, with_gradients=False)
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
        chosen: as in ``forward``.
        state: as in ``forward``.
        n_layers: as in ``forward``.
        parameters: as in ``forward``.
        kept: of ``forward``.
        grad_total: float [samples, 1], contiguous.
    """
    grad_chosen = torch.empty_like(chosen)
    layers = Layers(parameters, with_gradients=True)
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
    """Return the arguments that both functions read; the caller keeps the tensors."""
    last_of_b1 = sum(n_layers[:2]) - 1
    return Mixer(
        n_samples=len(chosen),
        n_agents=chosen.shape[1],
        n_embed=layers.array[last_of_b1].outputs,
        n_state=state.shape[1],
        n_layers=len(layers.array),
        threads=torch.get_num_threads(),
        layers=layers.array,
        net_layers=(INT * len(n_layers))(*n_layers),
        chosen=chosen.data_ptr(),
        state=state.data_ptr(),
        kept=pointers(kept, WRITTEN) if kept else None,
    )
