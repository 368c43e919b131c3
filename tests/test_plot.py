"""Learning curves: which runs are compared, what is written, and what is drawn."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark import report
from recipe_tools import RECIPES, call, check_told
from support.cells import Cell
from support.comparison_report import compared, draw_comparison, scores_of, write_comparison
from support.curve_report import draw, mean_curve, print_table, write_csv
from support.curves import Curve, read_curve
from support.named_curves import named_curves
from support.run_labels import flat_run, groups_of, tasks_of

from qmix_trl.config.strict_yaml import read_values
from qmix_trl.errors import ConfigError

BASELINES = {"no_op": 1.0, "random": -1.0}
CONFIGS = RECIPES / "configs"


def curve(task, group, seed, values, baselines=BASELINES):
    """Return a curve of evaluations 100 frames and 2 seconds apart."""
    frames = 100.0 * np.arange(1, len(values) + 1)
    return Curve(task, group, seed, frames, frames / 50, np.array(values), baselines)


def write_run(folder, config, *, seed=0, returns=(1.0, 2.0), finished=True, replace=("", "")):
    """Write the folder of a run with evaluations 100 frames and 2 seconds apart."""
    folder.mkdir(parents=True)
    text = (CONFIGS / config).read_text().replace("seed: 0", f"seed: {seed}").replace(*replace)
    (folder / "config.yaml").write_text(text)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("frames", "frames_per_second", "greedy_return", "loss"))
        for i, value in enumerate(returns, 1):
            writer.writerow((100 * i - 50, 50.0, "", 0.5))  # not evaluated
            writer.writerow((100 * i, 50.0, value, 0.25))
    if finished:
        means = {name: {"mean": value} for name, value in BASELINES.items()}
        (folder / "summary.json").write_text(json.dumps({"seed": seed, "return": means}))
    return folder


# Tasks and groups


def labels(*configs, keys=None):
    """Return tasks and groups of files, given with texts to replace."""
    runs = []
    for name, *replaced in configs:
        config = read_values(CONFIGS / name)
        for section, key, value in replaced:
            (config[section] if section else config)[key] = value
        runs.append(flat_run(config, "qmix_trl"))
    tasks = tasks_of(runs)
    return list(zip(tasks, groups_of(runs, tasks, keys), strict=True))


def test_groups_are_named_by_the_keys_that_differ():
    files = ("balance_qmix.yaml",), ("balance_vdn.yaml",), ("balance_iql.yaml",)
    assert labels(*files) == [("balance", "qmix"), ("balance", "vdn"), ("balance", "iql")]
    lower = ("balance_qmix.yaml", ("loss", "td_lambda", 0.5))
    assert labels(("balance_qmix.yaml",), lower) == [
        ("balance", "td_lambda=0.9"),
        ("balance", "td_lambda=0.5"),
    ]
    assert labels(("balance_vdn.yaml",), lower)[1] == ("balance", "qmix, td_lambda=0.5")


def test_seeds_and_keys_without_effect_make_no_group():
    same = [
        (
            "balance_qmix.yaml",
            ("", "seed", seed),
            ("", "name", f"a-{seed}"),
            ("runtime", "threads", 2),
        )
        for seed in (0, 1)
    ]
    assert (
        labels(*same, ("balance_qmix.yaml", ("env", "engine", "eager")))
        == [("balance", "qmix")] * 3
    )


def test_groups_are_those_of_tasks_each_with_settings_of_its_own():
    files = [
        (f"{task}_{mixer}.yaml",) for task in ("balance", "wheel") for mixer in ("qmix", "vdn")
    ]
    assert labels(*files) == [
        *(("balance", "qmix"), ("balance", "vdn")),
        *(("wheel", "qmix"), ("wheel", "vdn")),
    ]


def test_tasks_of_one_scenario_are_told_apart():
    shorter = ("balance_qmix.yaml", ("env", "max_steps", 50))
    assert [task for task, _ in labels(("balance_qmix.yaml",), shorter)] == [
        "balance, max_steps=100",
        "balance, max_steps=50",
    ]
    fewer = ("balance_qmix.yaml", ("env", "scenario_kwargs", {"n_agents": 3}))
    with_kwargs = labels(("balance_qmix.yaml",), fewer)[1]
    assert with_kwargs == ("balance, n_agents=3", "qmix")


def test_keys_can_be_named():
    files = ("balance_qmix.yaml",), ("balance_vdn.yaml", ("loss", "gamma", 0.5))
    assert [group for _, group in labels(*files, keys=["loss.gamma"])] == [
        "gamma=0.99",
        "gamma=0.5",
    ]
    with pytest.raises(ConfigError, match=r"no run has the key 'loss.gama'; did you mean"):
        labels(*files, keys=["loss.gama"])


# Means over seeds


def test_the_mean_is_of_the_frames_that_all_runs_have():
    values = [0.0, 3.0, 9.0], [2.0, 5.0], [4.0, 7.0, 1.0]
    curves = [curve("a", "qmix", seed, of_run) for seed, of_run in enumerate(values)]
    frames, seconds, mean, low, high = mean_curve(curves, "a", "qmix")
    assert (frames.tolist(), seconds.tolist()) == ([100, 200], [2, 4])
    # Of three seeds the mean; all draws are the lowest one with probability 1/27.
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([2, 5], [0, 3], [4, 7])


def test_the_printed_table(capsys):
    values = [[24.0, 10.0], [24.0, 20.0], [51.0, 60.0]]
    print_table([curve("balance", "qmix", i, v) for i, v in enumerate(values)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["task", "group", "value", "[95", "%]", "best", "seeds", "frames", "s"],
        ["balance", "doing", "nothing", "1.00"],
        ["balance", "chance", "-1.00"],
        # The mean of 10, 20 and 60, and all resamples alike with probability 1/27 each; before, the
        # mean of 24, 24 and 51 is higher.
        ["balance", "qmix", "30.00", "[10.00,", "60.00]", "33.00", "3", "200", "4"],
    ]
    assert max(map(len, lines)) <= 80


def test_the_csv_has_runs_means_and_baselines(tmp_path):
    write_csv([curve("a", "vdn", s, [1.0 + s, 2.5]) for s in (0, 1)], tmp_path / "all.csv")
    lines = list(csv.reader((tmp_path / "all.csv").open()))
    assert lines == [
        ["kind", "task", "group", "seed", "frames", "seconds", "greedy_return", "low", "high"],
        ["run", "a", "vdn", "0", "100", "2.00", "1.0", "", ""],
        ["run", "a", "vdn", "0", "200", "4.00", "2.5", "", ""],
        ["run", "a", "vdn", "1", "100", "2.00", "2.0", "", ""],
        ["run", "a", "vdn", "1", "200", "4.00", "2.5", "", ""],
        ["mean", "a", "vdn", "", "100", "2.00", "1.5", "1.0", "2.0"],
        ["mean", "a", "vdn", "", "200", "4.00", "2.5", "2.5", "2.5"],
        ["baseline", "a", "no_op", "", "", "", "1.0", "", ""],
        ["baseline", "a", "random", "", "", "", "-1.0", "", ""],
    ]


def test_less_than_a_second_is_no_number_of_millis(tmp_path):
    quick = replace(curve("a", "qmix", 0, [1.0, 2.0]), seconds=np.array([0.2, 0.6]))
    figure = draw([quick], tmp_path / "figure.svg", ["frames", "seconds"])
    texts = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert any(texts)
    assert not any("m" in text for text in texts)


def test_a_curve_of_one_point_is_seen(tmp_path):
    curves = [curve("a", "qmix", 0, [1.0]), curve("a", "vdn", 0, [1.0, 2.0])]
    axis = draw(curves, tmp_path / "figure.png", ["frames"]).axes[0]
    markers = {line.get_label(): line.get_marker() for line in axis.get_lines()}
    assert (markers["qmix"], markers["vdn"]) == ("o", "")
    assert axis.get_ylabel() == "greedy return"


@pytest.mark.parametrize(("n_tasks", "units"), [(1, ["frames"]), (5, ["frames", "seconds"])])
def test_the_figure_is_drawn(n_tasks, units, tmp_path):
    groups = ("qmix", "vdn")
    curves = [
        curve(f"task_{i}", group, seed, [seed, seed + i])
        for i in range(n_tasks)
        for group in groups
        for seed in range(3)
    ]
    figure = draw(curves, tmp_path / "figure.png", units)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == len(units) * n_tasks
    for panel in panels:
        lines = {line.get_label(): line for line in panel.get_lines()}
        named = {label for label in lines if label[0] != "_"}
        assert named == {*groups, "doing nothing", "chance"}
        x = {"frames": [100, 200], "seconds": [2, 4]}[panel.get_xlabel()]
        assert list(lines["qmix"].get_xdata()) == x
        assert lines["vdn"].get_ydata()[0] == 1  # the mean of seeds 0 to 2
        assert len(panel.get_lines()) == 2 * (3 + 1) + 2  # single runs, means, baselines
        assert len(panel.collections) == len(groups)  # an interval for each


# Comparison over tasks


def test_several_tasks_and_groups_are_compared(tmp_path):
    curves = [
        curve(task, group, seed, [0.0, value + seed])
        for task in ("a", "b")
        for group, value in (("qmix", 5.0), ("vdn", 2.0))
        for seed in (0, 1)
    ]
    scores = scores_of(curves)
    # 0 at 1, the better baseline; 1 at 5.5, QMIX's mean of 5 and 6.
    assert scores["qmix"][0] == pytest.approx([4 / 4.5, 5 / 4.5])
    lines = compared(scores)
    found = {(line.measure, line.group, line.other): line.value for line in lines}
    assert found["normalized score", "qmix", ""] == pytest.approx(1)
    assert found["normalized score", "vdn", ""] == pytest.approx(1.5 / 4.5)
    assert found["improvement over", "qmix", "vdn"] == 1  # 5 and 6 over 2 and 3
    assert found["share of runs above", "qmix", "0.900"] == 0.5
    assert found["share of runs above", "vdn", "0.900"] == 0
    write_comparison(lines, tmp_path / "comparison.csv")
    assert len(list(csv.reader((tmp_path / "comparison.csv").open()))) == 1 + len(lines)
    draw_comparison(lines, ["qmix", "vdn"], tmp_path / "comparison.svg")
    assert "<svg" in (tmp_path / "comparison.svg").read_text()


def test_one_task_or_one_group_is_not_compared():
    assert scores_of([curve("a", group, 0, [5.0]) for group in ("qmix", "vdn")]) == {}
    assert scores_of([curve(task, "qmix", 0, [5.0]) for task in ("a", "b")]) == {}


def report_of(folder, *returns_of_wheel):
    """Compare runs of two groups on balance and wheel; return the names of the files."""
    cells = []
    for task, returns in (("balance", (9.0, 3.0)), ("wheel", returns_of_wheel)):
        for group, value in zip(("qmix", "vdn"), returns, strict=True):
            cell = Cell(f"{task}_{group}", Path(), 0, (), task, group)
            write_run(folder / cell.name, f"{task}_{group}.yaml", returns=[0.0, value])
            cells.append(cell)
    report(cells, folder)
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_benchmark_of_several_tasks_leaves_a_comparison(tmp_path, capsys):
    files = {"benchmark.csv", "benchmark.png"}
    more = {"comparison.csv", "comparison.png"}
    assert report_of(tmp_path / "both", 4.0, 5.0) == files | more
    said = capsys.readouterr().out.splitlines()
    # 0 at 1; QMIX's scores are 1 and 3/4, VDN's 1/4 and 1.
    assert ["normalized", "score", "qmix", "0.88", "[0.88,", "0.88]"] in [s.split() for s in said]
    assert ["improvement", "over", "vdn", "qmix", "0.50"] in [s.split()[:5] for s in said]
    assert said[-1].endswith(f"{tmp_path}/both/comparison.png")
    # On wheel nothing is above 1.
    assert report_of(tmp_path / "one", 0.0, 1.0) == files
    assert "not compared over tasks" in capsys.readouterr().out


# The command


def test_runs_are_drawn_by_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, value in ((0, 3.0), (1, 5.0)):
        write_run(tmp_path / f"runs/a-{seed}", "balance_qmix.yaml", seed=seed, returns=[0, value])
        write_run(tmp_path / f"runs/b-{seed}", "wheel_vdn.yaml", seed=seed)
    call("plot.py", "runs", "--out", "mine.svg", "--x", "seconds")
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "wrote mine.svg and mine.csv"
    call("plot.py", "runs/a-0")
    said_of_one = capsys.readouterr().out.splitlines()
    assert said_of_one[-2] == "wrote curves.png and curves.csv"
    assert said_of_one[-1].endswith("export.py runs/a-0")
    assert ["balance", "qmix", "4.00", "[3.00,", "5.00]", "4.00", "2", "200", "4"] in [
        line.split() for line in said
    ]
    assert "<svg" in (tmp_path / "mine.svg").read_text()
    lines = csv.DictReader((tmp_path / "mine.csv").open())
    assert {(line["task"], line["group"]) for line in lines if line["kind"] == "mean"} == {
        ("balance", "qmix"),
        ("wheel", "vdn"),
    }


def test_one_run_under_way_is_drawn(tmp_path):
    folder = write_run(tmp_path / "a", "balance_qmix.yaml", finished=False)
    (drawn,) = named_curves([folder], None, "greedy_return")
    assert (drawn.task, drawn.group, drawn.baselines) == ("balance", "qmix", {})
    assert (drawn.frames.tolist(), drawn.seconds.tolist()) == ([100, 200], [2, 4])
    assert drawn.values.tolist() == [1, 2]
    loss = read_curve(folder, "balance", "qmix", "loss")
    assert loss.frames.tolist() == [50, 100, 150, 200]


def test_runs_that_cannot_be_pooled_are_told(tmp_path, capsys):
    first = write_run(tmp_path / "a", "balance_qmix.yaml")
    again = write_run(tmp_path / "b", "balance_qmix.yaml")
    none = write_run(tmp_path / "c", "balance_qmix.yaml", seed=1, returns=[])
    assert len(named_curves([first, again, first, none], None, "greedy_return")) == 2
    said = capsys.readouterr().out
    assert f"{none}: no greedy_return yet; left out" in said
    assert "warning: qmix on balance: 2 runs have 1 seeds" in said
    with pytest.raises(ConfigError, match="expected a run with a greedy_return"):
        named_curves([none], None, "greedy_return")
    (again / "metrics.csv").write_text("frames,frames_per_second,greedy_return\n70,50,1\n")
    with pytest.raises(ConfigError, match=r"qmix on balance: expected points at the same frames"):
        named_curves([first, again], None, "greedy_return")


def test_runs_of_benchmarl_are_a_group_of_their_own(tmp_path):
    ours = write_run(tmp_path / "a", "balance_qmix.yaml")
    theirs = write_run(tmp_path / "b", "balance_qmix.yaml")
    summary = json.loads((theirs / "summary.json").read_text())
    (theirs / "summary.json").write_text(json.dumps({**summary, "packages": ["benchmarl==1"]}))
    groups = [drawn.group for drawn in named_curves([ours, theirs], None, "greedy_return")]
    assert groups == ["qmix_trl", "BenchMARL"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], ["expected a run's folder, or one with runs, got nothing"]),
        (["runs/a", "--y", "los"], ["metrics.csv: no column 'los'; did you mean 'loss'?"]),
        (["runs/a", "--group-by", "mixer.nam"], ["no run has the key 'mixer.nam'", "mixer.name"]),
        (["."], ["a run's folder, or one with runs, got .; runs has runs"]),
    ],
)
def test_a_mistake_gets_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a", "balance_qmix.yaml")
    with pytest.raises(SystemExit) as caught:
        call("plot.py", *arguments)
    check_told(caught.value.code, capsys.readouterr().err, 2, said)


@pytest.mark.parametrize("out", ["curves.pdf", "no/curves.png", "taken.png"])
def test_a_file_that_cannot_be_drawn_is_told(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(SystemExit) as caught:
        call("plot.py", ".", "--out", out)
    assert caught.value.code == 2
    assert out.partition("/")[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_package_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qmix_trl.errors.find_spec", lambda package: None)
    with pytest.raises(SystemExit) as caught:
        call("plot.py", str(write_run(tmp_path / "a", "balance_qmix.yaml")))
    told = ["package scipy", "pip install 'qmix-trl[recipes]'"]
    check_told(caught.value.code, capsys.readouterr().err, 2, told)
