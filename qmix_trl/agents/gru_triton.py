"""A GRU over sequences on CUDA devices: one Triton kernel forward, one backward.

``forward`` and ``backward`` take and return the tensors of ``native/networks/gru.py``, in float32.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from qmix_trl.native.networks.gru import KEPT

MOST_WIDTH = 128  # of a hidden state whose weights fit the registers of a multiprocessor
NARROW, NARROW_WARPS, WIDE_WARPS = 64, 4, 8


def suits(*tensors: Tensor) -> bool:
    """Return whether the kernels compute with these tensors: float32 on CUDA, H up to 128.

    Args:
        *tensors: gates, recurrent weight [.., 3H, H], and others.
    """
    _, weight, *_ = tensors
    return (
        all(x.is_cuda and x.dtype == torch.float32 for x in tensors)
        and weight.shape[-1] <= MOST_WIDTH
        and is_installed()
    )


def why_not(rnn: nn.GRUCell) -> str | None:
    """Return the reason why the kernels do not compute a GRU of a GPU; None if they do."""
    weight = rnn.weight_hh
    if not is_installed():
        return "Triton is not installed"
    if weight.dtype != torch.float32:
        return f"expected float32, got {weight.dtype}"
    if weight.shape[-1] > MOST_WIDTH:
        return f"expected hidden states of at most {MOST_WIDTH}, got {weight.shape[-1]}"
    return None


@torch.compiler.assume_constant_result  # torch.compile calls it, instead of tracing into it
def is_installed() -> bool:
    """Return whether there is Triton."""
    return find_spec("triton") is not None


@cache
def _kernels() -> Any:
    from qmix_trl.agents import gru_kernels  # imports Triton

    return gru_kernels


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
        gates: [B, T, N, 3H].
        is_init: bool [B, T, 1].
        hidden: [B, N, H]; None for zeros.
        weight: [3H, H] or [N, 3H, H].
        bias: [3H] or [N, 3H].
        keep: there will be a ``backward``.

    Returns:
        [B, T, N, H], and [5, B, T, N, H] or None.
    """
    width = weight.shape[-1]
    shape = (*gates.shape[:-1], width)
    hiddens = gates.new_empty(shape)
    kept = gates.new_empty(len(KEPT), *shape) if keep else None
    _launch(
        "forward",
        shape,
        gates.contiguous(),
        _bytes(is_init),
        gates if hidden is None else hidden.contiguous(),
        weight.unflatten(-2, (3, width)).transpose(-1, -2).contiguous(),
        bias.contiguous(),
        hiddens,
        hiddens if kept is None else kept,
        OWN=weight.dim() == 3,
        HAS_FIRST=hidden is not None,
        KEEP=keep,
    )
    return hiddens, kept


def backward(
    kept: Tensor, is_init: Tensor, weight: Tensor, bias: Tensor, grad_hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gates, first hidden state, weight and bias.

    Args:
        kept: [5, B, T, N, H], of ``forward``.
        is_init: bool [B, T, 1].
        weight: [3H, H] or [N, 3H, H].
        bias: [3H] or [N, 3H].
        grad_hidden: [B, T, N, H].

    Returns:
        [B, T, N, 3H], [B, N, H], and of the shapes of weight and bias.
    """
    n_sequences, n_steps, n_agents, width = grad_hidden.shape
    grad_gates, grad_shares = kept.new_empty(
        2, n_sequences, n_steps, n_agents, 3 * width
    )  # [B, T, N, 3H] each
    grad_first = kept.new_empty(n_sequences, n_agents, width)
    grad_bias = kept.new_empty(n_sequences, n_agents, 3 * width)
    _launch(
        "backward",
        grad_hidden.shape,
        kept,
        _bytes(is_init),
        weight.contiguous(),
        grad_hidden.contiguous(),
        grad_gates,
        grad_shares,
        grad_first,
        grad_bias,
        OWN=weight.dim() == 3,
    )
    previous = kept[0]
    if weight.dim() == 3:
        grad_weight = torch.einsum("btng,btnh->ngh", grad_shares, previous)
        return grad_gates, grad_first, grad_weight, grad_bias.sum(0)
    grad_weight = grad_shares.flatten(0, -2).t() @ previous.flatten(0, -2)
    return grad_gates, grad_first, grad_weight, grad_bias.sum((0, 1))


def _bytes(is_init: Tensor) -> Tensor:
    """Return [B, T, 1] as contiguous bytes."""
    return is_init.contiguous().view(torch.uint8)


def _launch(name: str, shape: tuple[int, ...], *tensors: Tensor, **constants: bool) -> None:
    """Run a kernel with a program for each agent's sequence.

    Args:
        name: of the kernel.
        shape: (B, T, N, H).
        *tensors: its arguments.
        **constants: its constants, beside the sizes of H.
    """
    n_sequences, n_steps, n_agents, width = shape
    block = max(16, 1 << (width - 1).bit_length())
    with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device
        getattr(_kernels(), name)[(n_sequences * n_agents,)](
            *tensors,
            n_steps,
            n_agents,
            H=width,
            WIDTH=block,
            **constants,
            num_warps=NARROW_WARPS if block <= NARROW else WIDE_WARPS,
        )
