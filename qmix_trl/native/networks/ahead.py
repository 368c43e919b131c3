"""Builds the libraries of network kernels in the background, so that a first run waits less."""

import threading

import torch

from qmix_trl.native.networks import dense, gru, mixer
from qmix_trl.native.networks.library import missing


def build_ahead() -> None:
    """Build, in a thread, the float32 libraries that are not on disk.

    The first update waits for the libraries that are not built by then. The end of the process does
    not: it kills the compiler.
    """

    def build() -> None:
        for kernel in (dense, gru, mixer):
            missing(kernel.library, torch.float32)

    threading.Thread(target=build, daemon=True).start()
