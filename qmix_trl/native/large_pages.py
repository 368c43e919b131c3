"""Memory for batches on large pages.

Each new page costs the operating system time: with pages of 4 KiB it was a third of collection.
"""

import ctypes
import mmap
import sys
from functools import cache

import torch
from torch import Tensor

PAGE = 2**21  # bytes of a large page


def empty(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return ``torch.empty``; on Linux, a large tensor on the CPU is placed on large pages."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    begin = -(-tensor.data_ptr() // PAGE) * PAGE
    size = (tensor.data_ptr() + tensor.nbytes - begin) // PAGE * PAGE
    if tensor.device.type == "cpu" and sys.platform == "linux" and size > 0:
        _libc().madvise(begin, size, mmap.MADV_HUGEPAGE)  # only advice: pages may stay small
    return tensor


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
