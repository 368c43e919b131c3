"""Builds a step's library with the system's compiler."""

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from qmix_trl.errors import Refused

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    # Nothing here looks at errno, traps or the sign of zero; infinities and NaN stay exact.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-shared",
    "-fPIC",
    "-w",
)
COMPILERS = ("g++", "clang++", "c++")
TIMEOUT_SECONDS = 300


class NoCompiler(Refused):
    """What builds steps is not on this machine; says what to install."""


class BuildFailed(Refused):
    """A source was not compiled; says why."""


@cache
def compiler() -> str:
    """Return the compiler's path: the environment variable CXX, or what is found.

    Raises:
        NoCompiler: if there is none.
    """
    for name in (os.environ.get("CXX"), *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoCompiler(
        "no C++ compiler was found; install one (Debian or Ubuntu: apt install g++; conda: conda "
        "install gxx) for the compiled kernel"
    )


@cache
def toolchain() -> str:
    """Return what a library depends on beside its source: compiler, flags and processor."""
    version = subprocess.run(
        [compiler(), "--version"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return "\n".join([*version[:1], " ".join(FLAGS), platform.machine(), processor()])


@cache
def processor() -> str:
    """Return the processor's features, on Linux; a library is built for these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def build(source: str, library: Path, *, fused_products: bool = False) -> None:
    """Compile a source to a shared library.

    Args:
        source: C++.
        library: where it is written, its source beside it.
        fused_products: ``a * b + c`` may be rounded once. Never in a step, which is compared with
            VMAS.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source.
    """
    code = library.with_suffix(".cpp")
    code.write_text(source)
    contract = ["-ffp-contract=fast"] if fused_products else []  # the last one counts
    command = [compiler(), *FLAGS, *contract, str(code), "-o", str(library)]
    for extra in (["-fopenmp"], []):  # not every compiler has the threads
        try:
            done = subprocess.run(
                command + extra,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(f"{compiler()} took over {TIMEOUT_SECONDS} s") from error
        if done.returncode == 0:
            return
    first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
    raise BuildFailed(f"{compiler()}: {first}")
