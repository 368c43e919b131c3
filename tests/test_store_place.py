"""The place of the store: who owns it, where it cannot be written, and processes that share it."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from qmix_trl.native import build, built_file, lock, place, store


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """Return the folder of an empty store, which does not exist yet; no warning was given yet."""
    monkeypatch.setattr(place, "_WARNED", [])
    monkeypatch.setattr(place, "_TEMPORARY", [])
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    return tmp_path / "steps"


def make(folder):
    """Make an entry of one file."""
    (folder / "lib").write_text("code")
    return {"a": 1}


def is_temporary(folder):
    """Return whether an entry is complete, in a folder that is removed at the end."""
    assert (folder / "lib").read_text() == "code"
    return folder.parent.name.startswith("qmix_trl-")


# ------------------------------------------------------------------------------ ownership


def test_no_other_user_can_read_a_new_store(cache_folder):
    store.kept("key", make)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (cache_folder, cache_folder / "key")]
    assert modes == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_store_that_others_may_write_to_is_passed_over(cache_folder, mode):
    store.kept("key", make)
    cache_folder.chmod(mode)
    message = f"is not trusted.* mode {mode:03o}.*writable by no one else.*QMIX_TRL_CACHE names"
    with pytest.warns(UserWarning, match=message) as warned:
        found, notes = store.kept("key", make)
    assert (is_temporary(found), notes, len(warned)) == (True, {"a": 1}, 1)
    assert store.kept("key", lambda folder: 1 // 0) == (found, notes)  # from there, and no word


@pytest.mark.parametrize(("owner", "trusted"), [("user", True), ("root", True), ("other", False)])
def test_a_store_of_another_user_is_passed_over(cache_folder, monkeypatch, owner, trusted):
    store.kept("key", make)
    mine = cache_folder.stat().st_uid
    monkeypatch.setattr(place.os, "geteuid", lambda: mine if owner == "user" else mine + 1)
    monkeypatch.setattr(place, "ROOT_USER", mine if owner == "root" else mine + 2)
    with nullcontext() if trusted else pytest.raises(place.Unusable, match="is not trusted"):
        place.check_trusted(cache_folder)
    assert (store.read("key") is not None) == trusted


# ------------------------------------------------------------- where it cannot be written


def put_file(path):
    path.write_text("no folder")


def put_dangling_link(path):
    path.symlink_to(path.parent / "nowhere" / "deeper")


@pytest.mark.parametrize("put", [put_file, put_dangling_link])
def test_where_the_store_is_no_folder_a_temporary_one_serves(cache_folder, put):
    put(cache_folder)
    with pytest.warns(UserWarning, match="a temporary folder serves .*QMIX_TRL_CACHE") as warned:
        found = [store.kept(key, make)[0] for key in ("key", "other")]
    assert all(map(is_temporary, found))
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)


@pytest.mark.parametrize("home", ["/dev/null", "/proc", "/proc/1/nowhere"])
def test_where_home_cannot_be_written_a_temporary_folder_serves(cache_folder, monkeypatch, home):
    for name in ("QMIX_TRL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    with pytest.warns(UserWarning, match=rf"{home}/.*; a temporary folder serves"):
        assert is_temporary(store.kept("key", make)[0])


def test_without_a_home_the_warning_names_the_variable(cache_folder, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    for name in ("QMIX_TRL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(place.Path, "home", unknown)
    with pytest.warns(UserWarning, match="there is no place to build .*QMIX_TRL_CACHE names"):
        assert is_temporary(store.kept("key", make)[0])


def test_a_complete_store_that_is_read_only_serves(cache_folder, monkeypatch):
    found, notes = store.kept("key", make)

    def refuse(path, flags, *args):
        if Path(path).is_relative_to(cache_folder) and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, flags, *args)

    opened = os.open
    monkeypatch.setattr(lock.os, "open", refuse)
    assert store.kept("key", make) == (found, notes)
    with pytest.warns(UserWarning, match="cannot be written .*Read-only file system"):
        assert is_temporary(store.kept("other", make)[0])


def test_an_entry_that_cannot_be_removed_is_not_used_again(cache_folder, monkeypatch):
    found, _ = store.kept("key", make)

    def refuse(*args):
        raise OSError(30, "Read-only file system", str(found))

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "rename", refuse)
        store.drop("key")
    assert store.read("key") is None
    assert found.exists()
    assert store.kept("key", make)[0] == found  # in place of the old one
    assert store.read("key") == {"a": 1}


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), build.DiskFull("g++: No space left on device")],
)
def test_where_the_disk_is_full_a_temporary_folder_serves_and_nothing_is_left(cache_folder, error):
    places = []

    def full(folder):
        places.append(folder)
        if folder.is_relative_to(cache_folder):
            (folder / "half").write_text("a")
            raise error
        return make(folder)

    with pytest.warns(UserWarning, match="No space left on device.*QMIX_TRL_CACHE") as warned:
        found = [store.kept(key, full)[0] for key in ("key", "other")]
    assert all(map(is_temporary, found))
    assert len(warned) == 1
    # The full store is not tried again.
    assert sum(path.is_relative_to(cache_folder) for path in places) == 1
    assert list(cache_folder.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*a temporary folder serves")
def test_where_no_folder_can_be_written_the_build_fails_in_one_line(cache_folder):
    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(build.BuildFailed, match=r"QMIX_TRL_CACHE and TMPDIR name others") as found:
        store.kept("key", full)
    assert "\n" not in str(found.value)
    with pytest.raises(build.BuildFailed, match="it is not kept, and the temporary"):
        store.unkept(full)


def test_a_scenario_that_reads_a_missing_file_is_no_fault_of_the_store(cache_folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.kept("key", lambda folder: (tmp_path / "missing").read_text())
    assert store.kept("key", make)[0] == cache_folder / "key"


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="the system has no such flag")
def test_a_library_on_a_disk_without_programs_is_loaded_from_a_copy(cache_folder, monkeypatch):
    found = []
    monkeypatch.setattr(built_file.os, "ST_NOEXEC", -1)  # all disks have some flag
    monkeypatch.setattr(built_file.ctypes, "CDLL", lambda path: found.append(Path(path)))
    file = built_file.built_file(store.kept("key", make)[0] / "lib")
    with pytest.warns(UserWarning, match="steps is on a disk mounted noexec"):
        built_file.load(file)
    (copy,) = found
    assert copy.parents[1].name.startswith("qmix_trl-")
    assert copy.read_text() == "code"


def test_temporary_folders_are_gone_at_the_end_of_the_process(tmp_path):
    code = (
        "from qmix_trl.native import store\n"
        "for _ in range(2):\n"
        "    place, notes = store.unkept(lambda place: (place / 'a').touch() or {'n': 1})\n"
        "    print(notes['n'], (place / 'a').exists())\n"
        "place, _ = store.kept('key', lambda place: {'n': 1})\n"
        "print(place.exists())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "QMIX_TRL_CACHE": "/dev/null/cache"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "True", "1", "True", "True"], done.stderr
    assert os.listdir(tmp_path) == []


# ----------------------------------------------------------------- processes and kills


def make_slowly(barrier, answers):
    """Make an entry while another process makes the same; answer with the times of the call."""

    def slow(folder):
        time.sleep(0.3)
        return make(folder) | {"by": os.getpid()}

    barrier.wait(20)
    _, notes = store.kept("key", slow)
    answers.put(notes["by"])


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")


@fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_of_processes_that_need_the_same_entry_one_makes_it(cache_folder):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    racers = [context.Process(target=make_slowly, args=(barrier, answers)) for _ in range(3)]
    for racer in racers:
        racer.start()
    makers = {answers.get(timeout=30) for _ in racers}
    for racer in racers:
        racer.join(30)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert len(makers) == 1
    assert os.listdir(cache_folder) == ["key"]


def hold(folder, is_making):
    """Begin to make an entry and never end."""

    def endless(place):
        (place / "half").write_text("a")
        is_making.set()
        time.sleep(1000)

    os.environ["QMIX_TRL_CACHE"] = str(folder)
    store.kept("key", endless)


@pytest.fixture
def holder(cache_folder):
    """Yield a process that makes an entry and never ends."""
    context = multiprocessing.get_context("spawn")
    is_making = context.Event()
    process = context.Process(target=hold, args=(cache_folder, is_making))
    process.start()
    assert is_making.wait(60)
    yield process
    process.kill()
    process.join()


def test_what_a_killed_build_leaves_is_not_used_and_swept_at_the_next_start(cache_folder, holder):
    names = sorted(name.split("-")[0] for name in os.listdir(cache_folder))
    assert names == [".lock", ".new"]
    holder.kill()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    assert store.read("key") is None
    store._sweep.cache_clear()
    store.kept("other", make)
    assert os.listdir(cache_folder) == ["other"]
    store.kept("key", make)  # the dead process's lock is free
    assert sorted(os.listdir(cache_folder)) == ["key", "other"]


def test_a_build_under_way_is_not_swept_and_waited_for_only_so_long(
    cache_folder, holder, monkeypatch
):
    before = sorted(os.listdir(cache_folder))
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)
    store._sweep.cache_clear()
    with pytest.warns(UserWarning, match="another process has built it for over 0.1 s"):
        assert is_temporary(store.kept("key", make)[0])
    assert sorted(os.listdir(cache_folder)) == before


def test_folders_without_a_lock_are_swept_after_an_hour(cache_folder, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    cache_folder.mkdir(0o700)
    ages = {".new-key-old": 3700, ".new-key-young": 3500, ".new-odd": 3500, "key": 9999}
    for name, age in ages.items():
        (cache_folder / name).mkdir()
        (cache_folder / name / "part").write_text("a")
        os.utime(cache_folder / name, (time.time() - age,) * 2)
    store.kept("other", make)
    left = sorted(os.listdir(cache_folder))
    assert left == [".new-key-young", ".new-odd", "key", "other"]


def test_the_lock_of_another_thread_is_waited_for(tmp_path):
    path = tmp_path / "lock"
    with lock.locked(path, 0) as is_held:
        assert is_held
        with pytest.raises(TimeoutError), lock.locked(path, 0.1):
            pass
    assert not path.exists()
    with pytest.raises(ValueError, match="inside"), lock.locked(path, 0):
        raise ValueError("inside")
    with lock.locked(path, 0) as is_held:
        assert is_held
