"""The compiled step as an engine on a GPU: a Triton kernel, one launch for T steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.kernel import LANES, WRITTEN
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.native.build import BuildFailed, NoCompiler

BLOCK = 32  # environments of a program: one warp, one each thread, so that guards need no barrier
# Roundings are those of simd.h: no product is fused into a sum.
OPTIONS = {"BLOCK": BLOCK, "num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


class TritonEngine:
    """Steps environments by a kernel that ``triton_print`` wrote, on the device of its pool.

    ``advance`` never waits for the device, and all that it reads and writes keeps its place: one
    step can be captured in a CUDA graph. So it cannot know when the pool is through, and then takes
    its rows again, each for another environment; ``renew``, between rollouts, draws it anew.

    Args:
        source: the kernel's source, a file.
        fresh: the pool that resets take from.
        max_steps: the time limit.
        seed: of the random numbers of steps.

    Raises:
        NoCompiler: if there is no Triton.
        BuildFailed: if it does not compile the kernel.
    """

    name = "kernel"
    _STATE = ("state", "steps", "resets", "key")

    def __init__(self, source: Path, fresh: FreshStates, max_steps: int, seed: int) -> None:
        self.fresh = fresh
        self.layout = fresh.step.layout
        self.device = fresh.device
        self._rollout = load(source)
        self._max_steps = max_steps
        n_envs, n_rows = fresh.n_envs, len(fresh.step.numbers)
        stride = -(-n_envs // LANES) * LANES  # a state is the C++ kernel's, too
        self._grid = (-(-n_envs // BLOCK),)
        self._state = fresh.pool[:1, :n_rows].t().repeat(1, stride)  # [K, stride]
        self._steps = torch.zeros(n_envs, dtype=torch.int32, device=self.device)
        self._resets = torch.zeros_like(self._steps)
        self._key = torch.tensor([seed % 2**32, 0], device=self.device)
        self._compile()

    def _compile(self) -> None:
        """Have the kernel compiled, by no steps of it."""
        rows = Buffers.empty(self.fresh.n_envs, 1, self.layout, self.device)
        try:
            with without_coalescing():
                self.advance(rows, 0, 0, reset_when_done=False)
        # What Triton, LLVM and ptxas raise on a device that they do not know is anything.
        except Exception as error:
            said = str(error).strip().splitlines() or [""]  # Triton's messages end with the reason
            raise BuildFailed(f"Triton: {type(error).__name__} {said[-1].strip()}") from error

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of rows, by the actions that stand there."""
        buffer_steps = buffers.action.shape[1]
        if t + n_steps > buffer_steps:
            raise ValueError(
                f"TritonEngine: expected rows of {t + n_steps} steps, got {buffer_steps}"
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
        """Begin environments anew.

        Args:
            mask: bool [E], which.
            seen: float [E, R]; what these see then is written there.
        """
        self.renew()
        n_rows = len(self._state)
        fresh = self.fresh.states_for(self._resets.long())  # [E, K + R]
        state = self._state[:, : self.fresh.n_envs]
        state.copy_(torch.where(mask, fresh[:, :n_rows].t(), state))
        seen.copy_(torch.where(mask[:, None], fresh[:, n_rows:], seen))
        self._steps.masked_fill_(mask, 0)
        self._resets += mask

    def renew(self) -> None:
        """Draw the pool anew if it is through; waits for the device."""
        self._count()
        if self.fresh.is_due():
            self.fresh.renew()
            self._resets.zero_()

    def _count(self) -> None:
        self.fresh.taken = int(self._resets.sum())

    def jump(self, state: Tensor, key: Tensor) -> None:
        """Go on from a state [E, K], with the random numbers of a key [2] (``draws.py``)."""
        self._state[:, : self.fresh.n_envs] = state.t().to(self.device)
        self._key.copy_(key)

    def packed_state(self) -> Tensor:
        """Return the state, float32 [E, K]."""
        return self._state[:, : self.fresh.n_envs].t().contiguous()

    def state(self) -> dict[str, Tensor]:
        """Return all that the next steps depend on."""
        self._count()
        tensors = {name: getattr(self, f"_{name}").clone() for name in self._STATE}
        return {**tensors, **self.fresh.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        for name in self._STATE:
            getattr(self, f"_{name}").copy_(state[name])
        self.fresh.load_state(state)

    def seed(self, seed: int) -> None:
        """Begin other random streams."""
        self._key.copy_(torch.tensor([seed % 2**32, 0]))
        self.fresh.reseed(seed)
        self._resets.zero_()


def triton_toolchain(device: torch.device) -> str:
    """Return what a checked kernel depends on beside its source: Triton and the device.

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
def without_coalescing() -> Iterator[None]:
    """Leave out a pass of Triton's while it compiles.

    It looks for the widest accesses to memory, of which there are none here: a thread has one
    environment. Per access it walks the whole kernel, which made 74 of 79 seconds for transport.
    """
    from triton._C.libtriton import passes  # pyright: ignore[reportMissingImports]

    kept = getattr(passes.ttgpuir, "add_coalesce", None)
    if kept is None:  # another Triton, which is only slow
        yield
        return
    passes.ttgpuir.add_coalesce = lambda manager: None
    try:
        yield
    finally:
        passes.ttgpuir.add_coalesce = kept


@cache
def load(source: Path) -> Callable:
    """Return the kernel of a source; Triton reads its text from the file."""
    spec = spec_from_file_location(f"qmix_trl_{source.stem}", source)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rollout
