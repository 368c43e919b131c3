"""Linear layers with ReLUs between them on the CPU: one call of C++ forward, one backward.

A block of samples goes through all layers while it is in the cache, and so do its gradients.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.layers import (
    INT,
    READ,
    WRITTEN,
    Layer,
    Layers,
    Norm,
    Norms,
    pointers,
)
from qmix_trl.native.networks.library import loader


class Dense(ctypes.Structure):
    """The arguments of ``dense.h``."""

    _fields_ = [
        ("n_samples", INT),
        ("n_groups", INT),  # sample s has the weights of group s % n_groups
        ("n_layers", INT),
        ("threads", INT),
        ("layers", ctypes.POINTER(Layer)),  # [n_layers]
        ("norms", ctypes.POINTER(Norm)),  # [n_layers - 1], before the ReLUs; null: none
        ("inputs", ctypes.POINTER(READ)),  # [n_layers] of [n_samples, inputs], of each layer
        ("outputs", ctypes.POINTER(WRITTEN)),  # [n_layers] of [n_samples, outputs]; null: not kept
        ("sums", ctypes.POINTER(WRITTEN)),  # [n_layers - 1], inputs of norms; null: not kept
        ("grad_output", READ),  # [n_samples, outputs of the last layer]
        ("grad_input", WRITTEN),  # [n_samples, inputs of the first layer]; null: not wanted
    ]


library = loader("dense", Dense)


def forward(
    x: Tensor, parameters: Sequence[Tensor], norms: Sequence[Tensor] = (), *, keep: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of all layers with ``keep``, else only of the last one; and norms' inputs.

    Args:
        x: float [samples, D], contiguous. Where each agent has its own weights, sample s is of
            agent s % N.
        parameters: weight and bias of the first layer, then of the next: [H, D] and [H], or
            [N, H, D] and [N, H].
        norms: scale and shift of the layer norm of each layer but the last: [H], or [N, H]; empty
            for none.
        keep: outputs of the hidden layers, after their ReLUs, and the inputs of norms are kept for
            ``backward``.

    Returns:
        float [samples, H] for each layer, and float [samples, H] for each norm.
    """
    weights = parameters[::2]

    def empty_outputs(of: Sequence[Tensor]) -> list[Tensor]:
        return [empty(len(x), weight.shape[-2], dtype=x.dtype) for weight in of]

    outputs = empty_outputs(weights if keep else weights[-1:])
    sums = empty_outputs(weights[:-1]) if keep and norms else []
    layers = Layers(parameters, with_gradients=False)
    held = Norms(norms, with_gradients=False)
    call = _call([x], layers, held)
    call.outputs = pointers([*[None] * (len(weights) - len(outputs)), *outputs], WRITTEN)
    call.sums = pointers(sums or [None] * len(weights), WRITTEN)
    library(x.dtype).forward(ctypes.byref(call))
    return outputs, sums


def backward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    norms: Sequence[Tensor],
    sums: Sequence[Tensor],
    grad_output: Tensor,
    *,
    of_input: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradients of the input, or None, and of all parameters, of layers, then of norms.

    Args:
        inputs: of each layer, float [samples, D], contiguous.
        parameters: as in ``forward``.
        norms: as in ``forward``.
        sums: the inputs of norms, as ``forward`` returns them.
        grad_output: float [samples, H] of the last layer, contiguous.
        of_input: the gradient of the input is wanted.
    """
    layers = Layers(parameters, with_gradients=True)
    held = Norms(norms, with_gradients=True)
    call = _call(inputs, layers, held)
    grad_input = empty(*inputs[0].shape, dtype=grad_output.dtype) if of_input else None
    call.sums = pointers(sums, WRITTEN)
    call.grad_output = grad_output.data_ptr()
    call.grad_input = None if grad_input is None else grad_input.data_ptr()
    library(grad_output.dtype).backward(ctypes.byref(call))
    return grad_input, [*layers.gradients, *held.gradients]


def _call(inputs: Sequence[Tensor], layers: Layers, norms: Norms) -> Dense:
    """Return the arguments that both functions read; the caller keeps the tensors."""
    call = Dense(
        n_samples=len(inputs[0]),
        n_groups=layers.n_groups,
        n_layers=len(layers.array),
        threads=torch.get_num_threads(),
        layers=layers.array,
        inputs=pointers(inputs, READ),
    )
    if norms.array is not None:
        call.norms = norms.array
    return call
