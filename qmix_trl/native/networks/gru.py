"""A GRU over sequences on the CPU: one call of C++ forward, one backward."""

import ctypes

import torch
from torch import Tensor

from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.layers import INT, READ, WRITTEN, Layer, Layers
from qmix_trl.native.networks.library import loader
from qmix_trl.native.structures import pointer_to

KEPT = ("previous", "reset", "update", "candidate", "share")


class Sequences(ctypes.Structure):
    """The arguments of ``gru.h``: B sequences of T steps of N agents, hidden states of H."""

    _fields_ = [
        ("n_sequences", INT),
        ("n_steps", INT),
        ("n_agents", INT),
        ("width", INT),  # H
        ("n_groups", INT),  # 1 where agents share their weights, else N
        ("threads", INT),
        ("recurrent", ctypes.POINTER(Layer)),  # from H to 3H
        ("is_init", pointer_to("const bool")),  # [B, T]
        ("first", READ),  # [B, N, H]; null for zeros
        ("gates", READ),  # [B, T, N, 3H], the input's part
        ("hidden", WRITTEN),  # [B, T, N, H]
        # Kept for backward, [B, T, N, H] each, or null: the hidden state before the step, the
        # gates r and u, the candidate n, and its recurrent part before r multiplies it.
        *((name, WRITTEN) for name in KEPT),
        ("grad_hidden", READ),  # [B, T, N, H]
        ("grad_gates", WRITTEN),  # [B, T, N, 3H]
        ("grad_first", WRITTEN),  # [B, N, H]
    ]


library = loader("gru", Sequences)


def forward(
    gates: Tensor,
    is_init: Tensor,
    hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return hidden states and, with ``keep``, the intermediate values for ``backward``.

    Args:
        gates: float [B, T, N, 3H], the input's part.
        is_init: bool [B, T, 1], the steps that begin with a hidden state of zeros.
        hidden: float [B, N, H], before the first step; None for zeros.
        weight: float [3H, H], shared, or [N, 3H, H].
        bias: float [3H] or [N, 3H].
        keep: there will be a ``backward``.

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
    _call("forward", Layers([weight, bias], with_gradients=False), tensors, shape)
    return hiddens, kept


def backward(
    kept: Tensor, is_init: Tensor, weight: Tensor, bias: Tensor, grad_hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gates, first hidden state, weight and bias.

    Args:
        kept: float [5, B, T, N, H], of ``forward``.
        is_init: as in ``forward``.
        weight: as in ``forward``.
        bias: as in ``forward``.
        grad_hidden: float [B, T, N, H].

    Returns:
        float [B, T, N, 3H], [B, N, H], and of the shapes of weight and bias.
    """
    recurrent, dtype = Layers([weight, bias], with_gradients=True), kept.dtype
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
    """Call a function of the library with tensors by field, copied where not contiguous."""
    n_sequences, n_steps, n_agents, width = shape
    contiguous = {key: None if x is None else x.contiguous() for key, x in tensors.items()}
    call = Sequences(
        n_sequences=n_sequences,
        n_steps=n_steps,
        n_agents=n_agents,
        width=width,
        n_groups=recurrent.n_groups,
        threads=torch.get_num_threads(),
        recurrent=recurrent.array,
        **{key: None if x is None else x.data_ptr() for key, x in contiguous.items()},
    )
    getattr(library(recurrent.dtype), name)(ctypes.byref(call))
