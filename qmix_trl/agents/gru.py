"""A GRU whose rows are sequences of episodes: the equations, and the fastest way through time."""

import torch
from torch import Tensor, nn

from qmix_trl.agents import gru_triton
from qmix_trl.dense import dense, gradients_again, linear
from qmix_trl.native.networks import gru as kernel
from qmix_trl.native.networks import library as networks


def cell(gates: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the next hidden state [*B, N, H] (the equations of ``torch.nn.GRUCell``).

    Args:
        gates: float [*B, N, 3H], the input's share of reset gate, update gate and candidate.
        hidden: float [*B, N, H].
        weight: float [3H, H], shared, or [N, 3H, H], each agent's own.
        bias: float [3H] or [N, 3H].
    """
    width = hidden.shape[-1]
    recurrent = linear(hidden, weight, bias)  # [*B, N, 3H]
    # split, not slices: its backward joins the gradients instead of adding padded ones.
    gates_ru, gates_new = gates.split([2 * width, width], -1)
    recurrent_ru, recurrent_new = recurrent.split([2 * width, width], -1)
    reset, update = torch.sigmoid(gates_ru + recurrent_ru).chunk(2, -1)
    new = torch.tanh(torch.addcmul(gates_new, reset, recurrent_new))
    return torch.lerp(new, hidden, update)  # (1 - update) new + update hidden


def unroll(
    x: Tensor, is_init: Tensor, hidden: Tensor | None, below: nn.Linear, rnn: nn.GRUCell
) -> Tensor:
    """Return hidden states, float [B, T, N, H], of a GRU above a layer with ReLUs.

    On the CPU one call into C++ goes through time, and one back; on CUDA devices one Triton kernel.
    Where there is neither, torch does, step by step: the same numbers but for roundings.

    Args:
        x: float [B, T, N, D], the inputs of the layer below.
        is_init: bool [B, T, 1], the steps that begin with a hidden state of zeros.
        hidden: float [B, N, H], before the first step; None for zeros.
        below: weight and bias, shared or stacked for each agent.
        rnn: weights and biases, likewise.
    """
    if gru_triton.serves(x, rnn):
        return gru_triton.unroll(
            linear(x, below.weight, below.bias, relu=True), is_init, hidden, rnn
        )
    gates = dense(x, [(below.weight, below.bias), (rnn.weight_ih, rnn.bias_ih)])  # [B, T, N, 3H]
    return _unroll(gates, is_init, hidden, rnn.weight_hh, rnn.bias_hh)


@torch.compiler.disable  # which takes minutes for the steps, and cannot look into C++
def _unroll(
    gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    inputs = (gates, is_init, hidden, weight, bias)
    floats = [x for x in (gates, weight, bias, hidden) if x is not None]
    if not (_fit(*inputs[:4]) and networks.serves(kernel.library, *floats)):
        return unroll_by_steps(*inputs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in floats):
        return Unroll.apply(*inputs)
    return kernel.forward(*inputs, keep=False)[0]


def _fit(gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor) -> bool:
    """Say whether shapes go together; where they do not, torch says why."""
    n_rows, n_steps, n_agents, width = gates.shape
    return (
        width == weight.shape[-2]
        and is_init.shape == (n_rows, n_steps, 1)
        and is_init.dtype == torch.bool
        and (hidden is None or hidden.shape == (n_rows, n_agents, weight.shape[-1]))
        and (weight.dim() == 2 or len(weight) == n_agents)
    )


class Unroll(torch.autograd.Function):
    """``unroll_by_steps`` by the kernel."""

    @staticmethod
    def forward(ctx, *inputs):
        """Keep each step's gates for the way back."""
        hiddens, kept = kernel.forward(*inputs, keep=True)
        ctx.save_for_backward(*inputs, kept)
        return hiddens

    @staticmethod
    def backward(ctx, grad_hiddens):
        """Return the gradients; by torch's own operations where they have gradients, too."""
        *inputs, kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = unroll_by_steps(*inputs)
            return gradients_again(again, inputs, grad_hiddens)
        _, is_init, hidden, weight, bias = inputs
        of_gates, of_first, *rest = kernel.backward(kept, is_init, weight, bias, grad_hiddens)
        return of_gates, None, None if hidden is None else of_first, *rest


def unroll_by_steps(
    gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """Return hidden states [B, T, N, H], a few operations of torch each.

    Args:
        gates: float [B, T, N, 3H], the input's share.
        is_init: bool [B, T, 1].
        hidden: float [B, N, H]; None for zeros.
        weight: as in ``cell``.
        bias: as in ``cell``.
    """
    zero = gates.new_zeros(*gates[:, 0].shape[:-1], weight.shape[-1])  # [B, N, H]
    hidden = zero if hidden is None else hidden
    hiddens = []
    for gates_t, going_on_t in zip(
        gates.unbind(1), (~is_init).unsqueeze(-1).unbind(1), strict=True
    ):
        hidden = cell(gates_t, torch.where(going_on_t, hidden, zero), weight, bias)
        hiddens.append(hidden)
    return torch.stack(hiddens, 1)
