"""The random stream of one VMAS simulator, apart from the one that VMAS shares between all."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment.environment import Environment, local_seed


class VmasRandomStream:
    """The states of torch, NumPy and Python, and on a GPU of CUDA, from which a simulator draws.

    VMAS itself has one random stream for the whole process. The methods of its environment that
    a user calls draw from that one, whatever the generators of the process are. Here each
    simulator has a stream of its own, which takes the place of VMAS's while it draws.

    Args:
        seed: of the stream.
        device: of the simulator.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begin again from a seed."""
        self._states = [  # in the order of ``Environment.vmas_random_state``
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(seed).get_state(),
            random.Random(seed).getstate(),
        ]
        self._cuda = self._seeded_cuda(seed) if self._device.type == "cuda" else None

    def _seeded_cuda(self, seed: int) -> Tensor:
        return torch.Generator(self._device).manual_seed(seed).get_state()

    def get_state(self) -> dict[str, Tensor]:
        """Return the state as tensors, by names that begin with "random"."""
        torch_state, numpy_state, python_state = self._states
        _, words, *rest = numpy_state
        _, python_words, gauss = python_state
        state = {
            "random torch": torch_state,
            "random numpy words": torch.from_numpy(words.astype(np.int64)),
            "random numpy rest": torch.tensor(rest, dtype=torch.float64),
            "random python words": torch.tensor(python_words),
            "random python gauss": torch.tensor(
                [] if gauss is None else [gauss], dtype=torch.float64
            ),
        }
        return state if self._cuda is None else {**state, "random cuda": self._cuda}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``get_state`` returned; other names are left alone.

        A state saved on the CPU has no numbers of a GPU: a seed for them is drawn from it.
        """
        words = state["random numpy words"].numpy().astype(np.uint32)
        place, has_gauss, gauss = state["random numpy rest"].tolist()
        python_words = tuple(state["random python words"].tolist())
        python_gauss = state["random python gauss"].tolist()
        self._states = [
            state["random torch"].clone(),
            ("MT19937", words, int(place), int(has_gauss), gauss),
            (3, python_words, python_gauss[0] if python_gauss else None),
        ]
        if self._device.type == "cuda":
            self._cuda = self._cuda_state(state)

    def _cuda_state(self, state: Mapping[str, Tensor]) -> Tensor:
        if "random cuda" in state:
            return state["random cuda"].clone()
        generator = torch.Generator()
        generator.set_state(state["random torch"])
        return self._seeded_cuda(int(torch.randint(2**62, (), generator=generator)))

    @contextmanager
    def in_vmas(self) -> Iterator[None]:
        """Let VMAS's own methods draw from this stream within a ``with`` block."""
        shared = Environment.vmas_random_state
        outside, shared[:] = list(shared), self._states
        if self._cuda is not None:
            outside_cuda = torch.cuda.get_rng_state(self._device)
            torch.cuda.set_rng_state(self._cuda, self._device)
        try:
            yield
        finally:
            self._states, shared[:] = list(shared), outside
            if self._cuda is not None:
                self._cuda = torch.cuda.get_rng_state(self._device)
                torch.cuda.set_rng_state(outside_cuda, self._device)

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Let torch, NumPy and Python draw from this stream within a ``with`` block.

        This is for VMAS's inner methods, such as ``_reset``, which draw from whatever generators
        the process has.
        """
        with self.in_vmas(), local_seed(Environment.vmas_random_state):
            yield

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Let VMAS's own methods draw within a ``with`` block, and restore the stream after it."""
        before = self._states, self._cuda
        try:
            with self.in_vmas():
                yield
        finally:
            self._states, self._cuda = before
