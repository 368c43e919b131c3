"""A GRU over sequences on CUDA devices, by TorchRL's Triton kernel: no launch for each step."""

import torch
from torch import Tensor, nn

# What is behind GRUModule(recurrent_backend="triton"), which takes no agents' rows itself.
from torchrl.modules.tensordict_module import _rnn_triton


def serves(x: Tensor, rnn: nn.GRUCell) -> bool:
    """Say whether there is a kernel: for float32 on CUDA, with weights that agents share."""
    return (
        _rnn_triton._has_triton
        and x.is_cuda
        and x.dtype == torch.float32
        and rnn.weight_hh.dim() == 2
    )


def unroll(x: Tensor, is_init: Tensor, hidden: Tensor | None, rnn: nn.GRUCell) -> Tensor:
    """Return hidden states [B, T, N, H], as ``gru.unroll``.

    Products are float32's own, unless ``torch.set_float32_matmul_precision`` allows TF32.
    """
    n_sequences, n_steps, n_agents, width = x.shape
    rows = x.transpose(1, 2).reshape(-1, n_steps, width)  # [B N, T, H]
    resets = is_init[..., 0].repeat_interleave(n_agents, 0)  # [B N, T]
    # What a row begins with, and by resets goes on from: zeros but at its first step.
    states = rows.new_zeros(*rows.shape[:-1], rnn.weight_hh.shape[-1])
    if hidden is not None:
        going_on = ~resets[:, :1]
        states[:, 0] = torch.where(going_on, hidden.flatten(0, 1), states[:, 0])
    exact = torch.get_float32_matmul_precision() == "highest"
    hiddens, _ = _rnn_triton.gru_triton(
        rows,
        states,
        rnn.weight_ih,
        rnn.weight_hh,
        rnn.bias_ih,
        rnn.bias_hh,
        resets,
        input_precision="ieee" if exact else "tf32",
    )
    return hiddens.unflatten(0, (n_sequences, n_agents)).transpose(1, 2)
