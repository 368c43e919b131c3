"""The engine on a GPU: one launch of a Triton kernel takes T steps of all environments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_trl.chosen import CUDA_GRAPH
from qmix_trl.envs.compiled.codegen.rollout import BUFFERS
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.env_state import EnvState
from qmix_trl.envs.compiled.engines.kernel import blocks_of_lanes
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.built_file import BuiltFile

BLOCK = 32  # environments of a program: one warp, one environment a thread; guards need no barrier
# Roundings equal simd.h's: no product is fused into a sum.
OPTIONS = {"BLOCK": BLOCK, "num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


class TritonEngine:
    """Steps environments by a Triton kernel, on the device of its pool.

    ``advance`` never waits for the device, and all that it reads and writes keeps its place, so
    that one step can be captured in a CUDA graph. It therefore cannot notice that the pool is used
    up: it takes the states again, each for another environment, until ``env_state.renew``, called
    between rollouts, refills the pool.

    Args:
        source: the built file of the kernel's source.
        fresh: the pool that resets take states from.
        max_steps: the time limit in steps.
        seed: of the random numbers of steps.

    Raises:
        NoCompiler: if Triton is not installed.
        BuildFailed: if Triton does not compile the kernel.
    """

    compiled_loop = CUDA_GRAPH

    def __init__(self, source: BuiltFile, fresh: FreshStates, max_steps: int, seed: int) -> None:
        self.fresh = fresh
        self.layout = fresh.step.layout
        self.device = fresh.device
        source.check()
        self._rollout = load(source.path)
        self._max_steps = max_steps
        self._grid = (-(-fresh.n_envs // BLOCK),)
        self._blocks = blocks_of_lanes(fresh)  # [K, stride], as in the C++ engine
        self.env_state = EnvState(fresh, seed, self._blocks[:, : fresh.n_envs].t())
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

    def twin(self) -> "TritonEngine":
        """Return an engine of the same kernel with its own state, for steps without resets."""
        twin = copy(self)
        twin._blocks = self._blocks.clone()
        twin.env_state = EnvState(self.fresh, 0, twin._blocks[:, : self.fresh.n_envs].t())
        return twin

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
        buffers.check_room(t + n_steps)
        state = self.env_state
        with torch.cuda.device_of(self._blocks):  # Triton launches on the current device
            self._rollout[self._grid](
                t,
                n_steps,
                buffers.action.shape[1],
                *(getattr(buffers, name) for name in BUFFERS),
                self.fresh.n_envs,
                self._blocks.shape[1],
                self._blocks,
                state.steps,
                state.resets,
                state.key,
                self._max_steps,
                int(reset_when_done),
                self.fresh.pool,
                len(self.fresh.pool),
                **OPTIONS,
            )
        state.key[1:].add_(n_steps)

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments to states of the pool.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R]; their new observations and states are written to it.
        """
        self.env_state.reset(mask, seen)


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
