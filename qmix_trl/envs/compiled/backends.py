"""The backends of compiled steps: a C++ library for the CPU, a Triton kernel for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from qmix_trl.envs.compiled.codegen import cpp
from qmix_trl.envs.compiled.codegen import triton as triton_print
from qmix_trl.envs.compiled.engines.kernel import KernelEngine
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.engines.triton import TritonEngine, triton_toolchain
from qmix_trl.envs.compiled.lower.step import Step
from qmix_trl.native.build import build, check_compiler, toolchain
from qmix_trl.native.built_file import BuiltFile


@dataclass(frozen=True)
class Backend:
    """Functions that print, build and run steps.

    Attributes:
        device: of the packed state and of the buffers.
        file: the name of the built file.
        most_operations: the most expressions of a step; compilers take minutes for more.
        tools: returns the versions of the tools that a built file depends on; raises ``NoCompiler``
            if they are not installed.
        check: raises ``NoCompiler`` or ``BuildFailed`` if its compiler does not work.
        source: prints a step.
        build: builds a source to a file; raises ``BuildFailed``.
        engine: makes an engine from a built file, a pool on the device, the time limit and a seed;
            may raise ``BuildFailed``, too.
    """

    device: torch.device
    file: str
    most_operations: int
    tools: Callable[[], str]
    check: Callable[[], None]
    source: Callable[[Step], str]
    build: Callable[[str, Path], None]
    engine: Callable[[BuiltFile, FreshStates, int, int], KernelEngine | TritonEngine]


def of_cpu() -> Backend:
    """Return the backend of C++ libraries."""
    return Backend(
        torch.device("cpu"),
        "step.so",
        60_000,
        toolchain,
        check_compiler,
        cpp.source,
        build,
        KernelEngine,
    )


def of_gpu(device: torch.device) -> Backend:
    """Return the backend of Triton kernels, which are compiled when an engine is made."""
    return Backend(
        device,
        "step.py",
        30_000,
        lambda: triton_toolchain(device),
        lambda: None,  # Triton brings its own
        triton_print.source,
        write_source,
        TritonEngine,
    )


def write_source(source: str, path: Path) -> None:
    """Write a source to a file."""
    path.write_text(source, encoding="utf-8")


BACKENDS: dict[str, Callable[[torch.device], Backend]] = {
    "cpu": lambda device: of_cpu(),
    "cuda": of_gpu,
}  # by the type of a device
