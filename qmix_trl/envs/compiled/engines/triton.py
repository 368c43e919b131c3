"""The compiled step as an engine on a GPU: a Triton kernel, launched once for T steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.kernel import LANES, WRITTEN
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.native.build import BuildFailed, NoCompiler

BLOCK = 32  # environments of a program: a warp with one for each thread; guards need no barrier
# No product is fused into a sum, so that it rounds as the C++ kernel does.
OPTIONS = {"BLOCK": BLOCK, "num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


class TritonEngine:
    """Steps environments by a printed Triton kernel, on the device of its pool.

    ``advance`` never waits for the device, and its tensors keep their addresses: a step can be
    captured in a CUDA graph. So it does not know when all states of the pool are used. It then
    uses them again, each for another environment, until ``renew`` is called between rollouts.

    Args:
        source: the file that holds the kernel's source.
        fresh: the pool of states for resets.
        max_steps: the time limit of episodes, in steps.
        seed: the seed of random numbers in steps.

    Raises:
        BuildFailed: if Triton does not compile the kernel.
    """

    name = "kernel"
    _STATE = ("state", "steps", "resets", "key")

    def __init__(self, source: Path, fresh: FreshStates, max_steps: int, seed: int) -> None:
        self.fresh = fresh
        self.layout = fresh.step.layout
        self.device = fresh.device
        self._rollout = load(source)
        self._max_steps = max_steps
        n_envs, n_numbers = fresh.n_envs, len(fresh.step.numbers)
        stride = -(-n_envs // LANES) * LANES  # as in the C++ kernel, which can load this state
        self._grid = (-(-n_envs // BLOCK),)
        self._state = fresh.pool[:1, :n_numbers].t().repeat(1, stride)  # [K, stride]
        self._steps = torch.zeros(n_envs, dtype=torch.int32, device=self.device)
        self._resets = torch.zeros_like(self._steps)
        self._key = torch.tensor([seed % 2**32, 0], device=self.device)
        self._compile()

    def _compile(self) -> None:
        """Compile the kernel by a launch that takes no steps."""
        buffers = Buffers.empty(self.fresh.n_envs, 1, self.layout, self.device)
        try:
            with faster_compilation():
                self.advance(buffers, 0, 0, reset_when_done=False)
        # Triton, LLVM and ptxas raise errors of any class on a device that they do not know.
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]  # the last one has the reason
            raise BuildFailed(f"Triton: {type(error).__name__} {lines[-1].strip()}") from error

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions that they hold.

        Args:
            buffers: on the device of the pool.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: environments that are done are reset.

        Raises:
            ValueError: if the buffers have fewer steps.
        """
        buffer_steps = buffers.action.shape[1]
        if t + n_steps > buffer_steps:
            raise ValueError(
                f"TritonEngine: expected buffers of {t + n_steps} steps, got {buffer_steps}"
            )
        with torch.cuda.device_of(self._state):  # Triton launches on the current one
            self._rollout[self._grid](
                t,
                n_steps,
                buffer_steps,
                *(getattr(buffers, name) for name in WRITTEN),
                self.fresh.n_envs,
                self._state.shape[1],
                self._state,
                self._steps,
                self._resets,
                self._key,
                self._max_steps,
                int(reset_when_done),
                self.fresh.pool,
                len(self.fresh.pool),
                **OPTIONS,
            )
        self._key[1:].add_(n_steps)

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R]; their observations and states are written there.
        """
        self.renew()
        n_numbers = len(self._state)
        fresh = self.fresh.states_for(self._resets.long())  # [E, K + R]
        state = self._state[:, : self.fresh.n_envs]
        state.copy_(torch.where(mask, fresh[:, :n_numbers].t(), state))
        seen.copy_(torch.where(mask[:, None], fresh[:, n_numbers:], seen))
        self._steps.masked_fill_(mask, 0)
        self._resets += mask

    def renew(self) -> None:
        """Refill the pool if all of its states are used; waits for the device."""
        self._count()
        if self.fresh.is_due():
            self.fresh.renew()
            self._resets.zero_()

    def _count(self) -> None:
        self.fresh.taken = int(self._resets.sum())

    def jump(self, state: Tensor, key: Tensor) -> None:
        """Continue from a packed state float32 [E, K] and a key of draws int64 [2]."""
        self._state[:, : self.fresh.n_envs] = state.t().to(self.device)
        self._key.copy_(key)

    def packed_state(self) -> Tensor:
        """Return the packed state, float32 [E, K]."""
        return self._state[:, : self.fresh.n_envs].t().contiguous()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that later steps depend on, by name."""
        self._count()
        tensors = {name: getattr(self, f"_{name}").clone() for name in self._STATE}
        return {**tensors, **self.fresh.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from the tensors of ``state``."""
        for name in self._STATE:
            getattr(self, f"_{name}").copy_(state[name])
        self.fresh.load_state(state)

    def seed(self, seed: int) -> None:
        """Start new random streams and refill the pool from them."""
        self._key.copy_(torch.tensor([seed % 2**32, 0]))
        self.fresh.reseed(seed)
        self._resets.zero_()


def triton_toolchain(device: torch.device) -> str:
    """Return the version of Triton and the name of the device, on which built kernels depend.

    Raises:
        NoCompiler: if there is no Triton.
    """
    try:
        import triton  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise NoCompiler(
            "Triton is not installed; install it (pip install triton), or torch's CUDA build, "
            "which brings it, for the compiled kernel on a GPU"
        ) from error
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return f"triton {triton.__version__} {name}"


@contextmanager
def faster_compilation() -> Iterator[None]:
    """Leave out two parts of Triton's compilation that take most of its time.

    The pass that coalesces accesses to memory walks the whole kernel for each access (74 of 79
    seconds for transport). There is nothing to coalesce: a thread has one environment. The front
    end clones the values of all variables at each guard (two thirds of the time for navigation).
    No step changes a value in place, so the PTX is the same without clones.
    """
    from triton._C.libtriton import passes  # pyright: ignore[reportMissingImports]
    from triton.compiler import code_generator  # pyright: ignore[reportMissingImports]

    no_pass = _replaced(passes.ttgpuir, "add_coalesce", lambda manager: None)
    with no_pass, _replaced(code_generator, "_clone_scope", dict):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name, None)
    if kept is None:  # other versions of Triton lack it and may only be slower
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@cache
def load(source: Path) -> Callable:
    """Return the kernel of a source file; Triton reads its text from there."""
    spec = spec_from_file_location(f"qmix_trl_{source.stem}", source)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rollout
