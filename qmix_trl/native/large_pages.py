"""Room for batches on large pages: a page that is new costs the kernel time, and these hold more.

A third of collection's time went into pages of 4 KiB.
"""

import ctypes
import mmap
import sys
from functools import cache

import torch
from torch import Tensor

PAGE = 2**21  # bytes; smaller tensors gain nothing


def empty(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return ``torch.empty``; on Linux, large pages are asked for where it is large."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    begin = -(-tensor.data_ptr() // PAGE) * PAGE
    size = (tensor.data_ptr() + tensor.nbytes - begin) // PAGE * PAGE
    if tensor.device.type == "cpu" and sys.platform == "linux" and size > 0:
        _libc().madvise(begin, size, mmap.MADV_HUGEPAGE)  # may be refused: then they are small
    return tensor


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
