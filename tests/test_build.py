"""The system's compiler: which one is taken, and compilers that fail, hang or lie."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from recipe_tools import RECIPES

from qmix_trl.native import build, store
from qmix_trl.native.networks import ahead
from qmix_trl.native.networks.library import missing

SOURCE = 'extern "C" int answer() { return 7; }'
GXX = shutil.which("g++")
OUT = 'while [ "$1" != -o ]; do shift; done; out="$2"'  # the path after -o

pytestmark = pytest.mark.skipif(GXX is None, reason="there is no g++")


@pytest.fixture(autouse=True)
def _no_compiler_is_known(monkeypatch):
    """Look for the compiler again, before and after a test."""
    monkeypatch.setattr(build, "_GIVEN_UP", [])
    for function in (build.command, build.toolchain, build._broken):
        function.cache_clear()
    yield
    for function in (build.command, build.toolchain, build._broken):
        function.cache_clear()


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return a function that makes a shell script the compiler."""

    def write(text):
        path = tmp_path / "cxx"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    return write


def answer_of(folder):
    """Return the result of the function of a newly built library."""
    build.build(SOURCE, folder / "new.so")
    return ctypes.CDLL(str(folder / "new.so")).answer()


# ------------------------------------------------------------------- which one is taken


def test_cxx_may_have_arguments_which_are_part_of_the_key(tmp_path, monkeypatch):
    keys = []
    for chosen in (GXX, f"{GXX} -O0", "env g++"):
        monkeypatch.setenv("CXX", chosen)
        build.command.cache_clear()
        build.toolchain.cache_clear()
        keys.append(build.toolchain())
        assert answer_of(tmp_path) == 7
        assert build.compiler().split()[1:] == chosen.split()[1:]
    assert len(set(keys)) == 3


def test_the_path_of_cxx_may_have_a_space(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "g++").symlink_to(GXX)
    monkeypatch.setenv("CXX", str(tmp_path / "a b" / "g++"))
    assert build.command() == (str(tmp_path / "a b" / "g++"),)
    assert answer_of(tmp_path) == 7


@pytest.mark.parametrize("chosen", ["/nonexistent/g++", "nonexistent -O0", "'open"])
def test_cxx_that_names_no_program_is_warned_of_with_the_compiler_that_is_taken(
    monkeypatch, chosen
):
    monkeypatch.setenv("CXX", chosen)
    with pytest.warns(UserWarning, match=rf"names no program; {GXX}".replace("+", r"\+")):
        assert build.command() == (GXX,)


@pytest.mark.parametrize("chosen", ["", " "])
@pytest.mark.filterwarnings("error")
def test_an_empty_cxx_is_none(monkeypatch, chosen):
    monkeypatch.setenv("CXX", chosen)
    assert build.command() == (GXX,)


# ----------------------------------------------------------------- compilers that fail

FAILURES = {
    "fails": ("echo boom >&2; exit 1", "cxx: boom"),
    "says nothing": ("exit 3", "cxx: exit code 3"),
    "first error": ("echo note >&2; echo 'a: error: b' >&2; exit 1", "cxx: a: error: b"),
    "not UTF-8": (r"printf 'error \351' >&2; exit 1", "cxx: error \ufffd"),
    "dies": ("kill -SEGV $$", "ended by signal 11"),
    "writes nothing": ("exit 0", "wrote no library"),
    "writes a folder": (f'{OUT}; mkdir "$out"', "wrote no library"),
    "writes an empty file": (f'{OUT}; : > "$out"', "wrote half a library"),
    "writes half": (f'g++ "$@"; {OUT}; truncate -s 9000 "$out"', "wrote half a library"),
    "writes less": (f'g++ "$@"; {OUT}; truncate -s -1 "$out"', "wrote half a library"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_compiler_that_fails_is_a_reason_in_one_line_and_leaves_nothing(
    name, script, tmp_path, monkeypatch
):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    text, reason = FAILURES[name]
    script(f'case "$*" in *--version*) echo 1; exit 0;; esac; {text}')
    with pytest.raises(build.BuildFailed) as failed:
        store.library("one", SOURCE, "answer")
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)
    assert os.listdir(tmp_path / "steps") == []


def test_a_program_that_the_system_cannot_run_is_a_reason(tmp_path, monkeypatch):
    (tmp_path / "cxx").write_text("no program")
    (tmp_path / "cxx").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    with pytest.raises(build.BuildFailed, match=r"cannot be run: OSError.*Exec format"):
        build.toolchain()


@pytest.mark.parametrize(
    ("text", "n_calls"),
    [
        ("echo 'error: unsupported option -fopenmp' >&2; exit 1", 2),
        ("echo 'ld: cannot find -lgomp' >&2; exit 1", 2),
        ("echo 'error: no such type' >&2; exit 1", 1),
        ("kill -KILL $$", 1),
    ],
)
def test_only_a_compiler_that_lacks_openmp_is_called_without_it(script, tmp_path, text, n_calls):
    calls = tmp_path / "calls"
    script(f'echo "$*" >> {calls}; case "$*" in *-fopenmp*) {text};; *) exec g++ "$@";; esac')
    if n_calls == 2:
        assert answer_of(tmp_path) == 7
    else:
        with pytest.raises(build.BuildFailed):
            answer_of(tmp_path)
    assert len(calls.read_text().splitlines()) == n_calls


@pytest.mark.parametrize("text", build.FULL)
def test_a_full_disk_is_told_apart_from_other_failures(script, tmp_path, text):
    script(f"echo 'as: cannot write a.o: {text}' >&2; exit 1")
    with pytest.raises(build.DiskFull, match=f"no room on the disk .*{text}"):
        answer_of(tmp_path)


def test_a_linker_that_dies_where_there_is_no_room_is_a_full_disk(script, tmp_path, monkeypatch):
    script("echo 'ld returned 1' >&2; exit 1")
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 9000}))
    with pytest.raises(build.DiskFull):
        answer_of(tmp_path)


# --------------------------------------------------------------- compilers that hang


def is_alive(process_id):
    """Return whether a process runs; a dead one may wait for its parent."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def eventually(condition):
    """Wait for a condition, for at most 30 seconds; return whether it holds."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def children(folder):
    """Return the process ids that the script of ``HANGS`` has written."""
    return [int(text) for text in (folder / "ids").read_text().split()]


HANGS = "sleep 1000 & echo $! $$ > {}/ids.new; mv {}/ids.new {}/ids; sleep 1000"


@pytest.mark.parametrize("hangs_in", ["version", "build"])
def test_a_compiler_that_hangs_is_killed_with_its_children_and_never_started_again(
    script, tmp_path, monkeypatch, hangs_in
):
    hang, calls = HANGS.replace("{}", str(tmp_path)), tmp_path / "calls"
    version = hang if hangs_in == "version" else "echo 1"
    script(f'echo "$*" >> {calls}; case "$*" in *--version*) {version};; *) {hang};; esac')
    monkeypatch.setattr(build, "SMALL_SECONDS", 0.5)
    monkeypatch.setattr(build, "VERSION_SECONDS", 0.5 if hangs_in == "version" else 30)
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    reasons = []
    for name in ("one", "two"):
        with pytest.raises(build.BuildFailed, match=r"took over 0\.5 s; CXX names") as failed:
            store.library(name, SOURCE)
        reasons.append(str(failed.value))
    with pytest.raises(build.BuildFailed, match=r"took over 0\.5 s"):
        build.check_compiler()
    assert reasons[0] == reasons[1]
    assert len(calls.read_text().splitlines()) == (1 if hangs_in == "version" else 2)
    if Path("/proc/self").exists():
        assert eventually(lambda: not any(map(is_alive, children(tmp_path))))


BUILDS = {
    "in the main thread": "build.build('', pathlib.Path(sys.argv[1]) / 'new.so')",
    "in a thread": (
        "threading.Thread(target=build.build, args=('', pathlib.Path(sys.argv[1]) / 'new.so'), "
        "daemon=True).start(); time.sleep(1000)"
    ),
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("where", BUILDS)
def test_an_interrupt_ends_the_process_and_its_compilers(script, tmp_path, where):
    hang = HANGS.replace("{}", str(tmp_path))
    script(f'case "$*" in *--version*) echo 1;; *) {hang};; esac')
    code = (
        "import pathlib, sys, threading, time\n"
        "from qmix_trl.native import build\n"
        "from qmix_trl.errors import exit_on_mistake\n"
        f"with exit_on_mistake():\n    {BUILDS[where]}\n"
    )
    environment = {**os.environ, "QMIX_TRL_CACHE": str(tmp_path / "steps")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert eventually((tmp_path / "ids").exists) or process.kill()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)  # the compiler would hang for 1000 s
    assert (process.returncode, said) == (130, "interrupted\n")
    assert eventually(lambda: not any(map(is_alive, children(tmp_path))))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("where", BUILDS)
def test_a_recipe_that_a_signal_ends_at_once_ends_its_compilers(script, tmp_path, where):
    hang = HANGS.replace("{}", str(tmp_path))
    script(f'case "$*" in *--version*) echo 1;; *) {hang};; esac')
    code = (
        "import pathlib, signal, sys, threading, time\n"
        "from support.ends import end_at_once_on\n"
        "end_at_once_on(signal.SIGTERM)\n"
        "from qmix_trl.native import build\n"
        f"{BUILDS[where]}\n"
    )
    paths = os.pathsep.join([str(RECIPES), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert eventually((tmp_path / "ids").exists) or process.kill()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (75, "interrupted\n")
    assert eventually(lambda: not any(map(is_alive, children(tmp_path))))


SIGNALLED_WHILE_IT_STARTS = """\
import os, pathlib, signal, subprocess, sys, time
from support.ends import end_at_once_on
from qmix_trl.native import build

end_at_once_on(signal.SIGTERM)

class Started(subprocess.Popen):
    def __init__(self, words, **settings):
        super().__init__(words, **settings)
        if "--version" not in words:
            while not (pathlib.Path(sys.argv[1]) / "ids").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

subprocess.Popen = Started
build.build("", pathlib.Path(sys.argv[1]) / "new.so")
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
def test_a_signal_while_a_compiler_starts_ends_it_too(script, tmp_path):
    hang = HANGS.replace("{}", str(tmp_path))
    script(f'case "$*" in *--version*) echo 1;; *) {hang};; esac')
    paths = os.pathsep.join([str(RECIPES), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_WHILE_IT_STARTS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (75, "interrupted\n")
    assert eventually(lambda: not any(map(is_alive, children(tmp_path))))


def test_the_end_of_a_process_does_not_wait_for_libraries_that_are_built_ahead(monkeypatch):
    threads, is_asked = [], threading.Event()

    def missing(library, dtype):
        threads.append(threading.current_thread())
        is_asked.set()

    monkeypatch.setattr(ahead, "missing", missing)
    ahead.build_ahead()
    assert is_asked.wait(30)
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


def test_a_library_that_the_end_of_a_process_prevents_is_not_warned_of(recwarn):
    build.kill_running()
    reason = missing(lambda dtype: build.check_compiler(), torch.float32)
    assert reason == "the process ends"
    assert not recwarn.list


# ------------------------------------------------------------------------- ELF files


def test_a_whole_library_ends_where_its_head_says(tmp_path):
    build.build(SOURCE, tmp_path / "new.so")
    content = (tmp_path / "new.so").read_bytes()
    assert build.is_whole(tmp_path / "new.so")
    if not content.startswith(b"\x7fELF"):
        pytest.skip("the system's libraries are no ELF files")
    for n in (0, 3, 20, 63, 64, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.so").write_bytes(content[:n])
        assert not build.is_whole(tmp_path / "cut.so"), n
