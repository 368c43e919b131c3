"""Checkpoints on disk: exactness of values, damage, hostile files, full disks, kills."""

import errno
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from resume_tools import exact
from tensordict import TensorDict
from torch import nn

from qmix_trl import CheckpointError, MachineError, SaveError, load_run, save_run
from qmix_trl.checkpoint import files, nested, run
from qmix_trl.checkpoint.nested import DTYPES, MOST_DEEP
from qmix_trl.native import lock


def bits(dtype, n=64):
    """Return n numbers of a dtype with random bits, NaN and infinities among them."""
    if dtype == torch.bool:
        return torch.rand(n) < 0.5
    return torch.randint(256, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype)


def loaded(folder, value):
    """Return a value that was saved and loaded."""
    save_run(folder, value=value)
    return load_run(folder).values["value"]


# -------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_tensors_of_every_dtype_come_back_bit_for_bit(dtype, tmp_path):
    x = bits(dtype)
    value = {
        "whole": x,
        "one": x[3],
        "empty": x[:0],
        "empty matrix": x[:0].view(0, 5),
        "columns": x.view(8, 8).t(),
        "every third": x[::3],
        "same number": x[:1].expand(4, 3),
        "shared": [x, x[8:16]],
        "parameter": nn.Parameter(x[:4].clone(), requires_grad=False),
    }
    assert exact(loaded(tmp_path, value)) == exact(value)


def test_conjugate_and_negative_views_come_back_as_numbers(tmp_path):
    x = torch.tensor([1 + 2j, -3j])
    value = [x.conj(), x.conj().imag]
    for got, expected in zip(loaded(tmp_path, value), value, strict=True):
        assert torch.equal(got, expected.clone())


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**80),
        0.1,
        -0.0,
        float("inf"),
        'a b\n"{\\ü\u2028\U0001f600',
        [],
        (),
        {},
        [1, [2.5, None], (3, "x")],
        {1: "int", "1": "text", None: 0, False: True, 2.5: []},
        {"tensor": 1, "shape": [2], "dict": [], "size": []},
        torch.Size([2, 3]),
        torch.device("cuda:1"),
        (torch.tensor([0.1, -2.0]), {"x": [torch.arange(3)]}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_values_come_back_as_they_were(value, tmp_path):
    got = loaded(tmp_path, value)
    assert exact(got) == exact(value)
    assert str(got) == str(value)  # the sign of zero, and the order of dictionaries


def test_tensordicts_keep_their_batch_sizes(tmp_path):
    inner = TensorDict({"y": torch.rand(2, 3, 4)}, [2, 3])
    value = TensorDict({"x": torch.rand(2), "a": inner, "none": TensorDict({}, [2])}, [2])
    got = loaded(tmp_path, value)
    assert exact(got) == exact(value)
    assert got.get("a").batch_size == torch.Size([2, 3])
    assert got.get("none").is_empty()


def test_nan_comes_back(tmp_path):
    got = loaded(tmp_path, [float("nan")])
    assert got[0] != got[0]


def test_loaded_tensors_share_no_memory(tmp_path):
    x = torch.zeros(4)
    first, second = loaded(tmp_path, [x, x])
    first += 1
    assert second.sum() == 0


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (TensorDict({"x": "text"}, []), r"value: expected a TensorDict of tensors, got \['x'\]"),
        ({"a": [object()]}, r"value\.a\.0: .* got object"),
        ({"a": {(1, 2): 3}}, r"value\.a: expected keys .* tuple \(1, 2\)"),
        (torch.eye(2).to_sparse(), r"value: expected a dense tensor .* torch\.sparse_coo"),
        (torch.empty(2, device="meta"), "on meta"),
        ({"a": print}, "got builtin_function_or_method"),
        ({"a": {1, 2}}, "got set"),
        ({"a": b"x"}, "got bytes"),
    ],
)
def test_other_values_are_refused_by_name_and_leave_nothing(value, named, tmp_path):
    with pytest.raises(TypeError, match=named):
        save_run(tmp_path, value=value)
    assert not list(tmp_path.iterdir())


def test_nesting_has_a_limit_that_saving_and_loading_share(tmp_path):
    value = []
    for _ in range(MOST_DEEP):
        value = [value]
    assert loaded(tmp_path, value) == value
    with pytest.raises(TypeError, match="at most 50 levels"):
        save_run(tmp_path, value=[value])


def test_a_state_whose_text_is_too_long_to_load_is_refused(monkeypatch, tmp_path):
    for most, file in (("MOST_STATE_BYTES", "state"), ("MOST_MANIFEST_BYTES", "manifest")):
        with monkeypatch.context() as patch:
            patch.setattr(run, most, 500)
            with pytest.raises(TypeError, match=rf"at most 500 bytes .* in {file}\.json"):
                save_run(tmp_path, value=[0] * 500)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------- parts


def network(seed):
    """Return a small network."""
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


def test_parts_must_be_those_that_were_saved(tmp_path):
    a, b = network(0), network(1)
    save_run(tmp_path, a=a, b=b, frames=3)
    for parts in ({"a": a}, {"a": a, "b": b, "c": a}, {}, {"a": a, "b": b, "frames": a}):
        with pytest.raises(CheckpointError, match="expected the parts a, b as it was saved, got"):
            load_run(tmp_path, **parts)
    assert load_run(tmp_path, a=a, b=b).values == {"frames": 3}


def test_a_part_that_does_not_fit_is_named(tmp_path):
    save_run(tmp_path, net=network(0))
    with pytest.raises(CheckpointError, match=r"checkpoint-000001: net does not fit: .*size mis"):
        load_run(tmp_path, net=nn.Linear(5, 4))


@pytest.mark.parametrize("name", ["random", "_x", "x-y", "a/b", "..", "", "x" * 65, "ü"])
def test_names_of_parts_that_are_no_names_of_files_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="cannot have the name"):
        save_run(tmp_path, **{name: 1})


def test_objects_without_a_state_are_refused(tmp_path):
    with pytest.raises(TypeError, match="thing: expected an object with state_dict"):
        save_run(tmp_path, thing=object())


def test_a_generator_and_a_scheduler_are_parts(tmp_path):
    generator = torch.Generator().manual_seed(3)
    net = network(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    parts = {"generator": generator, "optimizer": optimizer, "schedule": schedule}
    optimizer.step()
    schedule.step()
    save_run(tmp_path, **parts)
    expected = torch.rand(3, generator=generator)
    schedule.step()
    load_run(tmp_path, **parts)
    assert torch.equal(torch.rand(3, generator=generator), expected)
    assert schedule.last_epoch == 1
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


# -------------------------------------------------------------------- which are kept


def names(folder):
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_and_the_best_are_kept(tmp_path):
    returns = [None, 1.0, 5.0, float("nan"), 5.0, 4.0, None, -1.0]
    for i, greedy_return in enumerate(returns):
        path = save_run(tmp_path, keep=2, greedy_return=greedy_return, i=i)
        assert path.name == f"checkpoint-{i + 1:06d}"
    assert names(tmp_path) == [f"checkpoint-00000{i}" for i in (5, 7, 8)]
    assert load_run(tmp_path).values == {"i": 7}
    best = load_run(tmp_path / "checkpoint-000005")
    assert best.values == {"i": 4}
    assert best.manifest["greedy_return"] == 5.0


def test_numbers_go_on_after_a_removal_and_other_names_are_left_alone(tmp_path):
    for name in ("checkpoint-x", "checkpoint-12", "notes.txt"):
        (tmp_path / name).mkdir()
    for _ in range(3):
        path = save_run(tmp_path, keep=1)
    assert path.name == "checkpoint-000003"
    assert names(tmp_path) == sorted(["checkpoint-x", "checkpoint-12", "notes.txt", path.name])


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="has no checkpoint of save_run"):
            load_run(folder)


def test_keep_must_be_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="keep of at least 1, got 0"):
        save_run(tmp_path, keep=0)


def test_a_manifest_tells_versions_time_and_sizes(tmp_path):
    before = time.time()
    path = save_run(tmp_path, net=network(0))
    manifest = run.read_manifest(path)
    assert before <= manifest["time"] <= time.time()
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["files"]["net.bin"]["bytes"] == (3 * 4 + 4) * 4


def test_other_versions_are_warned_of(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(run, "_machine", lambda: {"processor": "x86_64 0", "gpu": "none"})
        save_run(tmp_path, x=1)
    with pytest.warns(UserWarning, match=r"written with processor .*: numbers may differ"):
        assert load_run(tmp_path).values == {"x": 1}


# -------------------------------------------------------------------- damage


def cut_to(share):
    """Return a function that cuts a file."""

    def cut(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return cut


def one_byte_less(path):
    path.write_bytes(path.read_bytes()[:-1])


def one_byte_more(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path):
    """Flip a random bit of a file."""
    content = bytearray(path.read_bytes())
    bit = random.Random(str(path)).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def swap(path):
    """Swap a file with the next one."""
    others = sorted(path.parent.iterdir())
    other = others[(others.index(path) + 1) % len(others)]
    content = path.read_bytes(), other.read_bytes()
    path.write_bytes(content[1])
    other.write_bytes(content[0])


def link(path):
    """Replace a file by a link to a copy elsewhere."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder_instead(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": cut_to(0),
    "half": cut_to(0.5),
    "one byte less": one_byte_less,
    "one byte more": one_byte_more,
    "flipped": flip,
    "removed": Path.unlink,
    "swapped": swap,
    "linked": link,
    "pipe": pipe,
    "folder": folder_instead,
}
FILES = ["manifest.json", "state.json", "net.bin", "random.bin"]


def two_checkpoints(folder):
    """Save two checkpoints; return the second."""
    save_run(folder, net=network(1), i=1)
    return save_run(folder, net=network(2), i=2)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_detected_and_the_checkpoint_before_is_used(damage, file, tmp_path):
    path = two_checkpoints(tmp_path)
    assert names(path) == sorted(FILES)
    DAMAGES[damage](path / file)
    net = network(3)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_run(path, net=net)
    with pytest.warns(UserWarning, match="is damaged") as caught:
        found = load_run(tmp_path, net=net)
    (message,) = [str(w.message) for w in caught]
    assert message.startswith(f"{path} is damaged: ")
    loaded = tmp_path / "checkpoint-000001"
    assert message.endswith(f", now damaged-000002; {loaded} is loaded")
    assert "\n" not in message
    assert found.values == {"i": 1}
    assert torch.equal(net.weight, network(1).weight)


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_detected(file, tmp_path):
    path = two_checkpoints(tmp_path) / file
    content = path.read_bytes()
    bits_of_file = range(8 * len(content))
    chosen = random.Random(0).sample(bits_of_file, min(len(bits_of_file), 150))
    for bit in chosen:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(nested.Damaged):
            run._read(path.parent)


def test_nothing_is_loaded_where_all_are_damaged(tmp_path):
    two_checkpoints(tmp_path)
    for path in tmp_path.glob("checkpoint-*/net.bin"):
        flip(path)
    net, state = network(3), torch.get_rng_state()
    with pytest.raises(CheckpointError, match=r"000002 is damaged.*000001 is damaged.*nothing"):
        load_run(tmp_path, net=net)
    assert torch.equal(net.weight, network(3).weight)
    torch.set_rng_state(state)


def test_the_next_save_after_damage_keeps_its_number_and_the_good_one(tmp_path):
    path = two_checkpoints(tmp_path)
    flip(path / "manifest.json")
    assert save_run(tmp_path, i=3).name == "checkpoint-000003"
    assert load_run(tmp_path).values == {"i": 3}


def test_whole_checkpoints_are_not_removed_in_favour_of_damaged_ones(tmp_path):
    save_run(tmp_path, greedy_return=1.0, i=1)
    save_run(tmp_path, i=2)
    newest = save_run(tmp_path, keep=3, greedy_return=9.0, i=3)  # and the best
    flip(newest / "state.json")
    with pytest.warns(UserWarning, match="now damaged-000003"):
        load_run(tmp_path)
    assert save_run(tmp_path, i=4).name == "checkpoint-000004"
    save_run(tmp_path, i=5)
    kept = ["checkpoint-000001", "checkpoint-000004", "checkpoint-000005", "damaged-000003"]
    assert names(tmp_path) == kept


def test_a_number_of_a_damaged_checkpoint_is_not_used_again(tmp_path):
    flip(two_checkpoints(tmp_path) / "net.bin")
    with pytest.warns(UserWarning, match="now damaged-000002"):
        load_run(tmp_path, net=network(3))
    assert save_run(tmp_path, i=3).name == "checkpoint-000003"


# -------------------------------------------------------------------- hostile files


def rewrite(path, *, state=None, **changes):
    """Write files of a checkpoint with hashes that are right, as an attacker can."""
    manifest = run.read_manifest(path)
    if state is not None:
        (path / "state.json").unlink()
        manifest["files"]["state.json"] = files.write_file(path / "state.json", [state])
    manifest.update(changes)
    (path / "manifest.json").write_bytes(run._sealed(manifest))


def state_of(path):
    return json.loads((path / "state.json").read_text())


def refusal(path):
    """Return why a checkpoint is refused, in one line."""
    with pytest.raises(CheckpointError) as caught:
        load_run(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    path = save_run(tmp_path / "runs", x=torch.zeros(100), y=1)
    for file in ("x.bin", "state.json", "manifest.json"):
        content = (path / file).read_bytes()
        for poison in (pickle.dumps(Canary(canary)), _saved(Canary(canary), tmp_path)):
            (path / file).write_bytes(poison)
            refusal(path)
            if file == "state.json":
                rewrite(path, state=poison)
                refusal(path)
        (path / file).write_bytes(content)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()


def _saved(value, folder):
    torch.save(value, folder / "saved.pt")
    return (folder / "saved.pt").read_bytes()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..", "", "a b"])
def test_names_cannot_leave_the_folder(name, tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"secret!!")
    path = save_run(tmp_path, x=torch.zeros(2))
    trees = state_of(path)
    trees[name] = trees["x"]
    rewrite(path, state=json.dumps(trees).encode(), values=["x", name])
    assert "names a part that is no name" in refusal(path)


def test_links_are_not_followed(tmp_path):
    path = save_run(tmp_path / "runs", x=torch.zeros(2))
    (tmp_path / "secret").write_bytes((path / "x.bin").read_bytes())
    (path / "x.bin").unlink()
    (path / "x.bin").symlink_to(tmp_path / "secret")
    refusal(path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoint-000001").symlink_to(path)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        load_run(other)


def test_devices_are_not_read(tmp_path):
    path = save_run(tmp_path, x=torch.zeros(2))
    for file in ("x.bin", "state.json", "manifest.json"):
        content = (path / file).read_bytes()
        (path / file).unlink()
        (path / file).symlink_to("/dev/zero")
        refusal(path)
        (path / file).unlink()
        (path / file).write_bytes(content)
    load_run(path)


NODES = {
    "larger than its file": {"tensor": "float32", "shape": [10**12]},
    "negative": {"tensor": "float32", "shape": [-2]},
    "two negatives": {"tensor": "float32", "shape": [-1, -2]},
    "too many numbers": {"tensor": "float32", "shape": [0, 10**30]},
    "too many dimensions": {"tensor": "float32", "shape": [0] * 100_000},
    "no number": {"tensor": "float32", "shape": ["2"]},
    "boolean": {"tensor": "float32", "shape": [True, 2]},
    "no dtype": {"tensor": "Tensor", "shape": [2]},
    "attribute": {"tensor": "nn.Linear", "shape": [2]},
    "no kind": {"call": "os.system", "args": ["touch canary"]},
    "two kinds": {"tensor": "float32", "shape": [2], "size": [2]},
    "no pair": {"dict": [[1, 2, 3]]},
    "unhashable": {"dict": [[[1], 2]]},
    "bad batch": {"tensordict": [["x", {"tensor": "float32", "shape": [2]}]], "batch_size": [3]},
    "no tensors": {"tensordict": [["x", "y"], [5, 6]], "batch_size": []},
    "no device": {"device": "../x"},
    "shorter than its file": {"tensor": "float32", "shape": [1]},
    "object": {},
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_states_that_are_none_are_refused(node, tmp_path):
    path = save_run(tmp_path, x=torch.zeros(2))
    rewrite(path, state=json.dumps({**state_of(path), "x": node}).encode())
    refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000,
        b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"x": ' + b'{"dict": [[1, ' * 200 + b"1" + b"]]}" * 200 + b"}",
        b"[]",
        b"1",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"x": ' + b"9" * 10_000 + b"}",
        b'{"random": 1, "x": NaNN}',
        b"{}",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_texts_that_are_no_state_are_refused(text, tmp_path):
    path = save_run(tmp_path, x=torch.zeros(2))
    rewrite(path, state=text)
    refusal(path)
    content = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(content.partition(b"\n")[0] + b"\n" + text)
    refusal(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": {}},
        {"files": {"state.json": 3}},
        {"values": None},
        {"values": ["x", "y"]},
        {"values": ["x", "x"]},
        {"values": ["random"]},
        {"values": {"x": 1}},
        {"values": "x"},
        {"values": [["x"]]},
        {"versions": None},
        {"machine": [1]},
        {"format": "2 little"},
        {"format": "1 big"},
    ],
    ids=str,
)
def test_manifests_that_are_none_are_refused(changes, tmp_path):
    path = save_run(tmp_path, x=torch.zeros(2))
    rewrite(path, **changes)
    refusal(path)


def test_files_that_are_too_large_for_their_kind_are_not_read(tmp_path):
    path = save_run(tmp_path, x=1)
    for file in ("manifest.json", "state.json"):
        content = (path / file).read_bytes()
        with open(path / file, "wb") as sparse:
            sparse.truncate(2**40)
        assert "expected at most" in refusal(path)
        (path / file).write_bytes(content)


@pytest.mark.slow  # 3 MB of text
def test_a_text_of_empty_lists_takes_little_memory(tmp_path):
    path = save_run(tmp_path, x=1)
    before = len((path / "state.json").read_bytes())
    deep = "[" * 48 + "]" * 48  # 88 bytes of memory a list, in JSON and decoded
    n = (run.MOST_STATE_BYTES - before) // (len(deep) + 2) - 1
    trees = json.dumps({**state_of(path), "x": [1]}).replace("[1]", f"[{', '.join([deep] * n)}]")
    rewrite(path, state=trees.encode())
    limited = (
        "import re, sys; from qmix_trl import load_run; used = lambda: "
        "int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
        "before = used(); load_run(sys.argv[1]); print(used() - before)"
    )  # not ru_maxrss, which begins with that of pytest
    command = [sys.executable, "-c", limited, tmp_path]
    n_kb = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 100_000 < n_kb < 330_000


def test_a_hostile_return_cannot_stop_saves(tmp_path):
    path = save_run(tmp_path, x=1)
    rewrite(path, greedy_return="many")
    for _ in range(3):
        save_run(tmp_path, keep=1)
    assert names(tmp_path) == ["checkpoint-000004"]


# -------------------------------------------------------------------- disks


@pytest.mark.parametrize("failing", ["write", "fsync", "mkdir", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_the_last_good_one(failing, code, tmp_path, monkeypatch):
    save_run(tmp_path, x=torch.zeros(100))
    real, calls = getattr(os, failing), 0

    def fails(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > (2 if failing in ("write", "fsync") else 0):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fails)
        with pytest.raises(SaveError) as caught:
            save_run(tmp_path, x=torch.ones(100))
    message = str(caught.value)
    assert isinstance(caught.value, MachineError)
    assert message.startswith(f"{tmp_path}: no checkpoint can be written: {os.strerror(code)}; ")
    assert message.endswith("MB are free; checkpoint-000001 stays the newest")
    assert names(tmp_path) == ["checkpoint-000001"]
    assert load_run(tmp_path).values["x"].sum() == 0
    assert save_run(tmp_path, x=torch.ones(100)).name == "checkpoint-000002"


def test_a_limit_of_the_system_leaves_the_last_good_one(tmp_path):
    save_run(tmp_path, x=torch.zeros(10))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(SaveError, match="File too large"):
            save_run(tmp_path, x=torch.zeros(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["checkpoint-000001"]


def test_older_checkpoints_that_cannot_be_removed_are_told(tmp_path, monkeypatch):
    def fails(path):
        raise OSError(errno.EIO, "Input/output error")

    save_run(tmp_path, keep=1, i=1)
    with monkeypatch.context() as patch:
        patch.setattr(run, "remove_folder", fails)
        with pytest.raises(SaveError, match=r"000002 is written, older ones cannot be removed"):
            save_run(tmp_path, keep=1, i=2)
    assert load_run(tmp_path).values == {"i": 2}
    save_run(tmp_path, keep=1, i=3)
    assert names(tmp_path) == ["checkpoint-000003"]


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"Not a directory|File exists"):
        save_run(tmp_path / "file" / "runs", x=1)


# -------------------------------------------------------------------- kills

# Forks children that save in a loop, and kills each after a random time. It tells the number of
# the last save that a child has finished, and waits until that was checked.
KILLER = """
import os, random, signal, sys, time, torch
from qmix_trl import save_run
torch.set_num_threads(1)
draw, i = random.Random(0), 0

def save(i):
    save_run(sys.argv[1], keep=2, i=i, x=torch.full((200_000,), i), y=torch.full((3,), i))

save(i)
for _ in range(int(sys.argv[2])):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            i += 1
            save(i)
            os.write(writer, i.to_bytes(4, "big"))
    os.close(writer)
    time.sleep(draw.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = os.read(reader, 2**16)
    i = int.from_bytes(told[-4:], "big") if told else i
    os.close(reader)
    print(i, flush=True)
    sys.stdin.readline()
"""


def hidden(folder):
    """Return the names of leftovers of killed saves."""
    return [name for name in names(folder) if name.startswith(".")]


def check_kills(folder, n_kills):
    """Check that each start after a kill finds the last save whole, and sweeps the rest."""
    command = [sys.executable, "-c", KILLER, folder, str(n_kills)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    n_met = 0
    with warnings.catch_warnings(), subprocess.Popen(command, **pipes) as process:
        warnings.simplefilter("error")  # of a damaged checkpoint
        for _ in range(n_kills):
            told = int(process.stdout.readline())
            n_met += bool(hidden(folder))
            values = load_run(folder).values
            assert values["i"] in (told, told + 1)  # or killed between saving and telling
            assert (values["x"] == values["i"]).all()
            assert (values["y"] == values["i"]).all()
            assert not hidden(folder)
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert n_met > n_kills // 4  # kills that met a save under way


def test_kills_while_saving_lose_nothing_that_was_saved(tmp_path):
    check_kills(tmp_path, int(os.environ.get("QMIX_TRL_SAVING_KILLS", "50")))


def test_a_folder_that_is_being_written_is_not_swept(tmp_path):
    with files.new_folder(tmp_path) as new:
        (new / "x").write_text("")
        files.sweep(tmp_path)
        assert (new / "x").exists()
        new.rename(tmp_path / "done")
    (tmp_path / ".new-dead").mkdir()
    (tmp_path / ".other").mkdir()
    files.sweep(tmp_path)
    assert names(tmp_path) == [".other", "done"]


@pytest.mark.parametrize("lacks", ["locks of the disk", "locks of the system"])
def test_without_locks_a_folder_is_swept_when_it_is_old(lacks, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if lacks == "locks of the disk":  # as on a mount of Lustre without flock
        monkeypatch.setattr(lock.fcntl, "flock", flock)
    else:
        monkeypatch.setattr(lock, "fcntl", None)
    with files.new_folder(tmp_path) as new:
        (new / "x").write_text("")
        old = time.time() - files.ABANDONED_SECONDS - 60
        os.utime(new, (old, old))
        files.sweep(tmp_path)
        assert (new / "x").exists()  # it is new, as a file that is written to
        os.utime(new / "x", (old, old))
        files.sweep(tmp_path)
        assert not new.exists()


def test_a_folder_that_is_swept_before_its_lock_is_made_again(tmp_path, monkeypatch):
    made = []

    def mkdtemp(**where):
        made.append(real(**where))
        if len(made) == 1:  # a sweep before it is opened
            Path(made[-1]).rmdir()
        return made[-1]

    def try_lock(place):
        if len(made) == 2:  # one before it is locked
            Path(made[-1]).rmdir()
        return lock.try_lock(place)

    real = files.tempfile.mkdtemp
    monkeypatch.setattr(files.tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(files, "try_lock", try_lock)
    with files.new_folder(tmp_path) as new:
        assert new == Path(made[2])
        assert new.is_dir()


def test_a_read_only_folder_can_be_loaded_from(tmp_path):
    save_run(tmp_path, x=1)
    (tmp_path / ".new-dead").mkdir()
    tmp_path.chmod(0o500)
    try:
        assert load_run(tmp_path).values == {"x": 1}
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_changed_is_loaded_from_in_spite_of_damage(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = two_checkpoints(tmp_path)
    flip(path / "net.bin")
    monkeypatch.setattr(os, "rename", fails)
    with pytest.warns(UserWarning, match=r"is damaged: [^,]*; .*000001 is loaded$"):
        assert load_run(tmp_path, net=network(3)).values == {"i": 1}
    assert path.is_dir()
