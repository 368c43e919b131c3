"""Builds shared libraries with the system's C++ compiler."""

import atexit
import os
import platform
import re
import shlex
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from qmix_trl.errors import Refused, one_line

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
SMALL = 'extern "C" int small() { return 1; }'
SMALL_SECONDS = 60  # for that; a machine may be busy
VERSION_SECONDS = 30  # a compiler on a network's disk may take some to start
ROOM_BYTES = 1 << 20  # a linker that finds less may die without a word about the disk
HEAD_BYTES = 64  # of an ELF file; no library is as small
FULL = ("No space left on device", "Disk quota exceeded", "File too large")
NO_OPENMP = re.compile(r"-fopenmp|lib?g?omp|-l ?g?omp|omp\.h", re.IGNORECASE)

PROCESS_ENDS = "the process ends"
_GIVEN_UP: list[str] = []  # why no compiler is started any more in this process
_RUNNING: set[int] = set()  # process groups of compilers
_STARTING = threading.Lock()
_STARTS: list[list[str]] = []  # the command of the compiler that is being started, if one is
_ENDS: list[Callable[[], None]] = []  # end the process as soon as all compilers are killed


class NoCompiler(Refused):
    """The machine has no compiler; the message names the package to install."""


class BuildFailed(Refused):
    """A source does not compile; the message is the compiler's first error."""


class DiskFull(BuildFailed):
    """A library has no room where it is built."""


@cache
def command() -> tuple[str, ...]:
    """Return the command of the C++ compiler: the environment variable CXX, or the first one found.

    CXX may have arguments, such as "ccache g++". It is warned of if it names no program.

    Raises:
        NoCompiler: if there is none.
    """
    chosen = os.environ.get("CXX", "")
    named = _command_of(chosen)
    if named:
        return named
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            if chosen.strip():
                warnings.warn(f"CXX={chosen!r} names no program; {found} is taken", stacklevel=2)
            return (found,)
    raise NoCompiler(
        "no C++ compiler was found; install one (Debian or Ubuntu: apt install g++; conda: conda "
        "install gxx) for the compiled kernel"
    )


def _command_of(chosen: str) -> tuple[str, ...] | None:
    """Return a program's path and its arguments; None if there is no such program."""
    whole = shutil.which(chosen) if chosen else None  # its path may have a space
    if whole:
        return (whole,)
    try:
        name, *arguments = shlex.split(chosen)
    except ValueError:  # empty, or an open quotation mark
        return None
    found = shutil.which(name)
    return (found, *arguments) if found else None


def compiler() -> str:
    """Return the compiler's command as text.

    Raises:
        NoCompiler: if there is none.
    """
    return shlex.join(command())


@cache
def toolchain() -> str:
    """Return compiler, flags and processor as text: with a source, they determine a library.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it cannot be run, or does not tell its version within ``VERSION_SECONDS``.
    """
    program, *arguments = command()
    version = _run([program, *arguments, "--version"], VERSION_SECONDS).stdout.splitlines()
    flags = shlex.join([*arguments, *FLAGS])
    return "\n".join([*version[:1], flags, platform.machine(), processor()])


def check_compiler() -> None:
    """Check that the compiler builds a small library, before work begins that needs it.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it builds none, or has taken too long in this process.
    """
    _check_patience()
    reason = _broken()
    if reason is not None:
        raise BuildFailed(reason)


@cache
def _broken() -> str | None:
    """Return the reason why the compiler builds no library; None if it does, or it is not known.

    Raises:
        NoCompiler: if there is no compiler.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="qmix_trl-") as folder:
            _build(SMALL, Path(folder) / "small.so", (), SMALL_SECONDS)
    except (OSError, DiskFull):  # of the temporary folder; the store may have room
        return None
    except BuildFailed as error:
        return str(error)
    return None


@cache
def processor() -> str:
    """Return the features of the processor as text; a library is built for these."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
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
        BuildFailed: if it refuses the source, takes over ``TIMEOUT_SECONDS`` or writes no whole
            library; ``DiskFull`` if there is no room for one.
        OSError: if the source cannot be written.
    """
    more = ("-ffp-contract=fast",) if fused_products else ()  # overrides the flag before
    _build(source, library, more, TIMEOUT_SECONDS)


def _build(source: str, library: Path, more: tuple[str, ...], seconds: float) -> None:
    """Compile a source, as ``build``, with more flags and a limit of seconds."""
    code = library.with_suffix(".cpp")
    code.write_text(source, encoding="utf-8")
    plain = [*command(), *FLAGS, *more, str(code), "-o", str(library)]
    done = _run([*plain, "-fopenmp"], seconds, library.parent)
    if done.returncode > 0 and NO_OPENMP.search(done.stderr):  # not every compiler has OpenMP
        done = _run(plain, seconds, library.parent)
    if done.returncode == 0 and is_whole(library):
        return
    reason = f"{compiler()}: {_reason(done, library)}"
    has_no_room = any(text in done.stderr for text in FULL)
    if has_no_room or shutil.disk_usage(library.parent).free < ROOM_BYTES:
        raise DiskFull(f"no room on the disk ({reason})")
    raise BuildFailed(reason)


def _reason(done: subprocess.CompletedProcess[str], library: Path) -> str:
    """Return the first error of a compiler."""
    if done.returncode == 0:
        return f"it wrote {'half a' if library.is_file() else 'no'} library"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line), "".join(lines[:1]))[:300]
    if done.returncode < 0:
        return f"ended by signal {-done.returncode} {first}".strip()
    return first or f"exit code {done.returncode}"


def is_whole(library: Path) -> bool:
    """Return whether a library is a file that ends behind all parts of which its head tells.

    The system maps the parts of an ELF file, and ends a process that reads behind the file's end.
    """
    if not library.is_file():
        return False
    content = library.read_bytes()
    if len(content) < HEAD_BYTES:
        return False
    if not content.startswith(b"\x7fELF\x02\x01"):  # other systems, and processors of 32 bits
        return True
    try:
        programs, sections = struct.unpack_from("<QQ", content, 32)
        size, n_programs, section_size, n_sections = struct.unpack_from("<4H", content, 54)
        ends = [sections + section_size * n_sections]
        for at in range(programs, programs + size * n_programs, size):
            offset, _, _, length = struct.unpack_from("<4Q", content, at + 8)
            ends.append(offset + length)
    except (struct.error, ValueError):  # the table of parts is damaged
        return False
    return max(ends) <= len(content)


def _run(
    words: list[str], seconds: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler in a process group of its own, which is killed if it takes too long.

    Args:
        words: the command.
        seconds: after which no compiler is started any more in this process.
        folder: for the compiler's temporary files, so that they are removed with it.

    Raises:
        BuildFailed: if it cannot be started, or takes too long.
    """
    environment = {**os.environ, "LC_ALL": "C"}  # messages in English
    if folder is not None:
        environment["TMPDIR"] = str(folder)
    process = _started(words, environment)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        _GIVEN_UP.append(f"{compiler()} took over {seconds:g} s; CXX names another compiler")
        raise BuildFailed(_GIVEN_UP[0]) from error
    finally:
        with _STARTING:
            if process.returncode is None:
                _kill(process.pid)
                process.wait()
            _RUNNING.discard(process.pid)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _started(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a compiler.

    Raises:
        BuildFailed: if it cannot be started, or one took too long in this process.
    """
    with _STARTING:
        _check_patience()
        _STARTS.append(words)
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=environment,
                start_new_session=True,
            )
            _RUNNING.add(process.pid)
        except OSError as error:
            raise BuildFailed(f"{compiler()} cannot be run: {one_line(error)}") from error
        finally:
            _STARTS.clear()
            _end_if_asked()
        return process


def ends() -> bool:
    """Return whether the process ends, so that a build that fails is no news."""
    return PROCESS_ENDS in _GIVEN_UP


def _check_patience() -> None:
    if _GIVEN_UP:
        raise BuildFailed(_GIVEN_UP[0])


def _kill(group: int) -> None:
    """Kill a compiler and all processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def kill_running() -> None:
    """Kill all compilers, and start no more: the process ends."""
    _GIVEN_UP.append(PROCESS_ENDS)
    for group in tuple(_RUNNING):
        _kill(group)


def end_after_killing(end: Callable[[], None]) -> None:
    """Kill all compilers and call a function that ends the process.

    It takes no lock, so that a signal handler can call it. If a compiler is being started, which
    cannot be killed before its process is known, both happen as soon as it has started.
    """
    _ENDS.append(end)
    if not _STARTS:
        _end_if_asked()


def _end_if_asked() -> None:
    for end in tuple(_ENDS):
        kill_running()
        end()


@atexit.register
def _end() -> None:
    """Kill the compilers of threads that the end of the process does not wait for."""
    with _STARTING:
        kill_running()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_RUNNING.clear)  # they are the parent's
