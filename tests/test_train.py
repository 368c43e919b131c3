"""Training: its files, its random streams, and its numbers on every scenario and game."""

import gc
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from recipe_tools import AGENTS, COMBINATIONS, MIXERS, evaluated, game, metrics, run, summary
from vmas_tools import SEVERAL_GROUPS

from qmix_trl import ConfigError, load_config
from qmix_trl.config.checks import vmas_scenarios
from qmix_trl.errors import DivergedError

LARGE = ("pollock", "road_traffic", "sampling")  # a run takes longer than 10 s
SMALLER = {"sampling": "{grid_spacing: 0.2}"}  # VMAS loops over the cells of a grid
SINGLE_GROUP = [name for name in vmas_scenarios() if name not in SEVERAL_GROUPS]


# The files of a run


@pytest.mark.parametrize(("mixer", "agent"), COMBINATIONS)
def test_a_run_leaves_its_folder(mixer, agent, tmp_path, capsys):
    folder = run(tmp_path, MIXERS[mixer], AGENTS[agent], "seed=3")
    assert folder == tmp_path / "runs" / "tiny-1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best_weights.pt",
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "weights.pt",
    ]
    found = summary(folder)
    assert list(found) == [
        "frames",
        "gradient_steps",
        "seconds",
        "frames_per_second",
        "seed",
        "device",
        "ranks",
        "engine",
        "collector",
        "update",
        "verified_steps",
        "return",
    ]
    assert (found["frames"], found["gradient_steps"]) == (16, 2)
    assert (found["seed"], found["device"]) == (3, "cpu")
    assert found["engine"] == "eager"
    assert found["collector"].startswith("step loop (no ")
    assert found["update"].startswith("layers in C++")
    assert found["frames_per_second"] == pytest.approx(16 / found["seconds"])
    assert set(found["return"]) == {"greedy", "random", "no_op"}
    for returns in found["return"].values():
        assert set(returns) == {"mean", "std", "episodes"}
        assert math.isfinite(returns["mean"])
        assert returns["std"] >= 0
        assert returns["episodes"] == 2
    learned = metrics(folder)
    assert learned["frames"] == [8, 16]
    assert learned["greedy_return"] == [None, found["return"]["greedy"]["mean"]]
    for name in ("loss", "td_error", "total_value", "grad_norm", "train_return"):
        assert all(math.isfinite(value) for value in learned[name]), name

    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{folder}: {mixer} on balance, cpu, seed 3")
    assert [line.partition(":")[0] for line in said[1:4]] == ["engine", "collector", "update"]
    assert [line.partition(": ")[2] for line in said[1:4]] == [
        found[name] for name in ("engine", "collector", "update")
    ]
    assert said[-2].startswith(f"greedy return {found['return']['greedy']['mean']:.2f} after 16")
    assert said[-1].startswith("next: ")


def test_the_metrics_of_a_run(tmp_path):
    folder = run(
        tmp_path,
        "collection.total_frames=26",
        "evaluation.every_frames=12",
        "update.per_batch=3",
        "exploration.anneal_frames=32",
        "exploration.epsilon_start=1.0",
        "exploration.epsilon_end=0.2",
    )
    found = metrics(folder)
    # Batches of 2 x 4 frames until 26 are reached: 8, 16, 24, 32.
    assert found["frames"] == [8, 16, 24, 32]
    # The first batches to reach 12, 24 and 36 frames, the last one in place of that.
    assert [value is not None for value in found["greedy_return"]] == [False, True, True, True]
    # From 1.0 to 0.2 over 32 frames: 0.2 a batch.
    assert found["epsilon"] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert summary(folder)["gradient_steps"] == 4 * 3


def test_a_run_of_a_saved_configuration_is_named_after_its_folder(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, config=first / "config.yaml")
    assert again.name == f"{first.name}-1"


@pytest.mark.parametrize(
    "override",
    [
        f"seed={2**32}",
        f"evaluation.seed={2**32}",
        "env.scenario_kwargs={n_agents: many}",
        "env.scenario_kwargs={n_agents: 0}",
        f"runtime.threads={10**12}",
    ],
)
def test_a_value_that_cannot_be_used_is_named(override, tmp_path):
    with pytest.raises(ConfigError, match=override.partition("=")[0].partition("[")[0]):
        run(tmp_path, override)


def test_a_run_that_diverges_is_stopped(tmp_path):
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at update 1 "):
        run(tmp_path, "loss.reward_scale=1e300")
    assert not list(tmp_path.rglob("weights.pt"))


# Randomness


REPEATED = ["collection.total_frames=40", "exploration.epsilon_end=0.5", "update.per_batch=2"]


@pytest.mark.parametrize("agent", AGENTS)
def test_the_saved_configuration_trains_the_same(agent, tmp_path):
    first = run(tmp_path, *REPEATED, AGENTS[agent])
    torch.rand(3)  # draws outside a run do not change it
    again = run(tmp_path, "name=again", config=first / "config.yaml")
    assert metrics(again) == metrics(first)
    assert summary(again)["return"] == summary(first)["return"]
    saved = [load_config(folder / "config.yaml") for folder in (first, again)]
    assert vars(saved[0]) | {"name": "again"} == vars(saved[1])


@pytest.mark.parametrize(
    "rows",
    [[], ["collection.rows=slices", "collection.steps=3"]],
    ids=["episodes", "slices"],
)
def test_evaluation_does_not_touch_training(rows, tmp_path):
    often = metrics(run(tmp_path, *REPEATED, *rows, "evaluation.every_frames=1"))
    once = metrics(run(tmp_path, *REPEATED, *rows, "evaluation.every_frames=1000000"))
    other = metrics(run(tmp_path, *REPEATED, *rows, "evaluation.seed=7", "evaluation.episodes=3"))
    assert None not in often["greedy_return"]
    assert once["greedy_return"].count(None) == len(once["frames"]) - 1
    assert often["greedy_return"][-1] == once["greedy_return"][-1]
    for name in often.keys() - {"greedy_return"}:
        assert often[name] == once[name] == other[name], name


@pytest.mark.parametrize("rows", [[], ["collection.rows=slices", "replay.burn_in=2"]])
def test_replay_in_files_does_not_change_numbers(rows, tmp_path):
    in_memory = run(tmp_path, AGENTS["recurrent"], *rows)
    in_files = run(tmp_path, AGENTS["recurrent"], *rows, "replay.storage=memmap")
    assert metrics(in_files) == metrics(in_memory)
    weights = [(folder / "weights.pt").read_bytes() for folder in (in_files, in_memory)]
    assert weights[0] == weights[1]
    gc.collect()
    assert list((in_files / "replay").iterdir()) == []


def test_other_seeds_give_other_numbers(tmp_path):
    found = [metrics(run(tmp_path, *REPEATED, f"seed={seed}")) for seed in (0, 1, 2)]
    for name in ("loss", "train_return", "total_value"):
        assert len({tuple(columns[name]) for columns in found}) == 3, name


# Slices


def test_slices_reach_across_batches(tmp_path):
    slices = ["collection.rows=slices", "collection.steps=3", "collection.total_frames=30"]
    found = metrics(run(tmp_path, *slices, "replay.burn_in=2", AGENTS["recurrent"]))
    # Both environments run episodes of 4 steps in batches of 3, 6, 9, 12 and 15 steps: these end
    # in steps 4, 8 and 12, that is in batches 2, 3 and 4.
    assert found["frames"] == [6, 12, 18, 24, 30]
    ended = [value is not None for value in found["train_return"]]
    assert ended == [False, True, True, True, False]
    assert all(math.isfinite(loss) for loss in found["loss"])


def test_burn_in_changes_what_is_learned(tmp_path):
    slices = ["collection.rows=slices", "collection.steps=3", AGENTS["recurrent"]]
    found = [metrics(run(tmp_path, *slices, f"replay.burn_in={n}"))["loss"] for n in (0, 2)]
    assert found[0] != found[1]


@pytest.mark.parametrize(("mixer", "agent"), COMBINATIONS)
@pytest.mark.parametrize(("steps", "burn_in"), [(1, 0), (9, 2), (3, 7)])
def test_slices_of_any_length(mixer, agent, steps, burn_in, tmp_path):
    folder = run(
        tmp_path,
        MIXERS[mixer],
        AGENTS[agent],
        "collection.rows=slices",
        f"collection.steps={steps}",
        f"replay.burn_in={burn_in}",
        f"collection.total_frames={2 * 2 * steps}",
    )
    assert metrics(folder)["frames"] == [2 * steps, 4 * steps]
    assert all(math.isfinite(loss) for loss in metrics(folder)["loss"])


# The numbers of small runs


# Recorded from a run on a CPU, so that a change is noticed; between instruction sets they differ by
# 2e-5 of their size. The loss itself is tested against an oracle elsewhere.
FIRST_LOSSES = {
    ("qmix", "recurrent", "episodes"): [0.146219, 0.0597133, 0.00956855, 0.0454808],
    ("vdn", "feedforward", "slices"): [0.772451, 0.494080, 0.126953, 0.493945],
}


@pytest.mark.parametrize(("mixer", "agent", "rows"), FIRST_LOSSES)
def test_first_losses(mixer, agent, rows, tmp_path):
    folder = run(
        tmp_path,
        MIXERS[mixer],
        AGENTS[agent],
        f"collection.rows={rows}",
        "collection.total_frames=32",
    )
    expected = FIRST_LOSSES[mixer, agent, rows]
    assert metrics(folder)["loss"] == pytest.approx(expected, rel=1e-4)


# Every scenario


def smoke(runs: Path, scenario: str, combinations: list[tuple[str, str]], *overrides: str) -> None:
    """Train each combination for two batches of two short episodes."""
    for mixer, agent in combinations:
        folder = run(
            runs,
            f"env.scenario={scenario}",
            f"env.scenario_kwargs={SMALLER.get(scenario, {})}",
            "env.max_steps=3",
            "collection.steps=3",
            "collection.total_frames=12",
            MIXERS[mixer],
            AGENTS[agent],
            *overrides,
        )
        found = metrics(folder)
        assert found["frames"] == [6, 12]
        for name in ("loss", "td_error", "total_value", "grad_norm"):
            assert all(math.isfinite(value) for value in found[name]), (mixer, agent, name)
        assert math.isfinite(found["greedy_return"][-1])


@pytest.mark.parametrize(
    ("i", "scenario"),
    [
        pytest.param(i, name, marks=pytest.mark.slow if name in LARGE else (), id=name)
        for i, name in enumerate(SINGLE_GROUP)
    ],
)
def test_a_combination_trains_on_every_scenario(i, scenario, tmp_path):
    # Neighbours differ, and every combination is trained on five scenarios or more.
    smoke(tmp_path, scenario, [COMBINATIONS[i % len(COMBINATIONS)]])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [n for n in SINGLE_GROUP if n not in LARGE][::8])
def test_every_combination_trains_on_an_eighth_of_the_scenarios(scenario, tmp_path):
    smoke(tmp_path, scenario, COMBINATIONS)


def test_all_combinations_are_there_and_neighbours_differ():
    assert set(COMBINATIONS) == {(mixer, agent) for mixer in MIXERS for agent in AGENTS}
    for (mixer, agent), (other_mixer, other_agent) in pairwise(COMBINATIONS):
        assert mixer != other_mixer
        assert agent != other_agent


@pytest.mark.parametrize("scenario", SEVERAL_GROUPS)
def test_each_of_several_groups_can_be_the_team(scenario, tmp_path):
    with pytest.raises(ConfigError, match=r"^env\.group: .* several groups") as caught:
        smoke(tmp_path, scenario, COMBINATIONS[:1])
    groups = re.findall(r"(\w+) \(\d+\)", str(caught.value))
    assert len(groups) > 1
    for group, combination in zip(groups, COMBINATIONS, strict=False):
        smoke(tmp_path, scenario, [combination], f"env.group={group}")
    with pytest.raises(ConfigError, match="has no group 'nobody'"):
        smoke(tmp_path, scenario, COMBINATIONS[:1], "env.group=nobody")


@pytest.mark.parametrize(("mixer", "agent"), COMBINATIONS)
@pytest.mark.parametrize(
    ("scenario", "keywords"),
    [
        ("two_step", ""),
        ("matrix", "payoff: [[[1, 2]], [[3, 4]], [[5, 6]]]"),
        ("memory", "delay: 3, n_agents: 3, n_cues: 4"),
        ("random_matrix", "n_games: 3"),
    ],
)
def test_every_combination_trains_on_every_game(scenario, keywords, mixer, agent, tmp_path):
    folder = run(tmp_path, game(scenario, keywords), MIXERS[mixer], AGENTS[agent])
    assert all(math.isfinite(value) for value in metrics(folder)["loss"])
    assert evaluated(folder, "evaluation.episodes=3")["greedy"]["episodes"] == 3
