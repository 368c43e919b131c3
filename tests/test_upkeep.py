"""Stale entries of the store of built files."""

import os
import time

import pytest

from qmix_trl.native import store, upkeep
from qmix_trl.native.lock import locked

DAY = 24 * 3600


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A store of three entries of 1,000 bytes each: new, old, and old but read yesterday."""
    root = tmp_path / "built"
    monkeypatch.setenv("QMIX_TRL_CACHE", str(root))
    now = time.time()
    for name, built, read in (("new", 0, 0), ("old", 31, 31), ("read", 31, 1)):
        store.kept(name, lambda place: (place / "file").write_bytes(bytes(1000)) and {})
        times = now - read * DAY, now - built * DAY
        os.utime(root / name / store.NOTES, times)
    return root


def names(found):
    """Return the names of entries."""
    return [entry.path.name for entry in found]


def test_an_entry_is_stale_if_it_was_not_built_or_read_for_30_days(root):
    found = upkeep.entries(root)
    assert names(found) == ["new", "old", "read"]
    assert [entry.is_stale for entry in found] == [False, True, False]
    notes = (root / "old" / store.NOTES).stat().st_size
    assert found[1].n_bytes == 1000 + notes


def test_stale_entries_are_removed_and_made_again_when_they_are_needed(root):
    stale = [entry for entry in upkeep.entries(root) if entry.is_stale]
    assert names(upkeep.clean(root, stale)) == ["old"]
    assert sorted(path.name for path in root.iterdir()) == ["new", "read"]
    made = []
    store.kept("old", lambda place: made.append(place) or {})
    assert len(made) == 1


def test_an_entry_that_is_being_built_stays(root):
    stale = [entry for entry in upkeep.entries(root) if entry.is_stale]
    with locked(root / f"{store.LOCK}old", 0):
        assert upkeep.clean(root, stale) == []
    assert (root / "old" / store.NOTES).exists()


def test_folders_of_builds_are_no_entries(root):
    (root / f"{store.UNFINISHED}old-x").mkdir()
    (root / f"{store.LOCK}old").write_text("")
    assert names(upkeep.entries(root)) == ["new", "old", "read"]


def test_a_store_that_does_not_exist_has_no_entries(tmp_path):
    assert upkeep.entries(tmp_path / "none") == []
