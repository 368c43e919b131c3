"""Libraries that compute networks, and weights in the order in which they read them."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.store import header, library

ROWS_TOGETHER = 96  # enough for the weights, few for the cache
TILE = 12  # rows whose sums stay in registers; TILE of networks.h
DTYPES = (torch.float32, torch.float64)
LANES = 'extern "C" int64_t lanes() { return W; }  // how many outputs a panel has'
# Wider than in a step, whose many values have to stay in registers.
WIDE = "#ifdef __AVX512F__\n#define W 16\n#endif"


Library = Callable[[torch.dtype], ctypes.CDLL]


def serves(library: Library, *tensors: Tensor) -> bool:
    """Say whether a library takes these tensors; else torch's operations have to.

    They do for other devices and types, for what torch traces, maps or casts by itself, and where
    the library cannot be built (``missing``).
    """
    dtype = tensors[0].dtype
    return (
        dtype in DTYPES
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and all(x.dtype == dtype and x.device.type == "cpu" and _is_plain(x) for x in tensors)
        and missing(library, dtype) is None
    )


def _is_plain(x: Tensor) -> bool:
    """Say whether a tensor's numbers lie where it says."""
    return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__ and not (
        torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


@cache
def missing(library: Library, dtype: torch.dtype) -> str | None:
    """Return why a library cannot be had, None if it can."""
    try:
        library(dtype)
    except (NoCompiler, BuildFailed) as error:
        return str(error)
    return None


def network_library(name: str, source: str, dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """Return the library of a source that goes on from ``networks.h``.

    Args:
        name: what its folder's name begins with.
        source: C++.
        dtype: float32 or float64, of ``Real``.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source.
    """
    real = "#define DOUBLE" if dtype == torch.float64 else ""
    loaded = library(
        name,
        "\n".join(
            [
                real,
                WIDE,
                header("simd.h"),
                f"#define TILE {TILE}",
                header("networks.h"),
                source,
                LANES,
            ]
        ),
    )
    loaded.lanes.restype = ctypes.c_int64
    return loaded


class Linear(ctypes.Structure):
    """``Linear`` of ``networks.h``."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, lanes: int) -> "Linear":
        """Return a layer that holds copies of its weight [G, K, D] and bias [G, K].

        K is a multiple of the lanes; G is 1 where agents share their weights, else N.
        """
        _, n_outputs, n_inputs = weight.shape
        panels = weight.unflatten(1, (-1, lanes)).transpose(2, 3).contiguous()
        bias = bias.contiguous()
        layer = cls(panels.data_ptr(), bias.data_ptr(), n_inputs, n_outputs)
        layer.held = panels, bias
        return layer


def whole(n: int, of: int) -> int:
    """Return a number rounded up to a multiple of another."""
    return -(-n // of) * of


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    """Return where tensors lie; they have to be kept beside."""
    return (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


def array(layers: Sequence[Linear]) -> ctypes.Array:
    """Return layers one behind the other; what they hold has to be kept beside."""
    return (Linear * len(layers))(*layers)


def filled_weight(weight: Tensor, n_inputs: int, lanes: int) -> Tensor:
    """Return a weight [H, D] or [N, H, D] as [G, K, n_inputs], filled up with zeros."""
    *_, height, width = weight.shape
    filled = F.pad(weight.detach(), (0, n_inputs - width, 0, -height % lanes))
    return filled if filled.dim() == 3 else filled[None]


def filled_bias(bias: Tensor, lanes: int) -> Tensor:
    """Return a bias [H] or [N, H] as [G, K], filled up with zeros."""
    filled = F.pad(bias.detach(), (0, -bias.shape[-1] % lanes))
    return filled if filled.dim() == 2 else filled[None]
