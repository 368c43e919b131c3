"""A run's folder and its table of metrics."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import pytest

from qmix_trl import ConfigError, SaveError, logs
from qmix_trl.logs import (
    PLAIN_WIDTH,
    SHOWN_LINES,
    Column,
    MetricsFile,
    RunLog,
    fitting,
    make_run_folder,
    write_json,
    write_whole,
)

COLUMNS = (
    Column("frames", "frames", ",d"),
    Column("loss", "the loss", ".4f"),
    Column("greedy_return", "greedy", ".2f"),
)


def table(folder: Path) -> list[list[str]]:
    """Return the cells of a run's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_automatic_names_are_numbered(tmp_path):
    runs = tmp_path / "not" / "yet"
    assert make_run_folder(runs, "auto", stem="quick") == runs / "quick-1"
    assert make_run_folder(runs, "auto", stem="quick") == runs / "quick-2"
    assert make_run_folder(runs, "auto", stem="other") == runs / "other-1"
    assert (runs / "quick-2").is_dir()


@pytest.mark.parametrize(
    ("there", "made"),
    [
        (["a-7"], "a-8"),
        (["a-2", "a-10"], "a-11"),
        (["a-1", "a-x", "a-3-copy", "ab-9", "b-9"], "a-2"),
        (["a-b-4"], "a-1"),
        (["a"], "a-1"),
    ],
)
def test_an_automatic_name_has_the_number_after_the_greatest(there, made, tmp_path):
    for name in there:
        (tmp_path / name).mkdir()
    assert make_run_folder(tmp_path, "auto", stem="a").name == made


def test_an_automatic_name_is_not_that_of_a_file(tmp_path):
    (tmp_path / "a-1").write_text("kept")
    assert make_run_folder(tmp_path, "auto", stem="a").name == "a-2"
    assert (tmp_path / "a-1").read_text() == "kept"


def test_an_automatic_name_that_another_run_takes_is_passed_over(tmp_path, monkeypatch):
    number = logs._next_number

    def late(root, stem):
        """Return the number; another run makes the first two of these folders right then."""
        found = number(root, stem)
        if found < 3:
            (root / f"{stem}-{found}").mkdir(parents=True)
        return found

    monkeypatch.setattr(logs, "_next_number", late)
    assert make_run_folder(tmp_path / "runs", "auto", stem="x").name == "x-3"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_that_exists_is_refused(kind, tmp_path):
    if kind == "folder":
        made = make_run_folder(tmp_path, "mine", stem="a")
        assert made == tmp_path / "mine"
        (made / "metrics.csv").write_text("kept")
    else:
        (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConfigError, match=r"^name: .*mine exists and is not overwritten") as caught:
        make_run_folder(tmp_path, "mine", stem="a")
    assert "\n" not in str(caught.value)
    kept = tmp_path / "mine" / "metrics.csv" if kind == "folder" else tmp_path / "mine"
    assert kept.read_text() == "kept"


def test_write_json(tmp_path):
    content = {"a": 1, "b": {"c": [0.1, None, "é"]}}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == content


def test_automatic_names_are_numbered_for_a_stem_with_brackets(tmp_path):
    make_run_folder(tmp_path, "auto", stem="a[1]")
    assert make_run_folder(tmp_path, "auto", stem="a[1]").name == "a[1]-2"


@pytest.mark.parametrize("name", ["auto", "mine"])
def test_a_folder_of_runs_that_is_a_file_is_refused(name, tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError):
        make_run_folder(tmp_path / "runs", name, stem="a")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        make_run_folder(tmp_path, "a" * 1000, stem="a")


def test_each_call_writes_a_line_with_empty_cells_for_none(tmp_path):
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        log.write({"frames": 8, "loss": 0.123456789, "greedy_return": None})
        log.write({"greedy_return": -1.5, "frames": 16000, "loss": 1e-12, "unknown": 3})
    assert table(tmp_path) == [
        ["frames", "loss", "greedy_return"],
        ["8", "0.123456789", ""],
        ["16000", "1e-12", "-1.5"],
    ]


def test_a_line_is_on_the_disk_at_once(tmp_path):
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        log.write({"frames": 8, "loss": 0.5, "greedy_return": 1.0})
        assert table(tmp_path)[1:] == [["8", "0.5", "1.0"]]


def test_a_missing_metric_is_refused_and_nothing_is_written(tmp_path):
    with RunLog(tmp_path, COLUMNS, caption="") as log, pytest.raises(KeyError, match="loss"):
        log.write({"frames": 8, "greedy_return": None})
    assert len(table(tmp_path)) == 1


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    with RunLog(tmp_path, COLUMNS, caption="below") as log:
        log.write({"frames": 16000, "loss": 0.123456, "greedy_return": None})
        log.write({"frames": 8, "loss": 100.0, "greedy_return": -1.006})
    # Headings and formatted values, aligned right.
    cells = [
        ("frames", "the loss", "greedy"),
        ("16,000", "0.1235", ""),
        ("8", "100.0000", "-1.01"),
    ]
    lines = ["  ".join(" " * (PLAIN_WIDTH - len(cell)) + cell for cell in row) for row in cells]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_live_table_in_a_terminal(tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with RunLog(tmp_path, COLUMNS, caption="doing nothing 0.17") as log:
        for frames in range(SHOWN_LINES + 1):
            log.write({"frames": frames + 1000, "loss": 0.5, "greedy_return": None})
    out = capsys.readouterr().out
    assert "doing nothing 0.17" in out
    assert "1,000" in out
    last = out[out.rindex("the loss") :]
    assert "1,012" in last
    assert "1,000" not in last


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        # Borders and columns of 6, 8 and 6 letters, the longest of heading and cell:
        # | 16,000 | the loss | greedy | are 1 + 7 + 9 + 7 = 24.
        (100, 3),
        (24, 3),
        (23, 2),
        (17, 2),
        (16, 1),
        (8, 1),
        (3, 1),
    ],
)
def test_as_many_columns_are_shown_as_fit(width, expected):
    headings = [column.heading for column in COLUMNS if column.heading]
    assert headings == ["frames", "the loss", "greedy"]
    assert fitting([headings, ["16,000", "0.1235", ""]], width) == expected


@pytest.mark.parametrize(("width", "is_whole"), [(60, True), (20, False)])
def test_a_narrow_terminal_cuts_no_number(width, is_whole, tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        log.write({"frames": 16000, "loss": 0.123456, "greedy_return": -1.5})
    out = capsys.readouterr().out
    assert "16,000" in out
    assert "0.1235" in out
    assert "…" not in out
    assert ("-1.50" in out) == is_whole


def test_plain_lines_in_a_terminal_that_cannot_move_back(tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        assert len(capsys.readouterr().out.splitlines()) == 1
        log.write({"frames": 8, "loss": 0.5, "greedy_return": None})
        assert capsys.readouterr().out.split() == ["8", "0.5000"]


def test_plain_lines_show_the_columns_that_fit_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    for width, n_shown in ((31, 3), (30, 2), (5, 1)):
        monkeypatch.setenv("COLUMNS", str(width))
        folder = tmp_path / str(width)
        folder.mkdir()
        with RunLog(folder, COLUMNS, caption="") as log:
            log.write({"frames": 16000, "loss": 0.123456, "greedy_return": -1.5})
        heading, row = capsys.readouterr().out.splitlines()
        assert row.split() == ["16,000", "0.1235", "-1.50"][:n_shown]
        assert max(len(heading), len(row)) <= max(width, PLAIN_WIDTH)
        assert len(table(folder)[1]) == len(COLUMNS)


def test_plain_lines_without_rich(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        log.write({"frames": 8, "loss": 0.5, "greedy_return": None})
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[-1].strip() == "greedy"
    assert row.split() == ["8", "0.5000"]


def test_a_whole_file_and_its_name_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(place, *to, name=name, real=real):
            at = place if to else Path(f"/proc/self/fd/{place}").resolve()
            done.append((name, Path(at).name))
            return real(place, *to)

        monkeypatch.setattr(os, name, noted)
    write_whole(tmp_path / "x", "1")
    expected = [("fsync", "x.part"), ("replace", "x.part"), ("fsync", tmp_path.name)]
    assert done == expected
    write_whole(tmp_path / "x", "1")
    assert done == expected
    write_whole(tmp_path / "x", "2")
    assert done == 2 * expected
    assert (tmp_path / "x").read_text() == "2"


def test_a_failing_disk_is_one_error_where_the_file_cannot_be_cut(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file = MetricsFile(tmp_path, ["frames"])
    with monkeypatch.context() as patch:
        for name in ("pwrite", "ftruncate"):
            patch.setattr(os, name, fails)
        with pytest.raises(SaveError, match=r"metrics\.csv: cannot be written: Input/output error"):
            file.write([1])
    file.write([2])
    file.close()
    assert table(tmp_path) == [["frames"], ["2"]]
