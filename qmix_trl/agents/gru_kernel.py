"""A GRU over sequences on the CPU, forward and back, as one call each."""

import ctypes
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks import Linear, filled_bias, filled_weight, network_library

ROWS_TOGETHER = 96  # enough for the weights, few for the cache
TILE = 12  # of networks.h
DTYPES = (torch.float32, torch.float64)
SAVED = ("before", "reset", "update", "fresh", "share")
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Sequences(ctypes.Structure):
    """``Sequences`` of ``gru.h``."""

    _fields_ = [
        *((name, _INT) for name in ("n_sequences", "n_steps", "n_agents", "width")),
        *((name, _INT) for name in ("n_groups", "block", "threads")),
        ("recurrent", ctypes.POINTER(Linear)),
        *((name, _POINTER) for name in ("is_init", "first", "gates", "hidden", *SAVED)),
        *((name, _POINTER) for name in ("grad_hidden", "grad_gates", "grad_share", "grad_first")),
    ]


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the library of a type of numbers, from disk or newly built.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source.
    """
    loaded = network_library("gru", files(__package__).joinpath("gru.h").read_text(), dtype)
    for function in (loaded.forward, loaded.backward):
        function.argtypes, function.restype = [ctypes.POINTER(Sequences)], None
    return loaded


@cache
def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why there is no library for such numbers, None if there is."""
    if device.type != "cpu" or dtype not in DTYPES:
        return f"there is none for {dtype} on {device.type}"
    try:
        library(dtype)
    except (NoCompiler, BuildFailed) as error:
        return str(error)
    return None


@torch.compiler.disable
def unroll(
    gates: Tensor, is_init: Tensor, hidden: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """Return hidden states, as ``gru.unroll_by_steps``."""
    inputs = (gates, is_init, hidden, weight, bias)
    learns = any(x is not None and x.requires_grad for x in inputs)
    if learns and torch.is_grad_enabled():
        return Unroll.apply(*inputs)
    return _forward(*inputs, saved=None)


class Unroll(torch.autograd.Function):
    """``unroll`` with its gradient."""

    @staticmethod
    def forward(ctx, gates, is_init, hidden, weight, bias):
        """Keep each step's gates for the way back."""
        saved = empty(len(SAVED), *gates.shape[:-1], weight.shape[-1], dtype=gates.dtype)
        ctx.save_for_backward(saved, is_init, weight)
        return _forward(gates, is_init, hidden, weight, bias, saved=saved)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_hidden):
        """Go back in time; the weights' gradient is one product over all steps."""
        saved, is_init, weight = ctx.saved_tensors
        grad_gates, grad_share, grad_first = _backward(saved, is_init, weight, grad_hidden)
        before = saved[0]
        width = before.shape[-1]
        grad_weight, grad_bias = [], []
        for grad in (grad_gates[..., : 2 * width], grad_share):
            grad_weight.append(_weight_grad(grad, before, weight.dim() == 2))
            grad_bias.append(grad.sum((0, 1, 2) if weight.dim() == 2 else (0, 1)))
        return (
            grad_gates,
            None,
            grad_first if ctx.needs_input_grad[2] else None,
            torch.cat(grad_weight, -2),
            torch.cat(grad_bias, -1),
        )


def _weight_grad(grad: Tensor, before: Tensor, shared: bool) -> Tensor:
    """Return the gradient [K, H] or [N, K, H] from one [B, T, N, K] of outputs."""
    if shared:
        return grad.reshape(-1, grad.shape[-1]).T @ before.reshape(-1, before.shape[-1])
    return torch.einsum("btnk,btnh->nkh", grad, before)


def _forward(
    gates: Tensor,
    is_init: Tensor,
    hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    saved: Tensor | None,
) -> Tensor:
    lanes = library(gates.dtype).lanes()
    n_groups, width = _groups(weight), weight.shape[-1]
    filled = -(-width // lanes) * lanes
    parts = [filled_weight(part, filled, lanes) for part in weight.split(width, -2)]
    biases = [filled_bias(part, lanes) for part in bias.split(width, -1)]
    recurrent = Linear.of(torch.cat(parts, -2), torch.cat(biases, -1), lanes)
    hiddens = empty(*gates.shape[:-1], width, dtype=gates.dtype)
    tensors = {"is_init": is_init, "first": hidden, "gates": gates, "hidden": hiddens}
    if saved is not None:
        tensors |= dict(zip(SAVED, saved, strict=True))
    _call("forward", recurrent, n_groups, tensors)
    return hiddens


def _backward(
    saved: Tensor, is_init: Tensor, weight: Tensor, grad_hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    lanes = library(saved.dtype).lanes()
    width = weight.shape[-1]
    filled = -(-width // lanes) * lanes
    parts = [filled_weight(part.mT, filled, lanes) for part in weight.split(width, -2)]
    zero = weight.new_zeros(parts[0].shape[:2])
    recurrent = Linear.of(torch.cat(parts, -1), zero, lanes)
    shape, dtype = grad_hidden.shape, grad_hidden.dtype
    grads = {
        "grad_gates": empty(*shape[:-1], 3 * width, dtype=dtype),
        "grad_share": empty(*shape, dtype=dtype),
        "grad_first": empty(shape[0], *shape[2:], dtype=dtype),
    }
    tensors = dict(zip(SAVED, saved, strict=True)) | grads
    tensors |= {"is_init": is_init, "hidden": saved[0], "grad_hidden": grad_hidden}
    _call("backward", recurrent, _groups(weight), tensors)
    return tuple(grads.values())


def _groups(weight: Tensor) -> int:
    return 1 if weight.dim() == 2 else len(weight)


def _call(name: str, recurrent: Linear, n_groups: int, tensors: dict[str, Tensor | None]) -> None:
    """Call a function of the library; what is not contiguous is copied."""
    n_sequences, n_steps, n_agents, width = tensors["hidden"].shape
    threads = torch.get_num_threads()
    rows = n_sequences * n_agents // n_groups
    share = -(-rows * n_groups // (threads * TILE)) * TILE  # of each thread
    held = {key: None if x is None else x.contiguous() for key, x in tensors.items()}
    arguments = Sequences(
        n_sequences=n_sequences,
        n_steps=n_steps,
        n_agents=n_agents,
        width=width,
        n_groups=n_groups,
        block=min(share, ROWS_TOGETHER),
        threads=threads,
        recurrent=ctypes.pointer(recurrent),
        **{key: None if x is None else x.data_ptr() for key, x in held.items()},
    )
    getattr(library(tensors["hidden"].dtype), name)(ctypes.byref(arguments))
