"""Linear layers with ReLUs between them on the CPU, forward and back, as one call each.

A block of rows goes through all layers while it is in the cache, with its gradients on the way
back.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.library import Layer, Layers, both_ways, pointers

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Dense(ctypes.Structure):
    """``Dense`` of ``dense.h``."""

    _fields_ = [
        *((name, _INT) for name in ("n_rows", "n_groups", "n_layers", "threads")),
        ("layers", ctypes.POINTER(Layer)),
        ("inputs", ctypes.POINTER(_POINTER)),
        ("outputs", ctypes.POINTER(_POINTER)),
        ("grad_output", _POINTER),
        ("grad_input", _POINTER),
    ]


library = both_ways("dense", Dense)


def forward(x: Tensor, parameters: Sequence[Tensor], *, keep: bool) -> list[Tensor]:
    """Return the outputs of all layers, with ``keep``; else of the last one alone.

    Args:
        x: float [R, D], contiguous; rows of N agents in turn where each has its own weights.
        parameters: weight and bias of each layer in turn, [H, D] and [H], or [N, H, D] and [N, H].
        keep: hidden layers' outputs, behind their ReLUs, are kept for the way back.

    Returns:
        float [R, H] each.
    """
    weights = parameters[::2]
    made = [empty(len(x), weight.shape[-2], dtype=x.dtype) for weight in weights[not keep and -1 :]]
    outputs = [None] * (len(weights) - len(made)) + made
    layers = Layers(parameters, back=False)
    call = _call([x], layers)
    call.outputs = pointers(outputs)
    library(x.dtype).forward(ctypes.byref(call))
    return made


def backward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    grad_output: Tensor,
    *,
    of_input: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradients of the input, if wanted, and of the parameters.

    Args:
        inputs: what each layer read, float [R, D], contiguous.
        parameters: as in ``forward``.
        grad_output: float [R, H] of the last layer, contiguous.
        of_input: the input's gradient is wanted.
    """
    layers = Layers(parameters, back=True)
    call = _call(inputs, layers)
    grad_input = empty(*inputs[0].shape, dtype=grad_output.dtype) if of_input else None
    call.grad_output = grad_output.data_ptr()
    call.grad_input = None if grad_input is None else grad_input.data_ptr()
    library(grad_output.dtype).backward(ctypes.byref(call))
    return grad_input, layers.gradients


def _call(inputs: Sequence[Tensor], layers: Layers) -> Dense:
    """Return the arguments that both ways have in common; what they point at is kept elsewhere."""
    return Dense(
        n_rows=len(inputs[0]),
        n_groups=layers.n_groups,
        n_layers=len(layers.pointer),
        threads=torch.get_num_threads(),
        layers=layers.pointer,
        inputs=pointers(inputs),
    )
