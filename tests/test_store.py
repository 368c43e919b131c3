"""The store of built files on disk: entries, their damage, and places that cannot be written."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmix_trl.native import build, store

SOURCE = 'extern "C" int answer() {{ return {}; }}'


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """Return the folder of an empty store, which does not exist yet."""
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    return tmp_path / "steps"


def test_a_second_call_makes_nothing(cache_folder):
    made = []

    def make(place):
        made.append(place)
        (place / "lib").write_text("code")
        return {"a": [1, 2]}

    first, second = store.kept("key", make), store.kept("key", make)
    assert len(made) == 1
    assert first == second == (cache_folder / "key", {"a": [1, 2]})
    assert (cache_folder / "key" / "lib").read_text() == "code"
    store.kept("other", make)
    assert len(made) == 2
    assert sorted(os.listdir(cache_folder)) == ["key", "other"]


def test_a_build_that_raises_leaves_nothing(cache_folder):
    def make(place):
        (place / "half").write_text("a")
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        store.kept("key", make)
    assert os.listdir(cache_folder) == []
    assert store.kept("key", lambda place: {"a": 1})[1] == {"a": 1}


def race(barrier, answers):
    """Make a compiled step while another process makes the same."""

    def make(place):
        barrier.wait(20)  # both found nothing
        (place / "lib").write_text(str(os.getpid()))
        return {"by": os.getpid()}

    place, notes = store.kept("key", make)
    answers.put(((place / "lib").read_text(), notes["by"]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_leave_one_complete_folder(cache_folder):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    racers = [context.Process(target=race, args=(barrier, answers)) for _ in range(2)]
    for racer in racers:
        racer.start()
    got = [answers.get(timeout=30) for _ in racers]
    for racer in racers:
        racer.join(30)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert got[0] == got[1]
    text, by = got[0]
    assert text == str(by)
    assert by in [racer.pid for racer in racers]
    assert os.listdir(cache_folder) == ["key"]


def counted(made):
    """Return a function that makes an entry of two files and counts its calls in a list."""

    def make(place):
        made.append(place)
        (place / "library.so").write_bytes(bytes(range(256)) * 100)
        (place / "source").write_text("text")
        return {"a": [1, 2], "b": 0.1}

    return make


def replaced_by_link(path):
    path.unlink()
    path.symlink_to("/dev/zero")  # reading it never ends


def replaced_by_pipe(path):
    path.unlink()
    os.mkfifo(path)  # opening it never ends


def replaced_by_folder(path):
    path.unlink()
    path.mkdir()


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" x"),
    "text": lambda path: path.write_text("no library"),
    "missing": Path.unlink,
    "a bit": flipped,
    "folder": replaced_by_folder,
    "link": replaced_by_link,
    "pipe": replaced_by_pipe,
}


@pytest.mark.parametrize("name", ["library.so", "source", store.NOTES])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_noticed_and_the_entry_made_again(cache_folder, name, damage):
    made = []
    place, notes = store.kept("key", counted(made))
    damage(place / name)
    assert store.read("key") is None
    assert store.kept("key", counted(made)) == (place, notes)
    assert len(made) == 2
    assert (place / "library.so").read_bytes() == bytes(range(256)) * 100
    store.kept("key", counted(made))
    assert len(made) == 2
    assert os.listdir(cache_folder) == ["key"]


@pytest.mark.parametrize("text", ["[]", "1", "null", "{}", '{"hash": 1, "files": 2, "notes": 3}'])
def test_notes_of_another_form_are_damage(cache_folder, text):
    place, _ = store.kept("key", counted([]))
    (place / store.NOTES).write_text(text)
    assert store.read("key") is None


def test_a_changed_number_in_the_notes_is_damage(cache_folder):
    place, _ = store.kept("key", counted([]))
    notes = json.loads((place / store.NOTES).read_text())
    notes["notes"]["a"][0] = 7
    (place / store.NOTES).write_text(json.dumps(notes))
    assert store.read("key") is None


def test_numbers_as_keys_of_notes_are_read_as_json_has_them(cache_folder):
    first = store.kept("key", lambda place: {"by number": {10: 1, 9: 2}})
    assert first[1] == {"by number": {"10": 1, "9": 2}}
    assert store.read("key") == first[1]


@pytest.mark.parametrize("kind", ["file", "link to nothing", "empty folder"])
def test_another_thing_in_the_place_of_an_entry_is_replaced(cache_folder, kind):
    cache_folder.mkdir()
    place = cache_folder / "key"
    if kind == "file":
        place.write_text("no folder")
    elif kind == "empty folder":
        place.mkdir()
    else:
        place.symlink_to(cache_folder / "nothing")
    assert store.kept("key", counted([]))[0] == place
    assert store.read("key") == {"a": [1, 2], "b": 0.1}


def test_a_dropped_entry_is_made_again(cache_folder):
    made = []
    store.kept("key", counted(made))
    store.drop("key")
    assert os.listdir(cache_folder) == []
    store.drop("key")  # another process may have dropped it
    store.kept("key", counted(made))
    assert len(made) == 2


def place_file(path):
    path.write_text("no folder")


def place_dangling_link(path):
    path.symlink_to(path.parent / "nowhere" / "deeper")


@pytest.mark.parametrize("put", [place_file, place_dangling_link])
def test_a_store_that_cannot_be_written_is_a_failed_build_with_the_remedy(cache_folder, put):
    put(cache_folder)
    made = []
    with pytest.raises(build.BuildFailed, match=r"cannot be written \(.*QMIX_TRL_CACHE names") as e:
        store.kept("key", counted(made))
    assert "\n" not in str(e.value)
    assert made == []


def test_a_full_disk_is_a_failed_build_and_leaves_nothing(cache_folder):
    def make(place):
        (place / "half").write_text("a")
        raise OSError(28, "No space left on device")

    with pytest.raises(build.BuildFailed, match="No space left on device"):
        store.kept("key", make)
    assert os.listdir(cache_folder) == []


def test_a_store_in_a_home_that_is_no_folder_is_a_failed_build(monkeypatch):
    for name in ("QMIX_TRL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    with pytest.raises(build.BuildFailed, match="cannot be written"):
        store.kept("key", counted([]))


def test_without_a_home_the_reason_names_the_variable(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    for name in ("QMIX_TRL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(store.Path, "home", unknown)
    with pytest.raises(build.BuildFailed, match="set QMIX_TRL_CACHE"):
        store.kept("key", counted([]))


def test_folders_of_killed_builds_are_removed_after_an_hour(cache_folder):
    cache_folder.mkdir()
    ages = {".new-old": 3700, ".new-young": 3500, "key": 9999}
    for name, age in ages.items():
        (cache_folder / name).mkdir()
        (cache_folder / name / "part").write_text("a")
        os.utime(cache_folder / name, (time.time() - age,) * 2)
    store.kept("other", counted([]))
    assert sorted(os.listdir(cache_folder)) == [".new-young", "key", "other"]


def test_folders_that_are_not_kept_are_gone_at_the_end_of_the_process(tmp_path):
    code = (
        "from qmix_trl.native import store\n"
        "for _ in range(2):\n"
        "    place, notes = store.unkept(lambda place: (place / 'a').touch() or {'n': 1})\n"
        "    print(notes['n'], (place / 'a').exists())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "True"] * 2, done.stderr
    assert os.listdir(tmp_path) == []


def needs_compiler():
    try:
        build.compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))


def test_the_library_of_another_source_is_not_loaded(cache_folder):
    needs_compiler()
    assert store.library("one", SOURCE.format(1)).answer() == 1
    store.library("two", SOURCE.format(2))
    (one,), (two,) = cache_folder.glob("one-*"), cache_folder.glob("two-*")
    (one / store.LIBRARY).unlink()
    (two / store.LIBRARY).rename(one / store.LIBRARY)
    code = f"from qmix_trl.native import store; print(store.library('one', {SOURCE.format(1)!r})"
    done = subprocess.run([sys.executable, "-c", code + ".answer())"], capture_output=True)
    assert done.stdout.split() == [b"1"], done.stderr


def test_a_compiler_that_writes_nothing_is_a_failed_build(cache_folder, monkeypatch):
    monkeypatch.setattr(store, "build", lambda *args, **settings: None)
    monkeypatch.setattr(store, "compiler", lambda: "c++")
    monkeypatch.setattr(store, "toolchain", lambda: "c++ 1")
    with pytest.raises(build.BuildFailed, match="wrote no library"):
        store.library("one", "")
    assert os.listdir(cache_folder) == []


def test_a_library_that_the_system_refuses_is_a_failed_build(tmp_path):
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(build.BuildFailed, match="a library does not load"):
        store.load(tmp_path / "text.so")
