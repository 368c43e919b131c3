"""A run's folder, its table of metrics and its weights."""

import contextlib
import csv
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

from qmix_trl import (
    ConfigError,
    FeedforwardAgent,
    QMixer,
    RecurrentAgent,
    VDNMixer,
    load_weights,
    save_weights,
)
from qmix_trl.logs import PLAIN_WIDTH, SHOWN_ROWS, Column, RunLog, make_run_folder, write_json

COLUMNS = (
    Column("frames", "frames", ",d"),
    Column("loss", "the loss", ".4f"),
    Column("greedy_return", "greedy", ".2f"),
)


def table(folder: Path) -> list[list[str]]:
    """Return the cells of a run's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def feedforward(n_agents: int = 2) -> FeedforwardAgent:
    """Return a small agent with weights of its own."""
    return FeedforwardAgent(n_agents, 3, 4, hidden_dims=(5,))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Say whether two modules have the same weights, to the bit."""
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


# The folder


def test_auto_numbers_on(tmp_path):
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
def test_auto_takes_the_number_after_the_last(there, made, tmp_path):
    for name in there:
        (tmp_path / name).mkdir()
    assert make_run_folder(tmp_path, "auto", stem="a").name == made


def test_auto_does_not_take_the_name_of_a_file(tmp_path):
    (tmp_path / "a-1").write_text("kept")
    assert make_run_folder(tmp_path, "auto", stem="a").name == "a-2"
    assert (tmp_path / "a-1").read_text() == "kept"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_that_is_taken_is_refused(kind, tmp_path):
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


# The table


def test_a_row_a_call_and_an_empty_cell_for_none(tmp_path):
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        log.row({"frames": 8, "loss": 0.123456789, "greedy_return": None})
        log.row({"greedy_return": -1.5, "frames": 16000, "loss": 1e-12, "unknown": 3})
    assert table(tmp_path) == [
        ["frames", "loss", "greedy_return"],
        ["8", "0.123456789", ""],
        ["16000", "1e-12", "-1.5"],
    ]


def test_a_row_is_on_the_disk_at_once(tmp_path):
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        log.row({"frames": 8, "loss": 0.5, "greedy_return": 1.0})
        assert table(tmp_path)[1:] == [["8", "0.5", "1.0"]]


def test_a_missing_column_is_refused_and_nothing_is_written(tmp_path):
    with RunLog(tmp_path, COLUMNS, caption="") as log, pytest.raises(KeyError, match="loss"):
        log.row({"frames": 8, "greedy_return": None})
    assert len(table(tmp_path)) == 1


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with RunLog(tmp_path, COLUMNS, caption="below") as log:
        log.row({"frames": 16000, "loss": 0.123456, "greedy_return": None})
        log.row({"frames": 8, "loss": 100.0, "greedy_return": -1.006})
    # Headings and values in their columns' formats, each right in a column of its own.
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
        for frames in range(SHOWN_ROWS + 1):
            log.row({"frames": frames + 1000, "loss": 0.5, "greedy_return": None})
    out = capsys.readouterr().out
    assert "doing nothing 0.17" in out
    assert "1,000" in out
    last = out[out.rindex("the loss") :]
    assert "1,012" in last
    assert "1,000" not in last


def test_plain_lines_where_there_is_no_rich(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with RunLog(tmp_path, COLUMNS, caption="") as log:
        log.row({"frames": 8, "loss": 0.5, "greedy_return": None})
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[-1].strip() == "greedy"
    assert row.split() == ["8", "0.5000"]


# The weights


@pytest.mark.parametrize(
    ("make_agent", "make_mixer"),
    [
        (lambda: FeedforwardAgent(2, 3, 4), lambda: QMixer(2, 5)),
        (lambda: RecurrentAgent(2, 3, 4), lambda: QMixer(2, 5, hypernet_layers=2)),
        (lambda: RecurrentAgent(2, 3, 4, share_parameters=False), VDNMixer),
        (lambda: FeedforwardAgent(2, 3, 4), lambda: None),
    ],
    ids=["feedforward-qmix", "recurrent-qmix2", "unshared-vdn", "no-mixer"],
)
def test_weights_come_back(make_agent, make_mixer, tmp_path):
    agent, mixer = make_agent(), make_mixer()
    save_weights(tmp_path, agent, mixer)
    other_agent, other_mixer = make_agent(), make_mixer()
    assert not same(agent, other_agent)
    load_weights(tmp_path, other_agent, other_mixer)
    assert same(agent, other_agent)
    assert mixer is None or same(mixer, other_mixer)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_an_agent_is_loaded_without_its_mixer(tmp_path):
    agent, other = feedforward(), feedforward()
    save_weights(tmp_path, agent, QMixer(2, 5))
    load_weights(tmp_path, other)
    assert same(agent, other)


def test_saving_again_replaces(tmp_path):
    first, second, loaded = feedforward(), feedforward(), feedforward()
    save_weights(tmp_path, first, None)
    save_weights(tmp_path, second, None)
    load_weights(tmp_path, loaded)
    assert same(second, loaded)


def test_weights_are_saved_as_the_parameters_of_that_time(tmp_path):
    agent, loaded = feedforward(), feedforward()
    save_weights(tmp_path, agent, None)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 1
    load_weights(tmp_path, loaded)
    for now, then in zip(agent.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(then + 1, now)


def test_the_old_weights_stay_if_writing_stops(tmp_path, monkeypatch):
    agent, loaded = feedforward(), feedforward()
    save_weights(tmp_path, agent, None)

    def torn(state: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        save_weights(tmp_path, feedforward(), None)
    load_weights(tmp_path, loaded)
    assert same(agent, loaded)


def test_only_tensors_are_stored(tmp_path):
    save_weights(tmp_path, feedforward(), QMixer(2, 5))
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert set(state) == {"agent", "mixer"}
    for part in state.values():
        assert part
        assert all(type(value) is torch.Tensor for value in part.values())


class Code:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    touched = tmp_path / "touched"
    torch.save({"agent": Code(touched), "mixer": {}}, tmp_path / "weights.pt")
    with pytest.raises((ConfigError, pickle.UnpicklingError)):
        load_weights(tmp_path, feedforward())
    assert not touched.exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert touched.exists()


def refusal(folder: Path, agent: torch.nn.Module, mixer: torch.nn.Module | None = None) -> str:
    """Return the one line that a run's weights are refused with."""
    with pytest.raises(ConfigError) as caught:
        load_weights(folder, agent, mixer)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'weights.pt'}: ")
    assert len(message.splitlines()) == 1
    return message


def test_weights_of_other_sizes_are_refused(tmp_path):
    save_weights(tmp_path, feedforward(), QMixer(2, 5))
    assert "does not fit" in refusal(tmp_path, FeedforwardAgent(2, 9, 4, hidden_dims=(5,)))
    assert "does not fit" in refusal(tmp_path, RecurrentAgent(2, 3, 4))
    assert "does not fit" in refusal(tmp_path, feedforward(), QMixer(2, 6))


def test_the_weights_of_no_mixer_fit_no_mixer(tmp_path):
    save_weights(tmp_path, feedforward(), None)
    assert "does not fit" in refusal(tmp_path, feedforward(), QMixer(2, 5))


def test_a_folder_without_weights_is_refused(tmp_path):
    assert "interrupted" in refusal(tmp_path, feedforward())


def test_a_file_without_an_agent_is_refused(tmp_path):
    torch.save({"policy": {}}, tmp_path / "weights.pt")
    assert "does not fit" in refusal(tmp_path, feedforward())


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_file_of_weights_that_is_cut_is_refused(share, tmp_path):
    save_weights(tmp_path, feedforward(), None)
    path = tmp_path / "weights.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cannot be read" in refusal(tmp_path, feedforward())


def damage(kind: str, path: Path) -> None:
    """Write a file of weights that cannot be loaded."""
    if kind == "code":
        torch.save({"agent": Code(path.parent / "touched"), "mixer": {}}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "number":
        torch.save({"agent": 3}, path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("kind", ["empty", "code", "list", "number", "folder"])
def test_a_damaged_file_of_weights_gets_one_line(kind, tmp_path):
    damage(kind, tmp_path / "weights.pt")
    refusal(tmp_path, feedforward())


def test_one_damaged_byte_gets_one_line_or_loads(tmp_path):
    agent = feedforward()
    save_weights(tmp_path, agent, None)
    path = tmp_path / "weights.pt"
    content = path.read_bytes()
    for i in range(0, len(content), 7):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :])
        with contextlib.suppress(ConfigError):
            load_weights(tmp_path, agent)


def test_weights_of_other_sizes_name_what_differs(tmp_path):
    save_weights(tmp_path, feedforward(), None)
    assert "size mismatch" in refusal(tmp_path, FeedforwardAgent(2, 9, 4, hidden_dims=(5,)))


def test_auto_numbers_on_for_a_stem_with_brackets(tmp_path):
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
