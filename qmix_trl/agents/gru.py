"""A GRU over sequences: its equations by torch, and faster kernels where there are any."""

import torch
from torch import Tensor, nn

from qmix_trl.agents import gru_op, gru_triton
from qmix_trl.dense import dense, gradients_again, linear
from qmix_trl.native.networks import gru as kernel
from qmix_trl.native.networks import library as networks


def cell(gates: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the next hidden state [*B, N, H] by the equations of ``torch.nn.GRUCell``.

    It has the dtype of ``hidden``, also where ``autocast`` computes the gates in a narrower one.

    Args:
        gates: float [*B, N, 3H], the input's part of reset gate, update gate and candidate.
        hidden: float [*B, N, H].
        weight: float [3H, H], shared, or [N, 3H, H], each agent's own.
        bias: float [3H] or [N, 3H].
    """
    width = hidden.shape[-1]
    recurrent = linear(hidden, weight, bias)  # [*B, N, 3H]
    # split, not slices: its backward concatenates gradients instead of adding padded ones.
    gates_ru, gates_new = gates.split([2 * width, width], -1)
    recurrent_ru, recurrent_new = recurrent.split([2 * width, width], -1)
    reset, update = torch.sigmoid(gates_ru + recurrent_ru).chunk(2, -1)
    new = torch.tanh(torch.addcmul(gates_new, reset, recurrent_new))
    to = hidden.dtype
    return torch.lerp(new.to(to), hidden, update.to(to))  # (1 - update) new + update hidden


def unroll(
    x: Tensor,
    is_init: Tensor,
    hidden: Tensor | None,
    below: nn.Linear,
    rnn: nn.GRUCell,
    norm: nn.LayerNorm | None = None,
) -> Tensor:
    """Return the hidden states, float [B, T, N, H], of a GRU after a linear layer with ReLUs.

    All steps are one call of C++ on the CPU, and one Triton kernel on CUDA devices, for float32 and
    hidden states of up to 128. Where neither serves, torch computes step by step. The results are
    equal to float rounding.

    Args:
        x: float [B, T, N, D], the inputs of the linear layer.
        is_init: bool [B, T, 1], the steps that begin with a hidden state of zeros.
        hidden: float [B, N, H], before the first step; None for zeros.
        below: the linear layer, shared or stacked for each agent.
        rnn: the GRU's weights and biases, shared or stacked for each agent.
        norm: a layer norm of the linear layer's outputs, before the ReLUs; None for none.
    """
    layers = [(below.weight, below.bias), (rnn.weight_ih, rnn.bias_ih)]
    norms = [] if norm is None else [(norm.weight, norm.bias)]
    gates = dense(x, layers, norms)  # [B, T, N, 3H]
    if gates.is_cuda:  # autocast computes narrower ones, which would be unrolled step by step
        gates = gates.to(x.dtype)
    return _unroll(gates, is_init, hidden, rnn.weight_hh, rnn.bias_hh)


def _unroll(
    gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """Return the hidden states of ``unroll_by_steps``, by a kernel where one serves."""
    inputs = (gates, is_init, hidden, weight, bias)
    floats = [x for x in (gates, weight, bias, hidden) if x is not None]
    fit = _fit(*inputs[:4])
    if fit and gru_op.serves(*floats):
        return gru_op.unroll(*inputs)
    if not (fit and _kernel_serves(*floats)):
        return _untraced_steps(*inputs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in floats):
        return Unroll.apply(*inputs)
    return gru_op.kernel_on(gates.device).forward(*inputs, keep=False)[0]


def _kernel_serves(*floats: Tensor) -> bool:
    """Return whether a kernel computes with gates, weight, bias and hidden state."""
    if floats[0].is_cuda:
        return networks.eager(*floats) and gru_triton.suits(*floats)
    return networks.serves(kernel.library, *floats)


@torch.compiler.disable  # it would unroll T steps, which takes minutes to compile
def _untraced_steps(*inputs: Tensor | None) -> Tensor:
    """Return the hidden states of ``unroll_by_steps``."""
    return unroll_by_steps(*inputs)


def _fit(gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor) -> bool:
    """Return whether shapes fit together; torch raises the error where they do not."""
    n_sequences, n_steps, n_agents, width = gates.shape
    return (
        n_steps > 0
        and width == weight.shape[-2]
        and is_init.shape == (n_sequences, n_steps, 1)
        and is_init.dtype == torch.bool
        and (hidden is None or hidden.shape == (n_sequences, n_agents, weight.shape[-1]))
        and (weight.dim() == 2 or len(weight) == n_agents)
    )


class Unroll(torch.autograd.Function):
    """``unroll_by_steps`` computed by the device's kernel."""

    @staticmethod
    def forward(ctx, *inputs):
        """Return the hidden states; keep each step's gates for backward."""
        hiddens, kept = gru_op.kernel_on(inputs[0].device).forward(*inputs, keep=True)
        ctx.save_for_backward(*inputs, kept)
        return hiddens

    @staticmethod
    def backward(ctx, grad_hiddens):
        """Return the gradients; by torch's operations where second derivatives are wanted."""
        *inputs, kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_again(unroll_by_steps(*inputs), inputs, grad_hiddens)
        _, is_init, hidden, weight, bias = inputs
        arguments = kept, is_init, weight, bias, grad_hiddens
        backward = gru_op.kernel_on(kept.device).backward
        grad_gates, grad_first, *grad_parameters = backward(*arguments)
        return grad_gates, None, None if hidden is None else grad_first, *grad_parameters


def unroll_by_steps(
    gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """Return the hidden states [B, T, N, H], computed by torch step by step.

    Args:
        gates: float [B, T, N, 3H], the input's part.
        is_init: bool [B, T, 1], the steps that begin with a hidden state of zeros.
        hidden: float [B, N, H], before the first step; None for zeros.
        weight: as in ``cell``.
        bias: as in ``cell``.
    """
    zero = weight.new_zeros(*gates[:, 0].shape[:-1], weight.shape[-1])  # [B, N, H]
    hidden = zero if hidden is None else hidden
    hiddens = []
    continues = (~is_init).unsqueeze(-1)  # [B, T, 1, 1]
    for gates_t, continues_t in zip(gates.unbind(1), continues.unbind(1), strict=True):
        hidden = cell(gates_t, torch.where(continues_t, hidden, zero), weight, bias)
        hiddens.append(hidden)
    return torch.stack(hiddens, 1)
