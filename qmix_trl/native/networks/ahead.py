"""Libraries of updates built while something else is done, so that a first run waits less."""

import threading

import torch

from qmix_trl.native.networks import dense, gru, mixer
from qmix_trl.native.networks.library import missing


def build_ahead() -> None:
    """Begin to build, in a thread, what is not on disk; the first update waits for the rest."""

    def build() -> None:
        for part in (dense, gru, mixer):
            missing(part.library, torch.float32)

    threading.Thread(target=build).start()
