"""Libraries of network kernels: their source, their loading, and when they serve."""

import ctypes
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from qmix_trl.native import build, store
from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.networks.layers import Layer, Linear, Norm
from qmix_trl.native.structures import c_struct

REALS = {
    torch.float32: "typedef float Real;",
    torch.float64: "typedef double Real;\n#define DOUBLE",
}
# Wider than in a compiled step, whose many values have to stay in registers.
WIDE = "#ifdef __AVX512F__\n#define W 16\n#endif"

Library = Callable[[torch.dtype], ctypes.CDLL]
_BUILDING = threading.Lock()


@runtime_checkable
class RunsInCpp(Protocol):
    """An agent or a mixer whose layers run in C++ on the CPU.

    Attributes:
        libraries: loaders of the libraries that its layers call.
    """

    libraries: tuple[Library, ...]


def serves(library: Library, *tensors: Tensor) -> bool:
    """Return whether a library computes with these tensors; if not, torch's operations do.

    torch's operations compute on other devices and dtypes, under ``torch.compile``, ``vmap`` and
    ``autocast``, and where the library cannot be built.
    """
    return eager(*tensors) and suit(*tensors) and missing(library, tensors[0].dtype) is None


def eager(*tensors: Tensor) -> bool:
    """Return whether tensors are computed with now: not traced, nor wrapped by ``vmap``."""
    return not torch.compiler.is_compiling() and all(map(_is_plain, tensors))


def suit(*tensors: Tensor) -> bool:
    """Return whether a library has these tensors' device and dtype, and no autocast changes it."""
    dtype = tensors[0].dtype
    return (
        dtype in REALS
        and not torch.is_autocast_enabled("cpu")
        and all(x.dtype == dtype and x.device.type == "cpu" for x in tensors)
    )


def _is_plain(x: Tensor) -> bool:
    """Return whether a tensor's numbers lie at its address."""
    return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__ and not (
        torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def why_not(parameters: Sequence[Tensor], *modules: nn.Module | None) -> str | None:
    """Return the reason why the layers of modules do not run in C++; None if they do.

    It builds the libraries that are not on disk. It does not look at ``torch.compile`` and
    ``autocast``, under which torch's operations compute.

    Args:
        parameters: of the modules, wherever they are held; float.
        *modules: agent and mixer, None for no mixer. Modules in them that are ``RunsInCpp`` need
            their libraries; all others run by torch's operations and need none.
    """
    for x in parameters:
        if x.device.type != "cpu":
            return f"the parameters are on {x.device}"
        if x.dtype not in REALS:
            return f"the parameters are {x.dtype}, not float32 or float64"
    parts = [part for module in modules if module is not None for part in module.modules()]
    needed = [x for part in parts if isinstance(part, RunsInCpp) for x in part.libraries]
    if not needed:
        return "no agent or mixer has layers in C++"
    for dtype in {x.dtype for x in parameters}:
        for library in needed:
            reason = missing(library, dtype)
            if reason is not None:
                return reason
    return None


def missing(library: Library, dtype: torch.dtype) -> str | None:
    """Return the reason why a library cannot be had; None if it can.

    A library that is not on disk is built, one at a time in all threads. A failed build is warned
    of once.
    """
    with _BUILDING:
        return _missing(library, dtype)


@cache
def _missing(library: Library, dtype: torch.dtype) -> str | None:
    try:
        library(dtype)
    except NoCompiler as error:
        return str(error)
    except BuildFailed as error:
        if not build.ends():
            warnings.warn(f"torch's operations serve, not layers in C++: {error}", stacklevel=2)
        return str(error)
    return None


def network_library(
    package: str,
    name: str,
    arguments: type[ctypes.Structure],
    *functions: str,
    dtype: torch.dtype = torch.float32,
) -> ctypes.CDLL:
    """Return the library of ``NAME.h``, from disk or newly built.

    Args:
        package: that holds the header.
        name: of the header, and of the library's folder.
        arguments: the structure that the header's functions read.
        *functions: of the header, which the library must have.
        dtype: float32 or float64, of ``Real``.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source, or the library cannot be kept or loaded.
    """
    return store.library(name, network_source(package, name, arguments, dtype), *functions)


def network_source(
    package: str, name: str, arguments: type[ctypes.Structure], dtype: torch.dtype
) -> str:
    """Return the source of ``network_library``: structures are printed, functions are headers.

    Args:
        package: as in ``network_library``.
        name: as in ``network_library``.
        arguments: as in ``network_library``.
        dtype: as in ``network_library``.
    """
    return "\n".join(
        [
            WIDE,
            store.header("qmix_trl.native", "simd.h"),
            REALS[dtype],
            c_struct(Linear),
            c_struct(Layer),
            c_struct(Norm),
            store.header(__package__, "networks.h"),
            c_struct(arguments),
            store.header(package, f"{name}.h"),
        ]
    )


def loader(name: str, arguments: type[ctypes.Structure]) -> Library:
    """Return a cached loader: dtype -> library of ``NAME.h`` with ``forward`` and ``backward``.

    Args:
        name: of a header of this package, which defines both functions.
        arguments: the structure that both functions read.
    """

    @cache
    def load(dtype: torch.dtype) -> ctypes.CDLL:
        loaded = network_library(__package__, name, arguments, "forward", "backward", dtype=dtype)
        for function in (loaded.forward, loaded.backward):
            function.argtypes, function.restype = [ctypes.POINTER(arguments)], None
        return loaded

    return load
