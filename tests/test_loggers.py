"""TensorBoard and Weights & Biases beside metrics.csv: their files are read back."""

import json
import struct
from dataclasses import asdict

import pytest
from recipe_tools import call, check_told, run, tiny
from support import loggers
from support.loggers import Loggers
from support.metrics import metric_lines
from train_tools import SAVED

from qmix_trl import ConfigError, load_config

TENSORBOARD, WANDB = "logging=[tensorboard]", "logging=[wandb]"
EVALUATED = ("evaluation.every_frames=16", "collection.total_frames=32")  # each second batch


def points(folder):
    """Return a TensorBoard folder's points as lines of metrics, and its hyper-parameters."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    lines, times = {}, {}
    for name in read.Tags()["scalars"]:
        for event in read.Scalars(name):
            assert name not in lines.setdefault(event.step, {})
            lines[event.step][name] = event.value
            times[event.step] = event.wall_time
    content = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    return list(lines.values()), list(times.values()), hparams


def in_single_precision(lines):
    """Return lines of metrics as TensorBoard keeps them."""
    return [{k: struct.unpack("f", struct.pack("f", x))[0] for k, x in x.items()} for x in lines]


def killed_behind(folder, n_checkpoints):
    """Leave a run as if it had been killed before it had written more checkpoints."""
    for path in sorted((folder / "checkpoints").iterdir())[n_checkpoints:]:
        (path / "manifest.json").unlink()


def test_tensorboard_has_the_lines_of_the_metrics_and_the_configuration(tmp_path, capsys):
    folder = run(tmp_path, TENSORBOARD, *EVALUATED, "seed=3")
    lines, times, hparams = points(folder)
    expected = metric_lines(folder)
    assert lines == in_single_precision(expected)
    assert ["greedy_return" in line for line in lines] == [False, True, False, True]
    # On the clock of the training: frames / frames_per_second seconds after its begin.
    seconds = [line["frames"] / line["frames_per_second"] for line in expected]
    assert [t - times[0] for t in times] == pytest.approx(
        [s - seconds[0] for s in seconds], abs=1e-5
    )
    assert hparams["seed"].number_value == 3
    assert hparams["env.scenario"].string_value == "balance"
    assert hparams["env.scenario_kwargs.n_agents"].number_value == 4
    assert hparams["loss.double_q"].number_value == 1
    assert hparams["versions.torch"].string_value.startswith("2.")
    assert f"tensorboard: tensorboard --logdir {tmp_path / 'runs'}" in capsys.readouterr().out
    assert all(path.is_file() for path in (folder / "tensorboard").iterdir())  # one run


def test_a_resumed_run_has_each_point_once(tmp_path):
    often = ("checkpoint.keep=9", "evaluation.every_frames=1")
    folder = run(tmp_path, TENSORBOARD, SAVED, *EVALUATED, *often)
    killed_behind(folder, 2)
    run(tmp_path, "collection.total_frames=48", resume=folder)
    lines = points(folder)[0]
    assert [line["frames"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert lines == in_single_precision(metric_lines(folder))


def test_a_logger_that_a_finished_run_gets_has_its_lines_from_the_start(tmp_path):
    folder = run(tmp_path, SAVED)
    run(tmp_path, TENSORBOARD, resume=folder)
    assert points(folder)[0] == in_single_precision(metric_lines(folder))
    assert load_config(folder / "config.yaml").logging == ("tensorboard",)


def test_a_run_that_begins_again_has_no_points_of_the_killed_one(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    config = tiny(tmp_path)
    folder = run(tmp_path, TENSORBOARD, "name=mine", "checkpoint.every_seconds=100")
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    again = ("name=mine", "checkpoint.every_seconds=100", "logging=[]")
    assert run(tmp_path, *again, config=config, resume="auto") == folder
    assert not (folder / "tensorboard").exists()


def test_lines_that_a_kill_left_in_part_are_not_read(tmp_path):
    text = "frames,loss,greedy_return\n8,0.5,\n16,0.25,1.5\n24,0."
    (tmp_path / "metrics.csv").write_text(text)
    assert metric_lines(tmp_path) == [
        {"frames": 8, "loss": 0.5},
        {"frames": 16, "loss": 0.25, "greedy_return": 1.5},
    ]


class Failing:
    """A logger without a network from its second line on."""

    where = "far away"

    def __init__(self, config, folder):
        self.n_lines = 0

    def write(self, values, at):
        self.n_lines += 1
        if self.n_lines == 2:
            raise ConnectionError("no route to host")


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(loggers.KINDS, "wandb", Failing)
    monkeypatch.setattr(loggers, "check_extra", lambda *names: None)
    folder = run(tmp_path, WANDB, *EVALUATED)
    assert len(metric_lines(folder)) == 4
    said = capsys.readouterr().out
    told = "warning: no more is logged by wandb: ConnectionError no route to host; the run goes on"
    assert said.count(told) == 1


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_missing_package_is_told_before_the_training(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qmix_trl.errors.find_spec", lambda package: None)
    with pytest.raises(SystemExit) as caught:
        call("train.py", str(tiny(tmp_path)), f"logging=[{name}]", "--runs", str(tmp_path / "runs"))
    told = ["logging:", f"package {name}", f"pip install 'qmix-trl[{name}]'"]
    check_told(caught.value.code, capsys.readouterr().err, 2, told)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("logging=[tensorbord]", r"logging\[0\]: .*'tensorbord'; did you mean 'tensorboard'"),
        ("logging=wandb", "logging: expected a list, got 'wandb'"),
        ("logging=[wandb, wandb]", "logging: expected each logger once, got wandb twice"),
    ],
)
def test_a_mistake_in_the_loggers(override, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        load_config(tiny(tmp_path), [override])


# Weights & Biases, offline: a file of LevelDB's log format with a header of seven bytes


BLOCK, HEADER, WHOLE, LAST = 32768, 7, 1, 4


def records(path):
    """Yield the records of a file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
            parts = b""


def offline_run(folder):
    """Return the id, the configuration and the lines of a run's only offline run."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = list(records(path))
    (begin,) = [record.run for record in found if record.HasField("run")]
    config = {
        item.key: json.loads(item.value_json)
        for record in found
        for item in record.config.update
        if item.key
    }
    lines = [
        {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in found
        if record.HasField("history")
    ]
    return begin, config, lines


def test_wandb_has_the_lines_once_and_is_offline_without_an_account(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    folder = run(tmp_path, WANDB, SAVED, *EVALUATED, "checkpoint.keep=9")
    assert "wandb: offline, as nobody is logged in (wandb login)" in capsys.readouterr().out
    first, _, lines = offline_run(folder)
    expected = metric_lines(folder)
    assert [{name: line[name] for name in line if name[0] != "_"} for line in lines] == expected
    assert [line["_step"] for line in lines] == [8, 16, 24, 32]

    killed_behind(folder, 2)
    run(tmp_path, resume=folder)
    wandb.teardown()
    again, config, lines = offline_run(folder)
    assert again.run_id == first.run_id
    assert (again.display_name, again.project, again.host) == (folder.name, "qmix_trl", "")
    assert [{k: line[k] for k in line if k[0] != "_"} for line in lines] == metric_lines(folder)
    saved = json.loads(json.dumps(asdict(load_config(folder / "config.yaml"))))
    assert {name: config[name] for name in saved} == saved
    assert set(config["versions"]) == {"python", *loggers.PACKAGES}
    sent = {path.name for path in folder.glob("wandb/offline-run-*/files/*")}
    assert sent == set()  # no code, no git, no list of packages, nothing of the machine


def test_nothing_is_opened_unless_asked(tmp_path):
    opened = Loggers(load_config(tiny(tmp_path)), tmp_path)
    opened.open()
    opened.write({"frames": 8, "frames_per_second": 1.0})
    opened.close()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
