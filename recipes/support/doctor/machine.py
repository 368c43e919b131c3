"""The machine: processor, compiler, cache of built libraries, rendering, disk and memory."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

from support.commands import RECIPES, typed
from support.doctor.finding import Finding
from support.room import free_disk, free_system_memory

from qmix_trl.native.build import (
    BuildFailed,
    NoCompiler,
    check_compiler,
    compiler,
    processor,
    toolchain,
)
from qmix_trl.native.place import Unusable, check_trusted, folder
from qmix_trl.native.upkeep import clean, entries

MIB = 2**20
LEAST_MEMORY, LEAST_DISK = 1024 * MIB, 200 * MIB  # of a small run
VECTORS = {"avx2": "AVX2", "avx512f": "AVX-512", "asimd": "NEON"}  # features that kernels use
# A training of a fraction of a second, with all its parts but VMAS.
TRIAL = (
    "env.n_envs=8",
    "collection.total_frames=16",
    "replay.capacity_rows=16",
    "replay.batch_rows=8",
    "update.per_batch=1",
    "evaluation.episodes=2",
    "checkpoint.every_seconds=null",
    "runtime.device=auto",
)


def check_cpu() -> Finding:
    """Return the finding of the processor: threads that this process may use, cores, vectors."""
    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = processor().split()
    vectors = ", ".join(shown for name, shown in VECTORS.items() if name in features)
    n_cores = _n_cores()
    cores = f" on {n_cores} cores" if n_cores else ""
    return Finding("ok", "cpu", f"{n_threads} threads{cores}, {vectors or 'no known vectors'}")


def _n_cores() -> int:
    """Return the number of physical cores that Linux lists; 0 where it lists none."""
    try:
        blocks = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")
    except OSError:
        return 0
    cores = set()
    for block in blocks:
        place = [x for x in block.splitlines() if x.startswith(("physical id", "core id"))]
        cores.update({tuple(place)} if place else ())
    return len(cores)


def check_cpp() -> Finding:
    """Return the finding of the C++ compiler, which builds a small library."""
    try:
        check_compiler()
        return Finding("ok", "compiler", f"{compiler()}: {toolchain().splitlines()[0]}")
    except NoCompiler as error:
        return Finding("missing", "compiler", f"runs are slow: {error}")
    except BuildFailed as error:
        remedy = "mend it, or name another by CXX; until then runs are slow"
        return Finding("wrong", "compiler", str(error), remedy)


def check_cache(*, is_cleaned: bool) -> Finding:
    """Return the finding of the cache of built libraries.

    Args:
        is_cleaned: whether its stale entries are removed.
    """
    try:
        root = folder()
        check_trusted(root)
    except Unusable as error:
        remedy = "set QMIX_TRL_CACHE to a folder of yours; until then each run builds anew"
        return Finding("wrong", "cache", str(error), remedy)
    there = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("wrong", "cache", f"{there} cannot be written", "set QMIX_TRL_CACHE")
    found = entries(root)
    stale = [entry for entry in found if entry.is_stale]
    size = sum(entry.n_bytes for entry in found) / MIB
    text = f"{root}, {len(found)} entries, {size:.0f} MiB, {len(stale)} not used for 30 days"
    if is_cleaned:
        try:
            removed = clean(root, stale) if stale else []
        except OSError as error:
            return Finding("wrong", "cache", f"{root}: {error.strerror}", "set QMIX_TRL_CACHE")
        freed = sum(entry.n_bytes for entry in removed) / MIB
        return Finding("ok", "cache", f"{text}; removed {len(removed)}, {freed:.0f} MiB")
    remedy = f"{typed('doctor', '--clean')} removes these" if stale else ""
    return Finding("ok", "cache", text, remedy)


def check_drawing() -> list[Finding]:
    """Return the findings of EGL and ffmpeg."""
    egl, ffmpeg = find_library("EGL"), shutil.which("ffmpeg")
    found = []
    if egl:
        found.append(Finding("ok", "egl", egl))
    else:
        remedy = "apt install libegl1 (Debian, Ubuntu)"
        found.append(Finding("missing", "egl", "VMAS draws without a display by it", remedy))
    if ffmpeg or find_spec("imageio_ffmpeg"):
        found.append(Finding("ok", "ffmpeg", ffmpeg or "of imageio-ffmpeg"))
    else:
        remedy = "apt install ffmpeg, or pip install imageio-ffmpeg"
        found.append(Finding("missing", "ffmpeg", "it writes MP4", remedy))
    return found


def check_disk() -> Finding:
    """Return the finding of the disk of the current folder, where runs are written."""
    free, here = free_disk(Path()), Path().absolute()
    text = f"{free / MIB:,.0f} MiB free in {here}"
    if not os.access(here, os.W_OK):
        remedy = "go to another folder, or name one by --runs"
        return Finding("wrong", "disk", f"{here} cannot be written", remedy, is_needed=True)
    if free < LEAST_DISK:
        remedy = "make room, or go to another folder"
        return Finding("wrong", "disk", text, remedy, is_needed=True)
    return Finding("ok", "disk", text, is_needed=True)


def check_memory() -> Finding:
    """Return the finding of the memory that a process can still take."""
    free = free_system_memory()
    if free == 2**63:
        return Finding("ok", "memory", "this system does not tell", is_needed=True)
    text = f"{free / MIB:,.0f} MiB free"
    if free < LEAST_MEMORY:
        return Finding("wrong", "memory", text, "end other processes", is_needed=True)
    return Finding("ok", "memory", text, is_needed=True)


def check_run() -> Finding:
    """Return the finding of a training of a game, of 16 frames, in a process of its own."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="qmix_trl-") as runs:
        config = RECIPES / "configs" / "two_step_qmix.yaml"
        words = [sys.executable, RECIPES / "train.py", config, *TRIAL, "--runs", runs]
        done = subprocess.run(
            list(map(str, words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        remedy = f"{typed('train', 'two_step_qmix')} shows all of it"
        return Finding("wrong", "run", said, remedy, is_needed=True)
    seconds = time.perf_counter() - start
    return Finding("ok", "run", f"a game trained in {seconds:.0f} s, starts included")
