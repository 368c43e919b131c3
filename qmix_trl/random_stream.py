"""A random stream that travels: copies, processes and devices continue it or begin their own."""

import hashlib
import sys
from multiprocessing import current_process
from typing import Any

import torch
from torch import Tensor


class RandomStream:
    """The random numbers of a policy: a generator of its own, or torch's global one.

    A copy has the same state. Only a copy in another process, such as the worker of a collector,
    gets a state of its own, drawn from the state and the name of the process, so that no two
    workers draw the same numbers.

    Args:
        seed: of an own generator; None for the global one of the process.
        device: of the numbers.

    Attributes:
        generator: the own generator; None for the global one.
    """

    def __init__(self, seed: int | None, device: torch.device | str) -> None:
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def get_state(self) -> Tensor:
        """Return the generator's state, uint8; it is empty for the global generator."""
        if self.generator is None:
            return torch.empty(0, dtype=torch.uint8)
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Continue from a state that ``get_state`` returned.

        Raises:
            ValueError: if it is of an own generator and this is the global one, or the reverse.
        """
        if (self.generator is None) != (len(state) == 0):
            kinds = ("a seed", "seed=None") if self.generator is None else ("seed=None", "a seed")
            raise ValueError(
                f"random state: expected one of a module with {kinds[1]}, got one of a module with "
                f"{kinds[0]}; make both alike"
            )
        if self.generator is not None:
            self.generator.set_state(state.cpu())

    def move_to(self, device: torch.device) -> None:
        """Draw on another device from now on, from a state of its own there."""
        if self.generator is not None and self.generator.device.type != device.type:
            self._begin(device, device.type)

    def _begin(self, device: torch.device, place: str) -> None:
        """Begin a generator whose seed is drawn from the present state and a place."""
        state = self.get_state().numpy().tobytes()
        seed = hashlib.sha256(state + place.encode()).digest()[:8]
        self.generator = torch.Generator(device).manual_seed(int.from_bytes(seed, "big") >> 1)

    def __getstate__(self) -> dict[str, Any]:
        # Bytes: a generator or a tensor of its state cannot be sent to a process that is spawned.
        own = {} if self.generator is None else {"device": self.generator.device}
        return {
            **own,
            "state": self.get_state().numpy().tobytes(),
            "process": process_name(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.generator = None
        if "device" not in state:
            return
        self.generator = torch.Generator(state["device"])
        self.set_state(torch.frombuffer(bytearray(state["state"]), dtype=torch.uint8))
        place = process_name()
        if place != state["process"]:
            self._begin(state["device"], place)


def process_name() -> str:
    """Return a name of this process that no other process of a run has.

    All actors of Ray are called "MainProcess", so that an actor is named by its number.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        actor = ray.get_runtime_context().get_actor_id()
        if actor is not None:
            return actor
    return current_process().name
