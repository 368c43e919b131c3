"""The entries of the store of built files on disk, and their damage."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from qmix_trl.native import build, store
from qmix_trl.native.built_file import built_file, content_of, load

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


def test_a_build_is_told_to_who_listens(cache_folder, caplog):
    caplog.set_level("INFO", logger="qmix_trl")
    for _ in range(2):
        store.kept("balance-0123", lambda place: {})
    assert caplog.messages == [f"building balance, kept in {cache_folder}"]


def test_a_build_that_raises_leaves_nothing(cache_folder):
    def make(place):
        (place / "half").write_text("a")
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        store.kept("key", make)
    assert os.listdir(cache_folder) == []
    assert store.kept("key", lambda place: {"a": 1})[1] == {"a": 1}


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


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="there is no compiler"
)


@needs_compiler
def test_the_library_of_another_source_is_not_loaded(cache_folder):
    assert store.library("one", SOURCE.format(1)).answer() == 1
    store.library("two", SOURCE.format(2))
    (one,), (two,) = cache_folder.glob("one-*"), cache_folder.glob("two-*")
    (library,), (other,) = one.glob("*.so"), two.glob("*.so")
    other.replace(library)
    code = f"from qmix_trl.native import store; print(store.library('one', {SOURCE.format(1)!r})"
    done = subprocess.run([sys.executable, "-c", code + ".answer())"], capture_output=True)
    assert done.stdout.split() == [b"1"], done.stderr


@needs_compiler
def test_fifty_flipped_bits_of_a_library_are_noticed(cache_folder):
    store.library("one", SOURCE.format(1))
    (place,) = cache_folder.glob("one-*")
    (path,) = place.glob("*.so")
    content, random = path.read_bytes(), Random(0)
    for _ in range(50):
        damaged = bytearray(content)
        damaged[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        assert store.read(place.name) is None
    path.write_bytes(content)
    assert store.read(place.name) is not None


@needs_compiler
def test_a_library_that_changed_since_its_entry_was_read_is_not_loaded(tmp_path):
    build.build(SOURCE.format(1), tmp_path / "one.so")
    file = built_file(tmp_path / "one.so")
    file.path.write_bytes(file.path.read_bytes()[:-1])
    with pytest.raises(build.BuildFailed, match=r"one\.so has changed since it was built"):
        load(file)
    file.path.unlink()
    with pytest.raises(build.BuildFailed, match="a built file cannot be read"):
        load(file)


def test_a_file_that_is_no_library_is_a_failed_build(tmp_path):
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(build.BuildFailed, match="a library does not load"):
        load(built_file(tmp_path / "text.so"))


@needs_compiler
def test_a_library_without_its_function_is_built_again_once(cache_folder, monkeypatch):
    built = []

    def compiled(source, library, **settings):
        built.append(source)
        build.build(SOURCE.format(7), library)

    monkeypatch.setattr(store, "build", compiled)
    assert store.library("one", "source", "answer").answer() == 7
    (place,) = cache_folder.glob("one-*")
    with pytest.raises(build.BuildFailed, match="has no function 'other'"):
        store.library("one", "source", "other")
    assert len(built) == 2
    assert list(cache_folder.iterdir()) == [place]  # it was not kept

    (first,) = place.glob("*.so")
    build.build(SOURCE.format(8).replace("answer", "other"), first)
    notes = json.loads((place / store.NOTES).read_text())["notes"]
    (place / store.NOTES).write_text(
        store._sealed({**notes, "sha256": built_file(first).sha256}, place)
    )
    assert store.library("one", "source", "answer").answer() == 7
    assert len(built) == 3
    assert not first.exists()  # the system would give back the library that it has of this path


@pytest.mark.parametrize("name", ["elsewhere/evil.so", "../evil.so", "..", "/tmp/evil.so"])
def test_notes_cannot_name_a_file_outside_of_the_entry(cache_folder, name):
    place, notes = store.kept("key", counted([]))
    with pytest.raises(build.BuildFailed, match="expected the name of a file in"):
        store.inside(place, name)
    sealed = {"files": {name: store.hash_of(b"evil")}, "notes": notes}
    sealed["hash"] = store.hash_of(store._text(notes, sealed["files"]).encode())
    (cache_folder / "evil.so").write_bytes(b"evil")
    (place / store.NOTES).write_text(json.dumps(sealed))
    assert store.read("key") is None


def test_an_entry_that_others_may_write_to_is_made_again(cache_folder):
    made = []
    place, _ = store.kept("key", counted(made))
    place.chmod(0o770)
    store.kept("key", counted(made))
    assert len(made) == 2
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_an_entry_that_is_a_link_is_made_again(cache_folder, tmp_path):
    made = []
    place, _ = store.kept("key", counted(made))
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    store.kept("key", counted(made))
    assert (len(made), place.is_symlink()) == (2, False)


def test_a_file_cannot_become_a_link_between_its_check_and_its_reading(tmp_path, monkeypatch):
    def lstat(self):
        found = real(self)
        path.unlink()
        path.symlink_to(other)
        return found

    path, other = tmp_path / "library.so", tmp_path / "other.so"
    path.write_bytes(b"whole")
    other.write_bytes(b"other")
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lstat)
    assert content_of(path) == b"whole"
    monkeypatch.undo()
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        content_of(path)
