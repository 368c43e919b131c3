"""A GRU over sequences on the CPU, forward and back, as one call each."""

import ctypes

import torch
from torch import Tensor

from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.library import Layer, Layers, both_ways

KEPT = ("before", "reset", "update", "fresh", "share")
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Sequences(ctypes.Structure):
    """``Sequences`` of ``gru.h``."""

    _fields_ = [
        *((name, _INT) for name in ("n_sequences", "n_steps", "n_agents", "width")),
        *((name, _INT) for name in ("n_groups", "threads")),
        ("recurrent", ctypes.POINTER(Layer)),
        *((name, _POINTER) for name in ("is_init", "first", "gates", "hidden", *KEPT)),
        *((name, _POINTER) for name in ("grad_hidden", "grad_gates", "grad_first")),
    ]


library = both_ways("gru", Sequences)


def forward(
    gates: Tensor,
    is_init: Tensor,
    hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return hidden states, and with ``keep`` what the way back needs.

    Args:
        gates: float [B, T, N, 3H], the input's share.
        is_init: bool [B, T, 1], the steps that begin with a hidden state of zeros.
        hidden: float [B, N, H], before the first step; None for zeros.
        weight: float [3H, H], shared, or [N, 3H, H].
        bias: float [3H] or [N, 3H].

    Returns:
        float [B, T, N, H], and float [5, B, T, N, H] or None.
    """
    width, dtype = weight.shape[-1], gates.dtype
    shape = (*gates.shape[:-1], width)
    hiddens = empty(*shape, dtype=dtype)
    kept = empty(len(KEPT), *shape, dtype=dtype) if keep else None
    tensors = {"is_init": is_init, "first": hidden, "gates": gates, "hidden": hiddens}
    if kept is not None:
        tensors |= dict(zip(KEPT, kept, strict=True))
    _call("forward", Layers([weight, bias], back=False), tensors, shape)
    return hiddens, kept


def backward(
    kept: Tensor, is_init: Tensor, weight: Tensor, bias: Tensor, grad_hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gates, of the first hidden state, of weight and bias.

    Args:
        kept: float [5, B, T, N, H], of ``forward``.
        is_init: as in ``forward``.
        weight: as in ``forward``.
        bias: as in ``forward``.
        grad_hidden: float [B, T, N, H].
    """
    recurrent, dtype = Layers([weight, bias], back=True), kept.dtype
    shape = tuple(grad_hidden.shape)
    grad_gates = empty(*shape[:-1], 3 * shape[-1], dtype=dtype)
    grad_first = empty(shape[0], *shape[2:], dtype=dtype)
    tensors = dict(zip(KEPT, kept, strict=True))
    tensors |= {"is_init": is_init, "grad_hidden": grad_hidden, "grad_gates": grad_gates}
    tensors |= {"grad_first": grad_first}
    _call("backward", recurrent, tensors, shape)
    return grad_gates, grad_first, *recurrent.gradients


def _call(
    name: str, recurrent: Layers, tensors: dict[str, Tensor | None], shape: tuple[int, ...]
) -> None:
    """Call a function of the library; what is not contiguous is copied."""
    n_sequences, n_steps, n_agents, width = shape
    held = {key: None if x is None else x.contiguous() for key, x in tensors.items()}
    call = Sequences(
        n_sequences=n_sequences,
        n_steps=n_steps,
        n_agents=n_agents,
        width=width,
        n_groups=recurrent.n_groups,
        threads=torch.get_num_threads(),
        recurrent=recurrent.pointer,
        **{key: None if x is None else x.data_ptr() for key, x in held.items()},
    )
    getattr(library(recurrent.dtype), name)(ctypes.byref(call))
