"""A GRU over sequences on CUDA devices, by TorchRL's Triton kernel: one launch for all steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The kernel of GRUModule(recurrent_backend="triton"), which itself has no dimension for agents.
from torchrl.modules.tensordict_module import _rnn_triton

KERNELS = ("_gru_fwd_kernel", "_gru_bwd_kernel")
# With 16 sequences a program and, from a hidden size of 64 on, tiles of 64 and 4 warps, each thread
# reads back the values that it wrote itself: the kernels have no barrier between the two.
BLOCK_B = 16


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
    pin_configurations()
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


@torch.compiler.assume_constant_result  # torch.compile calls it, instead of tracing into it
def pin_configurations() -> None:
    """Pin TorchRL's kernels, forward and backward, to one configuration for each hidden size.

    They are autotuned: at each new number of steps they compile and time up to 8 configurations
    each, 80 seconds of silence at the first update. All users of the kernels in this process get
    the same configuration, since TorchRL's autograd function launches the kernels of its module.
    """
    for kernel in (vars(_rnn_triton).get(name) for name in KERNELS):
        # Another version of TorchRL may name or choose otherwise: there it autotunes.
        prune = None if kernel is None else kernel.early_config_prune
        if prune is not None and not isinstance(prune, OneConfiguration):
            kernel.early_config_prune = OneConfiguration(prune)


@dataclass(frozen=True)
class OneConfiguration:
    """Reduces a kernel's configurations to the one of ``BLOCK_B`` sequences with the widest tile.

    Where none has ``BLOCK_B`` sequences, as from a hidden size of 256 on, all that fit remain.

    Attributes:
        fitting: returns the configurations that fit a call, out of all of the kernel's.
    """

    fitting: Callable[..., list]

    def __call__(self, configs: list, named_args: dict[str, Any], **kwargs: Any) -> list:
        fitting = self.fitting(configs, named_args, **kwargs)
        pinned = [c for c in fitting if c.kwargs.get("BLOCK_B") == BLOCK_B]
        return [max(pinned, key=lambda c: c.kwargs["BLOCK_K"])] if pinned else fitting
