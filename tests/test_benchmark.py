"""The benchmark: the runs that it trains, its statistics, and BenchMARL's part."""

import csv
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from threading import Event, Thread

import benchmark
import numpy as np
import pytest
import torch
import train
import train_benchmarl
from recipe_tools import TINY, check_told, game, metrics, summary
from support.benchmark_report import (
    Curve,
    draw,
    interquartile_mean,
    interval,
    normalized,
    print_table,
    read_curve,
    write_csv,
)
from tensordict import TensorDict

from qmix_trl import MachineError, load_config, save_config
from qmix_trl.errors import ConfigError
from qmix_trl.keys import ACTION, OBSERVATION
from qmix_trl.native.lock import held

SHORT = ["env.engine=eager", "env.max_steps=30", "collection.steps=30"]
BASELINES = {"no_op": 1.0, "random": -1.0}


def curve(task, algorithm, seed, returns, baselines=BASELINES):
    """Return a curve of evaluations 100 frames and 2 seconds apart."""
    frames = 100.0 * np.arange(1, len(returns) + 1)
    return Curve(task, algorithm, seed, frames, frames / 50, np.array(returns), baselines)


# --------------------------------------------------------------------------- statistics


def test_the_interquartile_mean_of_five_is_that_of_the_middle_three():
    returns = np.array([[4.0, 0.0], [100.0, 0.0], [2.0, 3.0], [3.0, 6.0], [-50.0, 9.0]])
    assert interquartile_mean(returns).tolist() == [3.0, 3.0]


def test_the_interval_of_three_seeds_is_that_of_their_27_resamples():
    # All three draws are the least one with probability 1/27, which is more than 2.5 %. Of three,
    # a quarter is less than one: the interquartile mean is the mean.
    low, high = interval(interquartile_mean, np.array([[0.0], [1.0], [2.0]]))
    assert (low.tolist(), high.tolist()) == ([0.0], [2.0])


def test_the_interval_of_one_seed_is_itself():
    low, high = interval(interquartile_mean, np.array([[3.0, 4.0]]))
    assert low.tolist() == high.tolist() == [3.0, 4.0]


def test_normalized_scores_are_by_task():
    curves = [
        curve("a", "qmix", 0, [0.0, 5.0]),
        curve("a", "vdn", 0, [0.0, 3.0]),
        curve("b", "qmix", 0, [2.0], {"no_op": -4.0, "random": -2.0}),
        curve("b", "vdn", 0, [6.0], {"no_op": -4.0, "random": -2.0}),
        curve("b", "iql", 0, [6.0], {"no_op": -4.0, "random": -2.0}),
    ]
    # Task a: 0 at 1, 1 at 5; task b: 0 at -2, 1 at 6. IQL did not learn task a.
    scores = normalized(curves)
    assert {name: [s.tolist() for s in samples] for name, samples in scores.items()} == {
        "qmix": [[1.0], [0.5]],
        "vdn": [[0.5], [1.0]],
    }


def test_a_task_that_nothing_learned_is_left_out_of_the_scores():
    curves = [curve("a", "qmix", 0, [5.0]), curve("b", "qmix", 0, [0.5])]
    assert [s.tolist() for s in normalized(curves)["qmix"]] == [[1.0]]


def test_the_printed_table(capsys):
    returns = [[0.0, 10.0], [0.0, 20.0], [0.0, 60.0]]
    print_table([curve("balance", "qmix", i, r) for i, r in enumerate(returns)])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["balance", "no_op", "1.00"] for line in lines)
    assert any(line.split() == ["balance", "random", "-1.00"] for line in lines)
    # The mean of 10, 20 and 60, and all resamples alike with probability 1/27 each.
    cells = next(line.split() for line in lines if line.startswith("balance       qmix"))
    assert cells == ["balance", "qmix", "30.00", "[10.00,", "60.00]", "3", "200", "4"]


def test_the_csv_has_each_evaluation_of_each_run(tmp_path):
    write_csv([curve("a", "vdn", s, [1.0, 2.5]) for s in (0, 1)], tmp_path / "all.csv")
    lines = list(csv.reader((tmp_path / "all.csv").open()))
    assert lines == [
        ["task", "algorithm", "seed", "frames", "seconds", "greedy_return"],
        ["a", "vdn", "0", "100", "2.00", "1.0"],
        ["a", "vdn", "0", "200", "4.00", "2.5"],
        ["a", "vdn", "1", "100", "2.00", "1.0"],
        ["a", "vdn", "1", "200", "4.00", "2.5"],
        ["a", "no_op", "", "", "", "1.0"],
        ["a", "random", "", "", "", "-1.0"],
    ]


@pytest.mark.parametrize("n_tasks", [1, 5])
def test_the_figure_is_drawn(n_tasks, tmp_path):
    algorithms = ("qmix", "vdn")
    curves = [
        curve(f"task_{i}", algorithm, seed, [seed, seed + i])
        for i in range(n_tasks)
        for algorithm in algorithms
        for seed in range(3)
    ]
    figure = draw(curves, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == 2 * n_tasks
    for panel in panels:
        lines = {line.get_label(): line.get_xdata() for line in panel.get_lines()}
        assert set(lines) == {*algorithms, "no_op", "random"}
        assert list(lines["qmix"]) == {"frames": [100, 200], "seconds": [2, 4]}[panel.get_xlabel()]
        assert len(panel.collections) == len(algorithms)  # an interval for each


# ------------------------------------------------------------------------------- runs


@pytest.fixture
def tiny_table(tmp_path, monkeypatch):
    """A table of one task, with runs of a second by two algorithms."""
    games = TINY.replace(TINY[TINY.index("env:") : TINY.index("agent:")], "")
    env = game("two_step").removeprefix("env=")
    for algorithm, mixer in (("qmix", None), ("vdn", "{name: vdn}")):
        text = games + f"env: {env}\n"
        if mixer:
            text = text.replace(text[text.index("mixer:") : text.index("explor")], "")
            text += f"mixer: {mixer}\n"
        (tmp_path / f"tiny_{algorithm}.yaml").write_text(text)
    monkeypatch.setattr(benchmark, "CONFIGS", tmp_path)
    monkeypatch.setattr(benchmark, "TASKS", ("tiny",))
    return tmp_path


def run_table(runs, *overrides, algorithms=("qmix", "vdn"), seeds=1):
    """Run the table in a folder."""
    benchmark.benchmark(("tiny",), algorithms, seeds, 2, runs, overrides)


@pytest.mark.slow
def test_the_table_is_trained_once(tiny_table, capsys):
    runs = tiny_table / "runs"
    run_table(runs)
    first = {name: metrics(runs / name) for name in ("tiny_qmix-0", "tiny_vdn-0")}
    assert first["tiny_qmix-0"]["greedy_return"][-1] is not None
    assert first["tiny_qmix-0"] != first["tiny_vdn-0"]
    assert {path.name for path in runs.iterdir()} == {*first, "benchmark.csv", "benchmark.png"}
    said = capsys.readouterr().out
    assert "2 runs, 0 of them done" in said
    assert "2/2  tiny_" in said

    # The finished run stays as it is; the interrupted one starts again and is the same.
    kept = summary(runs / "tiny_vdn-0")
    (runs / "tiny_qmix-0" / "summary.json").unlink()
    run_table(runs)
    assert summary(runs / "tiny_vdn-0") == kept
    assert metrics(runs / "tiny_qmix-0") == first["tiny_qmix-0"]
    assert "2 runs, 1 of them done" in capsys.readouterr().out

    with pytest.raises(ConfigError, match=r"tiny_qmix-0 is a run of another configuration"):
        run_table(runs, "loss.gamma=0.5")


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_compared(tiny_table, capsys):
    path = tiny_table / "tiny_vdn.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: -1"))
    runs = tiny_table / "runs"
    with pytest.raises(ConfigError, match=r"update.optimizer.lr"):  # before anything is trained
        run_table(runs)
    mended = path.read_text().replace("lr: -1", "lr: 0.001")
    path.write_text(mended.replace("scenario_kwargs: {}", "scenario_kwargs: {delay: 3}"))
    with pytest.raises(SystemExit) as stopped:
        run_table(runs)
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "exit code 2: error: " in said.out
    assert "1 failed" in said.err
    assert {line["algorithm"] for line in csv.DictReader((runs / "benchmark.csv").open())} == {
        "qmix",
        "no_op",
        "random",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((("balanc",), ("qmix",), 1, 1), "unknown name 'balanc'; did you mean 'balance'"),
        ((("balance",), ("vdm",), 1, 1), "unknown name 'vdm'; did you mean 'vdn'"),
        ((("balance", "loss.gamma=0"), ("vdn",), 1, 1), "'loss.gamma=0'; overrides stand before"),
        ((("balance",), ("qmix",), 0, 1), "--seeds and --jobs of at least 1, got 0 and 1"),
        ((("balance",), ("qmix_feedforward",), 1, 1), "no configuration"),
        ((("memory",), ("benchmarl_qmix",), 1, 1), "no configuration"),
    ],
)
def test_a_mistake_in_the_arguments(arguments, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        benchmark.benchmark(*arguments, tmp_path, ())


@pytest.mark.parametrize("override", ["seed=3", "name=mine"])
def test_seed_and_name_are_not_overridden(override, tmp_path):
    with pytest.raises(ConfigError, match=f"{override}: seeds are 0 to --seeds"):
        benchmark.benchmark(("balance",), ("vdn",), 1, 1, tmp_path, (override,))


def test_a_run_of_another_configuration_is_not_deleted(tiny_table):
    runs = tiny_table / "runs"
    theirs = runs / "tiny_qmix-0"
    train.train(str(tiny_table / "tiny_qmix.yaml"), ["name=tiny_qmix-0", "seed=5"], str(runs))
    (theirs / "summary.json").unlink()  # it is under way
    with pytest.raises(ConfigError, match=r"tiny_qmix-0 is a run of another configuration"):
        run_table(runs)
    assert (theirs / "metrics.csv").exists()


def test_a_second_benchmark_in_the_same_folder_is_refused(tiny_table):
    live = tiny_table / "runs" / "tiny_vdn-0"
    live.mkdir(parents=True)
    shutil.copy(tiny_table / "tiny_vdn.yaml", live / "config.yaml")
    with held(tiny_table / "runs") as is_held:
        assert is_held
        arguments = ("--tasks", "balance", "--algorithms", "vdn", "--seeds", "1")
        done = subprocess.run(
            [sys.executable, benchmark.__file__, *arguments, "--runs", live.parent],
            capture_output=True,
            text=True,
        )
        check_told(done.returncode, done.stderr, 2, ["another benchmark.py trains in", "--runs"])
        with pytest.raises(ConfigError, match=r"another benchmark\.py trains"):
            run_table(live.parent)
    assert (live / "config.yaml").exists()


def test_a_run_that_another_process_trains_is_not_removed(tiny_table):
    cell = benchmark.Cell("tiny", "vdn", 0, ())
    live = tiny_table / "runs" / cell.name
    live.mkdir(parents=True)
    with held(live):
        said = benchmark.run_cell(cell, live.parent, Event())
    assert said == f"{live}: another process trains it; wait for its end"
    assert live.exists()


@pytest.mark.parametrize("damage", ["", '{"frames": 1', "[]", "\x00" * 20, b"\xff\xfe", None])
def test_a_run_with_a_damaged_summary_is_not_done(damage, tiny_table):
    cell = benchmark.Cell("tiny", "vdn", 0, ())
    folder = tiny_table / "runs" / cell.name
    folder.mkdir(parents=True)
    save_config(load_config(cell.config, cell.settings), folder / "config.yaml")
    path = folder / "summary.json"
    path.write_text("{}")
    assert cell.is_done(folder.parent)
    if damage is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    assert not cell.is_done(folder.parent)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--runs: .* cannot be made: Not a directory"):
        benchmark.benchmark(("balance",), ("vdn",), 1, 1, tmp_path / "file" / "runs", ())


def test_a_name_given_twice_is_one_cell(tiny_table, capsys):
    run_table(tiny_table / "runs", algorithms=("vdn", "vdn"))
    assert "1 runs, 0 of them done" in capsys.readouterr().out


def test_a_stopped_table_ends_its_running_cells(tiny_table):
    cell = benchmark.Cell("tiny", "vdn", 0, ("collection.total_frames=100000000",))
    stop, folder = Event(), tiny_table / "runs" / cell.name

    def stop_when_it_trains():
        while not (folder / "metrics.csv").exists():
            time.sleep(0.05)
        stop.set()

    Thread(target=stop_when_it_trains, daemon=True).start()
    said = benchmark.run_cell(cell, tiny_table / "runs", stop)
    assert said.startswith("exit code 75")
    assert "train.py" in said.splitlines()[-1]
    assert not (folder / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["balance_qmix_recurrent", "transport_iql"],
)
def test_the_same_seed_gives_the_same_curve(name, tmp_path):
    small = [
        *("env.n_envs=8", "collection.total_frames=2400", "replay.batch_rows=4"),
        *("update.per_batch=3", "evaluation.every_frames=1", "evaluation.episodes=8"),
    ]
    folders = [
        train.train(str(benchmark.CONFIGS / f"{name}.yaml"), small, str(tmp_path / run))
        for run in ("first", "again")
    ]
    first, again = (metrics(folder) for folder in folders)
    assert len(first["greedy_return"]) == 3
    assert len({*first["loss"]}) == 3
    assert first == again


@pytest.mark.parametrize("task", benchmark.TASKS)
def test_vdn_and_iql_differ_from_qmix_in_the_mixer_alone(task):
    configs = {
        algorithm: load_config(path)
        for algorithm in benchmark.ALGORITHMS
        if (path := benchmark.CONFIGS / f"{task}_{algorithm}.yaml").exists()
    }
    assert set(benchmark.COMPARED) <= set(configs)
    qmix = configs["qmix"]
    for name, config in configs.items():
        algorithm, _, agent = name.partition("_")
        assert config.mixer.name == {"qmix": "qmix", "vdn": "vdn", "iql": "none"}[algorithm]
        assert config.agent.name == (agent or qmix.agent.name)
        assert (config.agent == qmix.agent) == (not agent)
        assert replace(config, mixer=qmix.mixer, agent=qmix.agent) == qmix
    assert qmix.evaluation.episodes >= 100


# --------------------------------------------------------------------------- BenchMARL


def saved_agents(path, n_observed, n_actions):
    """Save and return the layers of some agents."""
    shapes = ((4, n_observed), (4,), (n_actions, 4), (n_actions,))
    g = torch.Generator().manual_seed(1)
    layers = [torch.randn(*shape, generator=g) for shape in shapes]
    torch.save(layers, path)
    return layers


def test_benchmarls_agents_act_by_their_weights(tmp_path):
    w1, b1, w2, b2 = saved_agents(tmp_path / "agents.pt", 3, 2)
    observation = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1))  # [E, N, O]
    values = torch.tanh(observation @ w1.T + b1) @ w2.T + b2
    policy = train_benchmarl.greedy_policy(tmp_path / "agents.pt")
    acted = policy(TensorDict({OBSERVATION: observation}, [6]))
    assert torch.equal(acted[ACTION], values.argmax(-1))


def test_a_failed_process_is_reported(tmp_path):
    config = load_config(benchmark.CONFIGS / "balance_qmix.yaml")
    with pytest.raises(MachineError, match=r"ended with 1: .*No module named 'benchmarl'"):
        list(train_benchmarl.trained(sys.executable, config, tmp_path))


def test_benchmarl_refuses_games(tmp_path):
    with pytest.raises(ConfigError, match=r"VMAS's tasks, not 'games'"):
        train_benchmarl.main(str(benchmark.CONFIGS / "memory_qmix.yaml"), [], str(tmp_path))


def test_a_run_of_benchmarl_is_read_like_ours(tmp_path, monkeypatch):
    saved_agents(tmp_path / "agents.pt", 18, 9)
    points = [
        {"frames": frames, "seconds": frames / 50, "path": tmp_path / "agents.pt"}
        for frames in (100, 200)
    ]
    monkeypatch.setattr(train_benchmarl, "make_virtualenv", lambda: None)
    monkeypatch.setattr(train_benchmarl, "trained", lambda *_: iter(points))
    folder = train_benchmarl.main(
        str(benchmark.CONFIGS / "navigation_qmix.yaml"),
        [
            "seed=3",
            "evaluation.episodes=4",
            "env.engine=eager",
            "env.max_steps=5",
            "collection.steps=5",
        ],
        str(tmp_path / "runs"),
    )
    assert folder.name == "benchmarl_navigation_qmix-1"
    read = read_curve(folder, "navigation", benchmark.BENCHMARL)
    assert (read.seed, read.frames.tolist(), read.seconds.tolist()) == (3, [100, 200], [2.0, 4.0])
    assert read.returns[0] == read.returns[1] != read.baselines["no_op"]
