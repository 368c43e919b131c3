"""The C++ engine: one call of the compiled step's library takes T steps of all environments."""

import ctypes
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from qmix_trl.chosen import CPP_LOOP
from qmix_trl.envs.compiled.codegen.rollout import BUFFERS, Rollout
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.env_state import EnvState
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.native.built_file import BuiltFile, load

LANES = 16  # environments of the widest blocks that a library may have


def blocks_of_lanes(fresh: FreshStates) -> Tensor:
    """Return memory for the packed state, float32 [K, stride]: E filled up to a multiple of lanes.

    Those that fill up begin with the pool's first state.
    """
    stride = -(-fresh.n_envs // LANES) * LANES
    blocks = fresh.pool[:1, : len(fresh.step.numbers)].t().repeat(1, stride)
    blocks[:, : fresh.n_envs] = fresh.first_states().t()
    return blocks


class KernelEngine:
    """Steps environments by a compiled library.

    Args:
        library: the built library.
        fresh: the pool that resets take states from.
        max_steps: the time limit in steps.
        seed: of the random numbers of steps.
    """

    compiled_loop = CPP_LOOP

    def __init__(self, library: BuiltFile, fresh: FreshStates, max_steps: int, seed: int) -> None:
        self.fresh = fresh
        self.layout = fresh.step.layout
        self.max_steps = max_steps
        self._blocks = blocks_of_lanes(fresh)  # [K, stride]
        self.env_state = EnvState(fresh, seed, self._blocks[:, : fresh.n_envs].t())
        self._library = library
        self._link()

    def _link(self) -> None:
        """Load the library, and prepare a call with the addresses of this engine's tensors."""
        loaded = load(self._library, "rollout", "reset", "one_step")
        self._rollout, self._reset = loaded.rollout, loaded.reset
        self._rollout.argtypes = [ctypes.POINTER(Rollout)]
        self._reset.argtypes = [ctypes.POINTER(Rollout), ctypes.c_void_p, ctypes.c_void_p]
        self._rollout.restype = self._reset.restype = ctypes.c_int64
        self._one_step = ctypes.cast(loaded.one_step, ctypes.c_void_p)
        state = self.env_state
        self._key = state.key.numpy()  # the same memory: NumPy counts faster than torch
        self._call = Rollout(
            n_envs=self.fresh.n_envs,
            state=self._blocks.data_ptr(),
            stride=self._blocks.shape[1],
            steps=state.steps.data_ptr(),
            resets=state.resets.data_ptr(),
            key=state.key.data_ptr(),
            max_steps=self.max_steps,
            pool=self.fresh.pool.data_ptr(),
            pool_size=len(self.fresh.pool),
        )

    def __getstate__(self) -> dict[str, Any]:
        linked = ("_rollout", "_reset", "_one_step", "_call", "_key")
        return {name: value for name, value in vars(self).items() if name not in linked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # Pickle copies a view as a tensor of its own.
        self.env_state.packed = self._blocks[:, : self.fresh.n_envs].t()
        self._link()

    def twin(self) -> "KernelEngine":
        """Return an engine of the same library with its own state, for steps without resets."""
        fresh = copy(self.fresh)
        fresh.taken = 0  # the pool is never due for an engine that takes no state from it
        return KernelEngine(self._library, fresh, self.max_steps, 0)

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments to states of the pool.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R], contiguous; their new observations and states are written to it.

        Raises:
            ValueError: if ``seen`` is not contiguous.
        """
        if not seen.is_contiguous():
            raise ValueError(
                f"KernelEngine.reset: expected a contiguous seen, got strides {seen.stride()}; "
                "pass seen.contiguous()"
            )
        self._renew()
        mask = mask.contiguous()
        call = ctypes.byref(self._call)
        self.fresh.taken += self._reset(call, mask.data_ptr(), seen.data_ptr())

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.

        Raises:
            ValueError: if the buffers have no room for these steps.
        """
        call = self._prepared(buffers, t, n_steps, reset_when_done)  # may set taken to 0
        self.fresh.taken += self._rollout(call)
        self._key[1] += n_steps

    def advance_by(
        self,
        act: Callable[[Any, Any], int],
        buffers: Buffers,
        t: int,
        n_steps: int,
        *,
        reset_when_done: bool,
    ) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by actions that ``act`` chooses.

        Args:
            act: writes actions and takes the steps, for blocks of environments that begin at a
                multiple of ``LANES``; called with C pointers to ``one_step`` of ``rollout.h`` and
                to its ``Rollout``, it returns the number of resets.
            buffers: the actions and the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.

        Raises:
            ValueError: if the buffers have no room for these steps.
        """
        call = self._prepared(buffers, t, n_steps, reset_when_done)
        self.fresh.taken += act(self._one_step, call)
        self._key[1] += n_steps

    def _prepared(self, buffers: Buffers, t: int, n_steps: int, reset_when_done: bool) -> Any:
        """Return the pointer to a call for steps of buffers."""
        buffers.check_room(t + n_steps)
        self._renew()
        call = self._call
        for name in BUFFERS:
            tensor = getattr(buffers, name)
            setattr(call, name, tensor.data_ptr() + t * tensor.stride(1) * tensor.element_size())
        call.buffer_steps = buffers.action.shape[1]
        call.n_steps, call.reset_when_done = n_steps, reset_when_done
        call.threads = torch.get_num_threads()
        return ctypes.byref(call)

    def _renew(self) -> None:
        """Refill the pool if it is due; the library counts resets, which is faster than a sum."""
        if self.fresh.is_due():
            self.env_state.renew()
