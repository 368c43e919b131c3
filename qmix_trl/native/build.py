"""Builds shared libraries with the system's C++ compiler."""

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
    # No code reads errno or floating-point traps. Infinities, NaN and signs of zeros stay exact.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-w",
)
COMPILERS = ("g++", "clang++", "c++")
TIMEOUT_SECONDS = 300


class NoCompiler(Refused):
    """The machine has no compiler; the message names the package to install."""


class BuildFailed(Refused):
    """A source does not compile; the message is the compiler's first error."""


@cache
def compiler() -> str:
    """Return the path of the C++ compiler: the environment variable CXX, or the first one found.

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
    """Return compiler, flags and processor as text: with a source, they determine a library.

    Raises:
        NoCompiler: if there is no compiler.
    """
    version = subprocess.run(
        [compiler(), "--version"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return "\n".join([*version[:1], " ".join(FLAGS), platform.machine(), processor()])


@cache
def processor() -> str:
    """Return the features of the processor as text; a library is built for these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def build(source: str, library: Path, *, fused_products: bool = False) -> None:
    """Compile a source to a shared library.

    Args:
        source: C++.
        library: the path to write; the source is written next to it.
        fused_products: ``a * b + c`` may be rounded once. Not for steps, which must round as VMAS
            does.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source.
    """
    code = library.with_suffix(".cpp")
    code.write_text(source)
    contract = ["-ffp-contract=fast"] if fused_products else []  # overrides the flag before
    command = [compiler(), *FLAGS, *contract, str(code), "-o", str(library)]
    for extra in (["-fopenmp"], []):  # not every compiler has OpenMP
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
