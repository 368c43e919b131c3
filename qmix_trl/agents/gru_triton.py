"""A GRU over sequences on CUDA devices, by TorchRL's Triton kernel: one launch for all steps."""

import torch
from torch import Tensor, nn

# The kernel of GRUModule(recurrent_backend="triton"), which itself has no dimension for agents.
from torchrl.modules.tensordict_module import _rnn_triton


def serves(x: Tensor, rnn: nn.GRUCell) -> bool:
    """Return whether the kernel serves: in float32 on CUDA, with weights that agents share."""
    return (
        _rnn_triton._has_triton
        and x.is_cuda
        and x.dtype == torch.float32
        and rnn.weight_hh.dim() == 2
    )


def unroll(x: Tensor, is_init: Tensor, hidden: Tensor | None, rnn: nn.GRUCell) -> Tensor:
    """Return the hidden states [B, T, N, H] of a GRU.

    Products are in float32, or in TF32 where ``torch.set_float32_matmul_precision`` allows it.

    Args:
        x: float32 [B, T, N, D], the GRU's inputs.
        is_init: bool [B, T, 1], the steps that begin with a hidden state of zeros.
        hidden: float32 [B, N, H], before the first step; None for zeros.
        rnn: weights and biases, shared by the agents.
    """
    n_sequences, n_steps, n_agents, width = x.shape
    samples = x.transpose(1, 2).reshape(-1, n_steps, width)  # [B N, T, D]
    resets = is_init[..., 0].repeat_interleave(n_agents, 0)  # [B N, T]
    # The hidden states that a sample begins with, and continues with after resets, [B N, T, H].
    states = samples.new_zeros(*samples.shape[:-1], rnn.weight_hh.shape[-1])
    if hidden is not None:
        continues = ~resets[:, :1]
        states[:, 0] = torch.where(continues, hidden.flatten(0, 1), states[:, 0])
    exact = torch.get_float32_matmul_precision() == "highest"
    hiddens, _ = _rnn_triton.gru_triton(
        samples,
        states,
        rnn.weight_ih,
        rnn.weight_hh,
        rnn.bias_ih,
        rnn.bias_hh,
        resets,
        input_precision="ieee" if exact else "tf32",
    )
    return hiddens.unflatten(0, (n_sequences, n_agents)).transpose(1, 2)
