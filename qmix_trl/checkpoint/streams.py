"""The random streams of a process: Python, NumPy, torch on all devices, and VMAS."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchrl.checkpoint import GlobalRNGState

VMAS = "vmas.simulator.environment.environment"


def random_state() -> dict[str, Any]:
    """Return the state of the process's random streams: TorchRL's dictionary, and "vmas".

    VMAS has one stream for all environments of a process that TorchRL's ``VmasEnv`` makes; those
    of this package have their own, which are part of their ``run_state``.
    """
    shared = _vmas_streams()
    of_vmas = None
    if shared is not None:
        of_torch, (kind, words, *rest), of_python = shared
        of_vmas = of_torch, (kind, torch.from_numpy(words.astype(np.int64)), *rest), of_python
    return {**GlobalRNGState().state_dict(), "vmas": of_vmas}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Continue the process's random streams from a dictionary that ``random_state`` returned.

    States of more GPUs than there are here are left out.
    """
    state = dict(state)
    shared, saved = _vmas_streams(), state.pop("vmas")
    of_gpus = state.pop("torch_cuda", [])[: torch.cuda.device_count()]
    if of_gpus:
        state["torch_cuda"] = of_gpus
    GlobalRNGState().load_state_dict(state)
    if shared is not None and saved is not None:
        of_torch, (kind, words, *rest), of_python = saved
        shared[:] = of_torch, (kind, words.numpy().astype(np.uint32), *rest), of_python


def _vmas_streams() -> list[Any] | None:
    """Return the list of states that VMAS keeps; None if VMAS is not imported."""
    module = sys.modules.get(VMAS)
    return None if module is None else module.Environment.vmas_random_state
