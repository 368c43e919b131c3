"""Saving and loading the weights of a run."""

import contextlib
import copy
import errno
import os
import zipfile
from pathlib import Path

import pytest
import torch

from qmix_trl import (
    CheckpointError,
    ConfigError,
    DivergedError,
    FeedforwardAgent,
    QMixer,
    QMixLoss,
    RecurrentAgent,
    SaveError,
    VDNMixer,
    load_weights,
    save_weights,
)

DAMAGED = "damaged, or no file of save_weights"


def feedforward(n_agents: int = 2) -> FeedforwardAgent:
    """Return a small agent with new weights."""
    return FeedforwardAgent(n_agents, 3, 4, hidden_dims=(5,))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Say whether two modules have the same weights, bit for bit."""
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


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
def test_loaded_weights_equal_the_saved_ones(make_agent, make_mixer, tmp_path):
    agent, mixer = make_agent(), make_mixer()
    save_weights(tmp_path, agent, mixer)
    other_agent, other_mixer = make_agent(), make_mixer()
    assert not same(agent, other_agent)
    load_weights(tmp_path, other_agent, other_mixer)
    assert same(agent, other_agent)
    assert mixer is None or same(mixer, other_mixer)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("make_mixer", [lambda: QMixer(2, 5), lambda: None])
def test_targets_of_a_loss_are_loaded_where_it_is_given(make_mixer, tmp_path):
    save_weights(tmp_path, feedforward(), make_mixer())
    agent, mixer = feedforward(), make_mixer()
    loss = QMixLoss(agent, mixer, gamma=0.9)
    before = loss.target_agent_params.clone()
    load_weights(tmp_path, agent, mixer)
    assert (loss.target_agent_params == before).all()
    load_weights(tmp_path, agent, mixer, loss=loss)
    assert (loss.target_agent_params != before).any()
    assert (loss.target_agent_params == loss.agent_params).all()
    assert mixer is None or (loss.target_mixer_params == loss.mixer_params).all()


def test_weights_are_loaded_from_a_folder(tmp_path):
    save_weights(tmp_path, feedforward(), None)
    with pytest.raises(ConfigError, match=rf"a run's folder, such as {tmp_path}, got .*weights.pt"):
        load_weights(tmp_path / "weights.pt", feedforward())


def test_an_agent_is_loaded_without_its_mixer(tmp_path):
    agent, other = feedforward(), feedforward()
    save_weights(tmp_path, agent, QMixer(2, 5))
    load_weights(tmp_path, other)
    assert same(agent, other)


def test_saving_again_replaces_the_weights(tmp_path):
    first, second, loaded = feedforward(), feedforward(), feedforward()
    save_weights(tmp_path, first, None)
    save_weights(tmp_path, second, None)
    load_weights(tmp_path, loaded)
    assert same(second, loaded)


def test_later_changes_of_parameters_do_not_reach_saved_weights(tmp_path):
    agent, loaded = feedforward(), feedforward()
    save_weights(tmp_path, agent, None)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 1
    load_weights(tmp_path, loaded)
    for now, then in zip(agent.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(then + 1, now)


def test_a_failed_write_leaves_the_old_weights(tmp_path, monkeypatch):
    agent, loaded = feedforward(), feedforward()
    save_weights(tmp_path, agent, None)

    def torn(place: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", torn)
        with pytest.raises(SaveError, match=r"weights\.pt: cannot be written: No space left on"):
            save_weights(tmp_path, feedforward(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]
    load_weights(tmp_path, loaded)
    assert same(agent, loaded)


def test_a_rest_of_an_interrupted_write_is_replaced(tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(b"half")
    save_weights(tmp_path, feedforward(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(number, tmp_path):
    agent, loaded = feedforward(), feedforward()
    save_weights(tmp_path, agent, None)
    before = (tmp_path / "weights.pt").read_bytes()
    name, parameter = next(agent.named_parameters())
    parameter.data.flatten()[-1] = number
    with pytest.raises(DivergedError, match=rf"agent\.{name} is no longer finite"):
        save_weights(tmp_path, agent, None)
    assert (tmp_path / "weights.pt").read_bytes() == before
    torch.save({"agent": agent.state_dict(), "mixer": {}}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=rf"agent\.{name} is not finite"):
        load_weights(tmp_path, loaded)


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
    assert DAMAGED in refusal(tmp_path, feedforward())
    assert not touched.exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert touched.exists()


def refusal(folder: Path, agent: torch.nn.Module, mixer: torch.nn.Module | None = None) -> str:
    """Return the one-line error of loading a run's weights."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_weights(folder, agent, mixer)
    message = str(caught.value)
    assert isinstance(caught.value, CheckpointError) == (DAMAGED in message)
    assert "weights_only" not in message  # which torch's own error advises to turn off
    assert message.startswith(f"{folder / 'weights.pt'}: ")
    assert len(message.splitlines()) == 1
    return message


def test_weights_of_other_sizes_are_refused(tmp_path):
    save_weights(tmp_path, feedforward(), QMixer(2, 5))
    assert "does not fit" in refusal(tmp_path, FeedforwardAgent(2, 9, 4, hidden_dims=(5,)))
    assert "does not fit" in refusal(tmp_path, RecurrentAgent(2, 3, 4))
    assert "does not fit" in refusal(tmp_path, feedforward(), QMixer(2, 6))


def test_weights_without_a_mixer_do_not_fit_a_mixer(tmp_path):
    save_weights(tmp_path, feedforward(), None)
    assert "does not fit" in refusal(tmp_path, feedforward(), QMixer(2, 5))


def test_a_folder_without_weights_is_refused(tmp_path):
    assert "interrupted" in refusal(tmp_path, feedforward())


def test_a_file_without_an_agent_is_refused(tmp_path):
    torch.save({"policy": {}}, tmp_path / "weights.pt")
    assert "does not fit" in refusal(tmp_path, feedforward())


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_truncated_file_of_weights_is_refused(share, tmp_path):
    save_weights(tmp_path, feedforward(), None)
    path = tmp_path / "weights.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert DAMAGED in refusal(tmp_path, feedforward())


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
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "old format":
        state = {"agent": feedforward().state_dict(), "mixer": {}}
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(b"")


KINDS = ["empty", "code", "list", "number", "folder", "pipe", "endless", "old format"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_of_weights_gets_one_line(kind, tmp_path):
    damage(kind, tmp_path / "weights.pt")
    assert DAMAGED in refusal(tmp_path, feedforward())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.zeros(1).expand(10**12),
    ],
    ids=["sparse", "without numbers", "a view larger than the file"],
)
def test_weights_that_are_no_dense_tensors_are_refused(tensor, tmp_path):
    torch.save({"agent": {"x": tensor}, "mixer": {}}, tmp_path / "weights.pt")
    assert "(no state dicts)" in refusal(tmp_path, feedforward())


def archive_of(agent: torch.nn.Module, folder: Path) -> dict[str, bytes]:
    """Return the entries of a file of weights, by name."""
    save_weights(folder, agent, None)
    with zipfile.ZipFile(folder / "weights.pt") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path: Path, entries: dict[str, bytes], compression: int) -> None:
    """Write entries to an archive."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_a_compressed_file_of_weights_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    agent = FeedforwardAgent(2, 3, 4, hidden_dims=(3000,))
    for parameter in agent.parameters():
        parameter.data.zero_()
    entries = archive_of(agent, tmp_path)
    write_archive(tmp_path / "weights.pt", entries, zipfile.ZIP_STORED)
    load_weights(tmp_path, agent)  # an archive of the same entries is as good
    write_archive(tmp_path / "weights.pt", entries, zipfile.ZIP_DEFLATED)
    torch.load(tmp_path / "weights.pt", weights_only=True)  # torch unpacks it
    assert 10 * (tmp_path / "weights.pt").stat().st_size < sum(map(len, entries.values()))

    def loads(*args, **kwargs):
        raise AssertionError("it is unpacked")

    monkeypatch.setattr(torch, "load", loads)
    assert "(ValueError)" in refusal(tmp_path, agent)


def test_an_archive_whose_entries_overlap_is_refused(tmp_path):
    entries = archive_of(feedforward(), tmp_path)
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        for i in range(1000):  # other names for the same bytes
            again = copy.copy(archive.filelist[0])
            again.filename = f"archive/data/x{i}"
            archive.filelist.append(again)
    assert "(ValueError)" in refusal(tmp_path, feedforward())


def test_one_damaged_byte_gets_one_line_or_loads(tmp_path):
    agent = feedforward()
    save_weights(tmp_path, agent, None)
    path = tmp_path / "weights.pt"
    content = path.read_bytes()
    for i in range(0, len(content), 7):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :])
        with contextlib.suppress(CheckpointError, ConfigError):
            load_weights(tmp_path, agent)


def test_the_refusal_of_other_sizes_names_the_mismatch(tmp_path):
    save_weights(tmp_path, feedforward(), None)
    assert "size mismatch" in refusal(tmp_path, FeedforwardAgent(2, 9, 4, hidden_dims=(5,)))
