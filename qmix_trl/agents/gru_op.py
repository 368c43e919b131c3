"""The kernels of the GRU as one operation of torch, which ``torch.compile`` calls as it is.

Traced instead, T steps would be unrolled into the graph, which takes minutes to compile.
"""

from types import ModuleType

import torch
from torch import Tensor

from qmix_trl.agents import gru_triton
from qmix_trl.native.networks import gru as kernel
from qmix_trl.native.networks import library as networks


def kernel_on(device: torch.device) -> ModuleType:
    """Return the module of a device's kernels ``forward`` and ``backward``."""
    return gru_triton if device.type == "cuda" else kernel


def serves(*tensors: Tensor) -> bool:
    """Return whether the operation computes with these floats while ``torch.compile`` traces."""
    if not torch.compiler.is_dynamo_compiling():
        return False
    if tensors[0].is_cuda:
        return gru_triton.suits(*tensors)
    return networks.suit(*tensors) and _is_built(tensors[0].dtype)


@torch.compiler.assume_constant_result  # torch.compile calls it, instead of tracing into it
def _is_built(dtype: torch.dtype) -> bool:
    return networks.missing(kernel.library, dtype) is None


def unroll(
    gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """Return the hidden states of ``gru.unroll_by_steps``; the gradient is a kernel's, too.

    Args:
        gates: as in ``gru.unroll_by_steps``.
        is_init: as in ``gru.unroll_by_steps``.
        hidden: as in ``gru.unroll_by_steps``.
        weight: as in ``gru.unroll_by_steps``.
        bias: as in ``gru.unroll_by_steps``.
    """
    floats = [x for x in (gates, weight, bias, hidden) if x is not None]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in floats)
    return _forward(gates, is_init, hidden, weight, bias, keep)[0]


@torch.library.custom_op("qmix_trl::gru_forward", mutates_args=())
def _forward(
    gates: Tensor,
    is_init: Tensor,
    hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    hiddens, kept = kernel_on(gates.device).forward(gates, is_init, hidden, weight, bias, keep=keep)
    return hiddens, gates.new_empty(0) if kept is None else kept


@_forward.register_fake
def _(gates, is_init, hidden, weight, bias, keep):
    shape = (*gates.shape[:-1], weight.shape[-1])
    kept = (len(kernel.KEPT), *shape) if keep else (0,)
    return gates.new_empty(shape), gates.new_empty(kept)


@torch.library.custom_op("qmix_trl::gru_backward", mutates_args=())
def _backward(
    kept: Tensor, is_init: Tensor, weight: Tensor, bias: Tensor, grad_hiddens: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return kernel_on(kept.device).backward(kept, is_init, weight, bias, grad_hiddens)


@_backward.register_fake
def _(kept, is_init, weight, bias, grad_hiddens):
    n_sequences, _, n_agents, width = grad_hiddens.shape
    return (
        kept.new_empty(*grad_hiddens.shape[:-1], 3 * width),
        kept.new_empty(n_sequences, n_agents, width),
        kept.new_empty(weight.shape),
        kept.new_empty(bias.shape),
    )


def _keep(ctx, inputs, output):
    _, is_init, hidden, weight, bias, _ = inputs
    ctx.save_for_backward(output[1], is_init, weight, bias)
    ctx.has_hidden = hidden is not None


def _gradients(ctx, grad_hiddens, _):
    grad_gates, grad_first, *of_parameters = _backward(*ctx.saved_tensors, grad_hiddens)
    return grad_gates, None, grad_first if ctx.has_hidden else None, *of_parameters, None


_forward.register_autograd(_gradients, setup_context=_keep)
