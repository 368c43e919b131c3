"""The compiled step as an engine: all environments' state in one matrix, one call for T steps."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.pool import FreshStates

LANES = 16  # the widest block of environments of any build
# Of ``Buffers``, in the order of ``Rollout``.
WRITTEN = (
    "action",
    "seen",
    "last_seen",
    "agent_reward",
    "reward",
    "terminated",
    "truncated",
    "done",
)
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Call(ctypes.Structure):
    """``Rollout`` of ``rollout.h``."""

    _fields_ = [
        *((name, _INT) for name in ("n_envs", "n_steps", "threads")),
        ("state", _POINTER),
        ("stride", _INT),
        *((name, _POINTER) for name in ("steps", "resets")),
        *((name, _INT) for name in ("max_steps", "reset_when_done")),
        ("pool", _POINTER),
        *((name, _INT) for name in ("pool_size", "seed", "number", "buffer_steps")),
        *((name, _POINTER) for name in WRITTEN),
    ]


class KernelEngine:
    """Steps environments by a library that ``build`` made.

    Args:
        library: the library's path.
        fresh: the pool that resets take from.
        max_steps: the time limit.
        seed: of the random numbers of steps.
    """

    name = "kernel"
    _STATE = ("state", "steps", "resets")

    def __init__(self, library: Path, fresh: FreshStates, max_steps: int, seed: int) -> None:
        self.fresh = fresh
        self.layout = fresh.step.layout
        self.max_steps = max_steps
        n_envs, n_rows = fresh.n_envs, len(fresh.step.numbers)
        stride = -(-n_envs // LANES) * LANES
        self._state = fresh.pool[:1, :n_rows].t().repeat(1, stride)  # [K, stride]
        self._steps = torch.zeros(n_envs, dtype=torch.int32)
        self._resets = torch.zeros(n_envs, dtype=torch.int32)
        self._seed, self._number = seed % 2**32, 0
        self._library = library
        self._link()

    def _link(self) -> None:
        """Load the library, and point it at this engine's tensors."""
        loaded = ctypes.CDLL(str(self._library))
        self._rollout, self._reset = loaded.rollout, loaded.reset
        self._rollout.argtypes = [ctypes.POINTER(Call)]
        self._reset.argtypes = [ctypes.POINTER(Call), _POINTER, _POINTER]
        self._rollout.restype = self._reset.restype = _INT
        self._one_step = ctypes.cast(loaded.one_step, _POINTER)
        self._call = Call(
            n_envs=self.fresh.n_envs,
            state=self._state.data_ptr(),
            stride=self._state.shape[1],
            steps=self._steps.data_ptr(),
            resets=self._resets.data_ptr(),
            max_steps=self.max_steps,
            pool=self.fresh.pool.data_ptr(),
            pool_size=len(self.fresh.pool),
        )

    def __getstate__(self) -> dict[str, Any]:
        linked = ("_rollout", "_reset", "_one_step", "_call")
        return {name: value for name, value in vars(self).items() if name not in linked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._link()

    def packed_state(self) -> Tensor:
        """Return the state, float32 [E, K]."""
        return self._state[:, : self.fresh.n_envs].t().contiguous()

    def jump(self, state: Tensor, key: Tensor) -> None:
        """Go on from a state [E, K], with the random numbers of a key [2] (``draws.py``)."""
        self._state[:, : self.fresh.n_envs] = state.t()
        self._seed, self._number = key.tolist()

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Begin environments anew.

        Args:
            mask: bool [E], which.
            seen: float [E, R] in one piece; what these see then is written there.

        Raises:
            ValueError: if ``seen`` is not in one piece.
        """
        if not seen.is_contiguous():
            raise ValueError(f"KernelEngine: expected seen in one piece, got {seen.stride()}")
        self.renew()
        mask = mask.contiguous()
        call = ctypes.byref(self._call)
        self.fresh.taken += self._reset(call, mask.data_ptr(), seen.data_ptr())

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of rows, by the actions that stand there."""
        call = self._prepared(buffers, t, n_steps, reset_when_done)  # may begin to count anew
        self.fresh.taken += self._rollout(call)
        self._number += n_steps

    def advance_by(
        self,
        act: Callable[[Any, Any], int],
        buffers: Buffers,
        t: int,
        n_steps: int,
        *,
        reset_when_done: bool,
    ) -> None:
        """Take steps ``t`` to ``t + n_steps`` of rows, by actions chosen on the way.

        Args:
            act: writes actions and takes the steps, for blocks of environments that begin at a
                multiple of ``LANES``; called with C pointers to ``one_step`` of ``rollout.h`` and
                to its ``Rollout``, it returns how many environments were reset.
            buffers: the rows.
            t: the first step.
            n_steps: how many.
            reset_when_done: an environment that is done is reset by itself.
        """
        call = self._prepared(buffers, t, n_steps, reset_when_done)
        self.fresh.taken += act(self._one_step, call)
        self._number += n_steps

    def _prepared(self, buffers: Buffers, t: int, n_steps: int, reset_when_done: bool) -> Any:
        """Return the pointer to a call of so many steps."""
        buffer_steps = buffers.action.shape[1]
        if t + n_steps > buffer_steps:
            raise ValueError(
                f"KernelEngine: expected rows of {t + n_steps} steps, got {buffer_steps}"
            )
        self.renew()
        call = self._call
        for name in WRITTEN:
            tensor = getattr(buffers, name)
            setattr(call, name, tensor.data_ptr() + t * tensor.stride(1) * tensor.element_size())
        call.buffer_steps = buffer_steps
        call.n_steps, call.reset_when_done = n_steps, reset_when_done
        call.threads = torch.get_num_threads()
        call.seed, call.number = self._seed, self._number
        return ctypes.byref(call)

    def renew(self) -> None:
        """Draw the pool anew if it is through."""
        if self.fresh.is_due():
            self.fresh.renew()
            self._resets.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return all that the next steps depend on."""
        tensors = {name: getattr(self, f"_{name}").clone() for name in self._STATE}
        key = torch.tensor([self._seed, self._number])
        return {**tensors, "key": key, **self.fresh.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        for name in self._STATE:
            getattr(self, f"_{name}").copy_(state[name])
        self._seed, self._number = state["key"].tolist()
        self.fresh.load_state(state)

    def seed(self, seed: int) -> None:
        """Begin other random streams."""
        self._seed, self._number = seed % 2**32, 0
        self.fresh.reseed(seed)
        self._resets.zero_()
