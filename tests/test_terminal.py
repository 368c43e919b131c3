"""Lines that fit a terminal, and whole lines in a pipe."""

import logging
import sys

import names as listing
import pytest
from support.curve_report import print_columns
from support.terminal import aligned, cells_line, filled, tell_builds

TABLE = [
    ("task", "group", "value", "[95 %]", "seeds"),
    ("balance", "doing nothing", "-1.40", "", ""),
    ("balance", "qmix", "-11.34", "[-12.34, -10.34]", "5"),
]


@pytest.fixture
def terminal(monkeypatch):
    """Make standard output a terminal of 40 columns."""
    monkeypatch.setattr("support.terminal.terminal_width", lambda: 40)


def test_a_pipe_gets_whole_lines(capsys):
    words = " ".join(["word"] * 50)
    assert filled(words) == words
    print_columns(TABLE)
    assert len(capsys.readouterr().out.splitlines()) == len(TABLE)


def test_a_terminal_breaks_a_list_between_words(terminal):
    words = " ".join(listing.names("scenarios"))
    lines = filled(words).splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines) == words


def test_a_terminal_breaks_the_lines_of_a_table_between_the_same_cells(terminal, capsys):
    print_columns(TABLE)
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()] == [
        ["task", "group", "value"],
        ["[95", "%]", "seeds"],
        ["balance", "doing", "nothing", "-1.40"],
        ["balance", "qmix", "-11.34"],
        ["[-12.34,", "-10.34]", "5"],
    ]
    assert printed.splitlines()[4].startswith("    [-12.34")


def test_cells_that_fit_stay_in_one_line(terminal):
    line = cells_line(aligned([("a" * 19, "1" * 19)], n_texts=1)[0])
    assert line == f"{'a' * 19}  {'1' * 19}"
    assert cells_line(["a" * 19, "1" * 20]).count("\n") == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_is_told_of_builds(is_terminal, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    log = logging.getLogger("qmix_trl")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.NOTSET)
    tell_builds.__wrapped__()
    assert len(log.handlers) == is_terminal
    assert (log.level == logging.INFO) == is_terminal
