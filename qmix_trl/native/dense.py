"""Linear layers with ReLUs between them on the CPU, forward and back, as one call each.

A block of rows goes through all layers while it is in the cache, with its gradients on the way
back.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks import (
    ROWS_TOGETHER,
    TILE,
    Linear,
    array,
    filled_bias,
    filled_weight,
    network_library,
    pointers,
    whole,
)

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Dense(ctypes.Structure):
    """``Dense`` of ``dense.h``."""

    _fields_ = [
        *((name, _INT) for name in ("n_rows", "n_groups", "n_layers", "block", "threads", "width")),
        ("sizes", ctypes.POINTER(_INT)),
        ("layers", ctypes.POINTER(Linear)),
        ("inputs", ctypes.POINTER(_POINTER)),
        ("outputs", ctypes.POINTER(_POINTER)),
        ("grad_output", _POINTER),
        ("grad_input", _POINTER),
        ("grads", ctypes.POINTER(_POINTER)),
    ]


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the library of a type of numbers, from disk or newly built.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source.
    """
    loaded = network_library("dense", files(__package__).joinpath("dense.h").read_text(), dtype)
    for function in (loaded.forward, loaded.backward):
        function.argtypes, function.restype = [ctypes.POINTER(Dense)], None
    return loaded


def forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, keep: bool
) -> list[Tensor]:
    """Return the outputs of all layers, with ``keep``; else of the last one alone.

    Args:
        x: float [R, D], contiguous; rows of N agents in turn where each has its own weights.
        weights: of each layer, [H, D], or [N, H, D].
        biases: [H] or [N, H].
        keep: hidden layers' outputs, behind their ReLUs, are kept for the way back.

    Returns:
        float [R, H] each.
    """
    lanes = library(x.dtype).lanes()
    layers, n = [], x.shape[-1]
    for weight, bias in zip(weights, biases, strict=True):
        layers.append(Linear.of(filled_weight(weight, n, lanes), filled_bias(bias, lanes), lanes))
        n = layers[-1].outputs
    made = [empty(len(x), weight.shape[-2], dtype=x.dtype) for weight in weights[not keep and -1 :]]
    outputs = [None] * (len(weights) - len(made)) + made
    call = _call(x.dtype, [x], weights, layers)
    call.outputs = pointers(outputs)
    library(x.dtype).forward(ctypes.byref(call))
    return made


def backward(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grad_output: Tensor,
    *,
    of_input: bool,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Return the gradients of the input, if wanted, of weights and of biases.

    Args:
        inputs: what each layer read, float [R, D], contiguous.
        weights: as in ``forward``.
        grad_output: float [R, H] of the last layer, contiguous.
        of_input: the input's gradient is wanted.
    """
    dtype = grad_output.dtype
    lanes = library(dtype).lanes()
    layers = []
    for weight in weights:
        back = filled_weight(weight.mT, whole(weight.shape[-2], lanes), lanes)
        layers.append(Linear.of(back, back.new_zeros(back.shape[:2]), lanes))
    call = _call(dtype, inputs, weights, layers)
    sums = [
        torch.zeros(
            call.threads,
            call.n_groups,
            whole(weight.shape[-1] + 1, TILE),
            whole(weight.shape[-2], lanes),
            dtype=dtype,
        )
        for weight in weights
    ]
    grad_input = empty(*inputs[0].shape, dtype=dtype) if of_input else None
    call.grads = pointers(sums)
    call.grad_output = grad_output.data_ptr()
    call.grad_input = None if grad_input is None else grad_input.data_ptr()
    library(dtype).backward(ctypes.byref(call))
    grad_weights, grad_biases = [], []
    for weight, of_threads in zip(weights, sums, strict=True):
        total = of_threads.sum(0)[..., : weight.shape[-2]]  # [G, D + 1 .., H]
        n = weight.shape[-1]
        grad_weights.append(total[:, :n].mT.reshape(weight.shape))
        grad_biases.append(total[:, n].reshape(weight.shape[:-1]))
    return grad_input, grad_weights, grad_biases


def _call(
    dtype: torch.dtype,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    layers: Sequence[Linear],
) -> Dense:
    """Return the arguments that both ways have in common; what they point at has to be kept."""
    sizes = [weights[0].shape[-1], *(weight.shape[-2] for weight in weights)]
    lanes = library(dtype).lanes()
    n_groups = 1 if weights[0].dim() == 2 else len(weights[0])
    threads = torch.get_num_threads()
    share = whole(-(-len(inputs[0]) // (n_groups * threads)), TILE)
    call = Dense(
        n_rows=len(inputs[0]),
        n_groups=n_groups,
        n_layers=len(weights),
        block=min(share, ROWS_TOGETHER),
        threads=threads,
        width=max(max(whole(size + 1, TILE), whole(size, lanes)) for size in sizes),
        sizes=(_INT * len(sizes))(*sizes),
        layers=array(layers),
        inputs=pointers(inputs),
    )
    call.held = layers
    return call
