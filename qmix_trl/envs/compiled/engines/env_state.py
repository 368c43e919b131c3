"""The state of a compiled engine's environments, in one format for all engines."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.pool import FreshStates


class ExactSum:
    """The present sum of a tensor on the CPU, under the interface of ``LateSum``.

    Args:
        x: an integer tensor that changes in place.
    """

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def take(self) -> None:
        """Do nothing: a sum on the CPU is not queued."""

    def value(self) -> int:
        """Return the sum of the present numbers."""
        return int(self._x.sum())


class LateSum:
    """The sum of a tensor on a GPU as it was when ``take`` was called.

    To read it waits for the work that was queued before ``take``, not for the work since.

    Args:
        x: an integer tensor that changes in place.
    """

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._sum = torch.zeros((), dtype=torch.int64, pin_memory=True)
        self._copied = torch.cuda.Event()
        self.take()

    def take(self) -> None:
        """Queue the computation of the sum."""
        with torch.cuda.device_of(self._x):  # an event is recorded on the current device
            self._sum.copy_(self._x.sum(), non_blocking=True)
            self._copied.record()

    def value(self) -> int:
        """Return the last sum that was queued."""
        self._copied.synchronize()
        return int(self._sum)


class EnvState:
    """The state of E environments: packed numbers, counters, random numbers and fresh states.

    All tensors keep their places, so that C++ and CUDA graphs may hold their addresses.

    Args:
        fresh: the pool that resets take states from.
        seed: of the random numbers of steps.
        packed: float32 [E, K], the packed state to begin with; a view of the engine's memory.

    Attributes:
        fresh: the pool.
        packed: float32 [E, K], the packed state.
        steps: int32 [E], since each environment's last reset.
        resets: int32 [E], since the pool was drawn.
        key: int64 [2], the seed and the number of the next step (``draws.py``).
    """

    def __init__(self, fresh: FreshStates, seed: int, packed: Tensor) -> None:
        self.fresh = fresh
        self.packed = packed
        self.steps = torch.zeros(fresh.n_envs, dtype=torch.int32, device=packed.device)
        self.resets = torch.zeros_like(self.steps)
        self.key = torch.tensor([seed % 2**32, 0], device=packed.device)
        carried = fresh.step.carried_columns
        self._from_pool = torch.tensor(
            [k not in carried for k in range(packed.shape[1])], device=packed.device
        )
        self._taken = (LateSum if packed.is_cuda else ExactSum)(self.resets)

    @property
    def refusal(self) -> str | None:
        """Why the compiled step does not serve the pool's next states; None if it does."""
        return self.fresh.refusal

    def packed_state(self) -> Tensor:
        """Return a copy of the packed state, float32 [E, K]."""
        return self.packed.clone(memory_format=torch.contiguous_format)

    def jump(self, packed: Tensor, key: Tensor) -> None:
        """Continue from a packed state float32 [E, K] with a key int64 [2]."""
        self.packed.copy_(packed)
        self.key.copy_(key)

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments from the pool, for engines without a kernel of their own for it.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R]; their new observations and states are written to it.
        """
        self.renew()
        states = self.fresh.states_for(self.resets.long())  # [E, K + R]
        n_numbers, chosen = self.packed.shape[1], mask[:, None]
        from_pool = chosen & self._from_pool  # [E, K]
        self.packed.copy_(torch.where(from_pool, states[:, :n_numbers], self.packed))
        seen.copy_(torch.where(chosen, states[:, n_numbers:], seen))
        self.steps.masked_fill_(mask, 0)
        self.resets += mask

    def renew(self) -> None:
        """Refill the pool if its states are used up.

        On a GPU this counts the resets before the previous call: to count all of them would wait
        for the steps since then. So the pool is refilled one call later than on the CPU.
        """
        self.fresh.taken = self._taken.value()
        if self.fresh.is_due():
            self.fresh.renew()
            self.resets.zero_()
        self._taken.take()

    def seed(self, seed: int) -> None:
        """Restart the random numbers of steps and of the pool from a seed, with a new pool."""
        self.key.copy_(torch.tensor([seed % 2**32, 0]))
        self.fresh.reseed(seed)
        self.resets.zero_()
        self._taken.take()

    @property
    def _tensors(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in ("steps", "resets", "key")}
        return {"packed_state": self.packed, **own, "pool": self.fresh.pool}

    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors that later steps depend on, the same names on each engine.

        Returns:
            ``packed_state`` float32 [E, K], ``steps`` and ``resets`` int32 [E], ``key`` int64 [2],
            ``pool`` float32 [P, K + R], and the random state of the pool (``random ...``).
        """
        copies = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in self._tensors.items()
        }
        return {**copies, **self.fresh.simulation.random_stream.get_state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``state`` of an engine with the same numbers returned.

        Raises:
            ValueError: if a tensor is missing or has another shape, as for other engines.
        """
        for name, tensor in self._tensors.items():
            found = state.get(name)
            if found is None or found.shape != tensor.shape:
                raise ValueError(
                    f"EnvState.load_state: expected {name!r} of shape {tuple(tensor.shape)}, got "
                    f"{None if found is None else tuple(found.shape)}; load a state of the same "
                    "task, number of environments and engine"
                )
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])
        self.fresh.taken = int(self.resets.sum())
        self._taken.take()
        self.fresh.simulation.random_stream.set_state(state)
