"""The benchmark: the runs that it trains, and BenchMARL's part."""

import csv
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from threading import Event, Thread

import benchmark
import pytest
import torch
import train
import train_benchmarl
from recipe_tools import TINY, check_told, game, metrics, summary
from support import cells
from support.cells import Cell, alternatives, own_cells, seeds_of
from support.curves import read_curve
from tensordict import TensorDict

from qmix_trl import MachineError, load_config, save_config
from qmix_trl.errors import ConfigError
from qmix_trl.keys import ACTION, OBSERVATION
from qmix_trl.native.lock import held

SHORT = ["env.engine=eager", "env.max_steps=30", "collection.steps=30"]


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
    monkeypatch.setattr(cells, "CONFIGS", tmp_path)
    monkeypatch.setattr(benchmark, "TASKS", ("tiny",))
    return tmp_path


def run_table(runs, *overrides, algorithms=("qmix", "vdn"), seeds=1):
    """Run the table in a folder."""
    chosen = benchmark.chosen_cells(overrides, ["tiny"], algorithms, str(seeds), [])
    benchmark.benchmark(chosen, 2, runs)


def vdn_cell(*overrides):
    """Return the cell of the table by VDN."""
    return Cell("tiny_vdn", cells.CONFIGS / "tiny_vdn.yaml", 0, overrides, "tiny", "vdn")


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
    lines = csv.DictReader((runs / "benchmark.csv").open())
    assert {line["group"] for line in lines} == {"qmix", "no_op", "random"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], ["balanc"], ["qmix"], "1", []), "unknown name 'balanc'; did you mean 'balance'"),
        (([], ["xyz"], ["qmix"], "1", []), "unknown name 'xyz'; known: balance, navigation, "),
        (([], ["balance"], ["vdm"], "1", []), "unknown name 'vdm'; did you mean 'vdn'"),
        (([], ["balance", "loss.gamma=0"], ["vdn"], "1", []), "overrides stand before"),
        (([], ["balance"], ["qmix"], "0", []), "--seeds: expected .* at least 1, .* got '0'"),
        (([], ["balance"], ["qmix"], "3-2", []), "--seeds: expected .* such as 0-9, got '3-2'"),
        (([], ["balance"], ["qmix"], "many", []), "--seeds: expected .* got 'many'"),
        (([], ["balance"], ["qmix_feedforward"], "1", []), "no configuration"),
        (([], ["memory"], ["benchmarl_qmix"], "1", []), "no configuration"),
        ((["balance"], None, None, "1", []), "expected CONFIG, got balance; .*--tasks balance"),
        ((["mine.yaml"], ["balance"], None, "1", []), "expected files such as mine.yaml, or"),
        (([], ["balance"], ["vdn"], "1", ["loss.gamma"]), "--set: expected key.sub=value"),
        (([], ["balance"], ["vdn"], "1", ["a={b,"]), "--set: expected key.sub=value"),
        ((["seed=3"], ["balance"], ["vdn"], "1", []), "seed=3: seeds are those of --seeds"),
        (([], ["balance"], ["vdn"], "1", ["name=a,b"]), "name=a,b: .* names those of cells"),
    ],
)
def test_a_mistake_in_the_arguments(arguments, said):
    with pytest.raises(ConfigError, match=said):
        benchmark.chosen_cells(*arguments)


def test_a_configuration_is_a_file_or_a_name():
    named = benchmark.chosen_cells(["two_step_qmix"], None, None, "1", [])
    by_file = benchmark.chosen_cells(
        [str(cells.CONFIGS / "two_step_qmix.yaml")], None, None, "1", []
    )
    assert named == by_file
    with pytest.raises(ConfigError, match="got 'two_step_qmx'; did you mean 'two_step_qmix'"):
        benchmark.chosen_cells(["two_step_qmx"], None, None, "1", [])


def test_seeds_are_a_number_or_a_range():
    assert [*seeds_of("3")] == [0, 1, 2]
    assert [*seeds_of("2-4")] == [2, 3, 4]
    assert [*seeds_of("7-7")] == [7]


def test_values_are_separated_by_commas_outside_of_braces_and_quotes():
    assert alternatives("loss.td_lambda=0.8,0.9") == ["loss.td_lambda=0.8", "loss.td_lambda=0.9"]
    assert alternatives("mixer={name: vdn}, {name: qmix, a: [1, 2]}") == [
        "mixer={name: vdn}",
        "mixer={name: qmix, a: [1, 2]}",
    ]
    assert alternatives("name='a,b'") == ["name='a,b'"]


def test_the_cells_of_a_users_configurations(tiny_table):
    files = [str(tiny_table / f"tiny_{algorithm}.yaml") for algorithm in ("qmix", "vdn")]
    choices = [["checkpoint.keep=1"], ["loss.td_lambda=0.8", "loss.td_lambda=0.9"]]
    found = own_cells(files, seeds_of("3-4"), choices)
    assert [(cell.name, cell.task, cell.group) for cell in found[:4]] == [
        ("tiny_qmix_td_lambda_0.8-3", "two_step", "qmix, td_lambda=0.8"),
        ("tiny_qmix_td_lambda_0.9-3", "two_step", "qmix, td_lambda=0.9"),
        ("tiny_vdn_td_lambda_0.8-3", "two_step", "vdn, td_lambda=0.8"),
        ("tiny_vdn_td_lambda_0.9-3", "two_step", "vdn, td_lambda=0.9"),
    ]
    assert [cell.seed for cell in found] == [3] * 4 + [4] * 4
    assert found[1].overrides == ("checkpoint.keep=1", "loss.td_lambda=0.9")


def test_two_files_of_one_name_are_refused(tiny_table):
    other = tiny_table / "other" / "tiny_vdn.yaml"
    other.parent.mkdir()
    shutil.copy(tiny_table / "tiny_vdn.yaml", other)
    with pytest.raises(ConfigError, match=r"both runs would be called tiny_vdn-0; rename a file"):
        own_cells([str(tiny_table / "tiny_vdn.yaml"), str(other)], [0], [])


def test_a_long_setting_gives_a_name_that_a_run_can_have(tiny_table):
    file = str(tiny_table / "tiny_vdn.yaml")
    mixers = [
        f"mixer={{name: qmix, mixing_embed_dim: 8, hypernet_layers: {n}, hypernet_embed_dim: 8}}"
        for n in (1, 2)
    ]
    first, second = own_cells([file], [0], [mixers])
    assert first.name != second.name
    for cell in (first, second):
        assert load_config(file, cell.settings).name == cell.name


@pytest.mark.slow
def test_a_users_configurations_are_trained_once_and_compared(tiny_table, capsys):
    files = [str(tiny_table / "tiny_vdn.yaml")]
    chosen = benchmark.chosen_cells(files, None, None, "4-4", ["loss.td_lambda=0.8,0.9"])
    runs = tiny_table / "runs"
    benchmark.benchmark(chosen, 1, runs)
    benchmark.benchmark(chosen, 1, runs)
    said = capsys.readouterr().out
    assert "2 runs, 2 of them done" in said
    assert said.splitlines()[-1] == f"wrote {runs}/benchmark.csv, {runs}/benchmark.png"
    for name, td_lambda in (("0.8", 0.8), ("0.9", 0.9)):
        config = load_config(runs / f"tiny_vdn_td_lambda_{name}-4" / "config.yaml")
        assert (config.loss.td_lambda, config.seed) == (td_lambda, 4)


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
    cell = vdn_cell()
    live = tiny_table / "runs" / cell.name
    live.mkdir(parents=True)
    with held(live):
        said = benchmark.run_cell(cell, live.parent, Event())
    assert said == f"{live}: another process trains it; wait for its end"
    assert live.exists()


@pytest.mark.parametrize("damage", ["", '{"frames": 1', "[]", "\x00" * 20, b"\xff\xfe", None])
def test_a_run_with_a_damaged_summary_is_not_done(damage, tiny_table):
    cell = vdn_cell()
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
        benchmark.benchmark([], 1, tmp_path / "file" / "runs")


def test_a_name_given_twice_is_one_cell(tiny_table, capsys):
    run_table(tiny_table / "runs", algorithms=("vdn", "vdn"))
    assert "1 runs, 0 of them done" in capsys.readouterr().out


def test_a_stopped_table_ends_its_running_cells(tiny_table):
    cell = vdn_cell("collection.total_frames=100000000")
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
        train.train(str(cells.CONFIGS / f"{name}.yaml"), small, str(tmp_path / run))
        for run in ("first", "again")
    ]
    first, again = (metrics(folder) for folder in folders)
    assert len(first["greedy_return"]) == 3
    assert len({*first["loss"]}) == 3
    assert first == again


@pytest.mark.parametrize("task", cells.TASKS)
def test_vdn_and_iql_differ_from_qmix_in_the_mixer_alone(task):
    configs = {
        algorithm: load_config(path)
        for algorithm in cells.ALGORITHMS
        if algorithm != "pqn"  # has another replay, too
        and (path := cells.CONFIGS / f"{task}_{algorithm}.yaml").exists()
    }
    assert set(cells.COMPARED) <= set(configs)
    qmix = configs["qmix"]
    for name, config in configs.items():
        algorithm, _, agent = name.partition("_")
        assert config.mixer.name == {"qmix": "qmix", "vdn": "vdn", "iql": "none"}[algorithm]
        assert config.agent.name == (agent or qmix.agent.name)
        assert (config.agent == qmix.agent) == (not agent)
        assert replace(config, mixer=qmix.mixer, agent=qmix.agent) == qmix
    assert qmix.evaluation.episodes >= 100


@pytest.mark.parametrize("algorithm", cells.VARIANTS)
def test_a_variant_is_qmix_with_another_mixer_or_weighting(algorithm):
    for cell in cells.table_cells(cells.TASKS, [algorithm], [3], []):
        config = load_config(cell.config, cell.settings)
        qmix = load_config(cells.CONFIGS / f"{cell.task}_qmix.yaml", ["seed=3"])
        assert (config.mixer == qmix.mixer) != (config.loss.weighting is None)
        assert replace(config, mixer=qmix.mixer, loss=qmix.loss, name="auto") == qmix
        assert replace(config.loss, weighting=None) == qmix.loss


def test_a_run_by_another_number_of_threads_is_done(tiny_table):
    folder = tiny_table / "tiny_vdn-0"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    save_config(
        load_config(vdn_cell().config, vdn_cell("runtime.threads=3").settings),
        folder / "config.yaml",
    )
    assert vdn_cell().is_done(tiny_table)


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
    config = load_config(cells.CONFIGS / "balance_qmix.yaml")
    with pytest.raises(MachineError, match=r"ended with 1: .*No module named 'benchmarl'"):
        list(train_benchmarl.trained(sys.executable, config, tmp_path))


def test_benchmarl_refuses_games(tmp_path):
    with pytest.raises(ConfigError, match=r"VMAS's tasks, not 'games'"):
        train_benchmarl.main(str(cells.CONFIGS / "memory_qmix.yaml"), [], str(tmp_path))


def test_a_run_of_benchmarl_is_read_like_ours(tmp_path, monkeypatch):
    saved_agents(tmp_path / "agents.pt", 18, 9)
    points = [
        {"frames": frames, "seconds": frames / 50, "path": tmp_path / "agents.pt"}
        for frames in (100, 200)
    ]
    monkeypatch.setattr(train_benchmarl, "make_virtualenv", lambda: None)
    monkeypatch.setattr(train_benchmarl, "trained", lambda *_: iter(points))
    folder = train_benchmarl.main(
        str(cells.CONFIGS / "navigation_qmix.yaml"),
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
    read = read_curve(folder, "navigation", cells.BENCHMARL)
    assert (read.seed, read.frames.tolist(), read.seconds.tolist()) == (3, [100, 200], [2.0, 4.0])
    assert read.values[0] == read.values[1] != read.baselines["no_op"]
