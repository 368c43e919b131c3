"""Libraries that compute networks, and what they are called with."""

import ctypes
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.store import header, library

DTYPES = (torch.float32, torch.float64)
# Wider than in a step, whose many values have to stay in registers.
WIDE = "#ifdef __AVX512F__\n#define W 16\n#endif"


_BUILDING = threading.Lock()
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


def missing(library: Library, dtype: torch.dtype) -> str | None:
    """Return why a library cannot be had, None if it can; one is built at a time."""
    with _BUILDING:
        return _missing(library, dtype)


@cache
def _missing(library: Library, dtype: torch.dtype) -> str | None:
    try:
        library(dtype)
    except NoCompiler as error:
        return str(error)
    except BuildFailed as error:
        warnings.warn(f"torch's operations serve, not layers in C++: {error}", stacklevel=2)
        return str(error)
    return None


def why_not(parameters) -> str | None:
    for p in parameters:
        if p.dtype not in DTYPES or p.device.type != "cpu":
            return f"the parameters are {p.dtype} on {p.device}"
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
    texts = [
        real,
        WIDE,
        header("qmix_trl.native", "simd.h"),
        header(__package__, "networks.h"),
        source,
    ]
    return library(name, "\n".join(texts))


def both_ways(name: str, arguments: type[ctypes.Structure]) -> Library:
    """Return what gives the library of ``NAME.h``, from disk or newly built, by type of numbers.

    Args:
        name: of the header in this package; it defines ``forward`` and ``backward``.
        arguments: what both point at.
    """

    @cache
    def library(dtype: torch.dtype) -> ctypes.CDLL:
        loaded = network_library(name, header(__package__, f"{name}.h"), dtype)
        for function in (loaded.forward, loaded.backward):
            function.argtypes, function.restype = [ctypes.POINTER(arguments)], None
        return loaded

    return library


class Layer(ctypes.Structure):
    """``Layer`` of ``networks.h``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("grad_weight", "grad_bias")),
    ]


class Layers:
    """Layers for a library, with what they hold kept beside.

    Args:
        parameters: weight [H, D] or [N, H, D] and bias [H] or [N, H] of each layer in turn.
        back: whether there will be gradients.

    Attributes:
        pointer: to the layers.
        n_groups: how many sets of weights there are: 1, shared, or N.
        dtype: of all numbers.
        gradients: of the parameters, to be written by the library; empty without ``back``.
    """

    def __init__(self, parameters: Sequence[Tensor], *, back: bool) -> None:
        self._held = [x.detach().contiguous() for x in parameters]
        self.gradients = [torch.empty_like(x) for x in self._held] if back else []
        layers = []
        for i in range(0, len(self._held), 2):
            weight, bias = self._held[i : i + 2]
            grads = (x.data_ptr() for x in self.gradients[i : i + 2])
            outputs, inputs = weight.shape[-2:]
            layers.append(Layer(weight.data_ptr(), bias.data_ptr(), inputs, outputs, *grads))
        first = self._held[0]
        self.n_groups, self.dtype = 1 if first.dim() == 2 else len(first), first.dtype
        self.pointer = (Layer * len(layers))(*layers)


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    """Return where tensors lie; they have to be kept beside."""
    return (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))
