"""Evaluation: it repeats a run's returns, with the learned weights; its statistics."""

import json
import math

import evaluate
import pytest
import torch
from recipe_tools import AGENTS, call, check_told, evaluated, game, run, summary
from support.evaluation import compare, summarize

from qmix_trl import ConfigError


def test_evaluate_repeats_the_returns_of_the_run(tmp_path):
    folder = run(tmp_path, "evaluation.episodes=5", AGENTS["recurrent"])
    again = evaluated(folder)
    assert again == summary(folder)["return"]
    other = evaluated(folder, "evaluation.seed=7")
    assert other["greedy"]["mean"] != again["greedy"]["mean"]
    assert evaluated(folder, "evaluation.episodes=3")["greedy"]["episodes"] == 3


def test_evaluate_takes_the_learned_weights(tmp_path):
    folder = run(tmp_path, "evaluation.episodes=20", "env.max_steps=20", "collection.steps=20")
    before = evaluated(folder)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    # The opposite values: the greedy action becomes the worst one.
    for name in list(weights["agent"])[-2:]:
        weights["agent"][name].neg_()
    torch.save(weights, folder / "weights.pt")
    after = evaluated(folder)
    assert after["greedy"]["mean"] != before["greedy"]["mean"]
    assert after["random"] == before["random"]


def test_weights_that_are_not_finite_get_one_line_and_no_return(tmp_path, capsys):
    folder = run(tmp_path)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    next(iter(weights["agent"].values())).fill_(math.nan)
    torch.save(weights, folder / "weights.pt")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call("evaluate.py", str(folder))
    said = capsys.readouterr()
    check_told(caught.value.code, said.err, 5, ["weights.pt", "is not finite"])
    assert "return" not in said.out


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"which has no config\.yaml; runs in .*: none"):
        evaluated(tmp_path / "x")
    folder = run(tmp_path)
    for name, said in (("tyni-1", "did you mean 'tiny-1'"), ("x", "runs in .*/runs: tiny-1")):
        with pytest.raises(ConfigError, match=rf"got .*{name}, which has no config.*; {said}"):
            evaluated(folder.with_name(name))
    with pytest.raises(ConfigError, match=r"/runs, which has no .*; runs in .*/runs: tiny-1$"):
        evaluated(folder.parent)
    with pytest.raises(ConfigError, match=r"evaluation\.episodes.*at least 2"):
        evaluated(folder, "evaluation.episodes=0")
    (folder / "weights.pt").unlink()
    with pytest.raises(ConfigError, match=r"weights\.pt"):
        evaluated(folder)


def test_a_run_named_like_a_number_is_evaluated(tmp_path):
    folder = run(tmp_path, "name='7e3'")
    evaluated(folder)


# Several runs


def test_runs_are_compared_in_the_same_episodes(tmp_path):
    runs = [
        run(tmp_path, game("two_step"), "evaluation.episodes=4"),
        run(tmp_path, game("random_matrix", "n_games: 5"), "seed=1"),
        run(tmp_path, game("two_step"), "seed=2", "evaluation.seed=3", "env.n_envs=4"),
    ]
    first, second = evaluate.evaluate(runs, device="cpu")
    assert (first.task, list(first.runs)) == ("two_step", [str(runs[0]), str(runs[2])])
    assert (second.task, list(second.runs)) == ("random_matrix", [str(runs[1])])
    assert {x["episodes"] for x in (*first.runs.values(), *second.baselines.values())} == {4}
    alone = evaluated(runs[2], "evaluation.episodes=4", "evaluation.seed=1000")
    assert first.runs[str(runs[2])] == alone["greedy"]
    assert first.baselines == {name: alone[name] for name in ("no_op", "random")}


def test_json_has_the_figures_of_the_table(tmp_path, capsys):
    folder = run(tmp_path, game("two_step"))
    other = run(tmp_path, game("two_step"), "seed=1")
    capsys.readouterr()
    call("evaluate.py", str(folder), "--episodes", "5", str(other))
    title, heads, *lines, _, advice = capsys.readouterr().out.splitlines()
    assert title == "two_step: 5 episodes from seed 1000, last weights"
    assert heads.split() == ["return", "std", "policy"]
    call("evaluate.py", str(folder), str(other), "evaluation.episodes=5", "--json")
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (task["task"], task["seed"], task["weights"]) == ("two_step", 1000, "last")
    named = {**task["runs"], "doing nothing": task["baselines"]["no_op"]}
    named["chance"] = task["baselines"]["random"]
    shown = [(f"{x['mean']:.3f}", f"{x['std']:.3f}", name) for name, x in named.items()]
    assert [tuple(line.split(maxsplit=2)) for line in lines] == shown
    assert {x["episodes"] for x in named.values()} == {5}
    assert advice.startswith("next: ")
    assert advice.endswith(f"render.py {folder}")


def test_the_best_weights_are_evaluated(tmp_path):
    settings = ["evaluation.episodes=20", "env.max_steps=20", "collection.steps=20"]
    folder = run(tmp_path, *settings)
    best = torch.load(folder / "best_weights.pt", weights_only=True)
    for name in list(best["agent"])[-2:]:
        best["agent"][name].neg_()  # the greedy action becomes the worst one
    torch.save(best, folder / "best_weights.pt")
    assert evaluated(folder)["greedy"] == summary(folder)["return"]["greedy"]
    assert evaluated(folder, weights="best")["greedy"] != evaluated(folder)["greedy"]


def test_environments_are_stepped_in_rounds_with_other_seeds(tmp_path):
    folder = run(tmp_path, game("random_matrix", "n_games: 50"), "evaluation.episodes=6")
    together = "env.n_envs=2"
    whole = evaluated(folder, together)["greedy"]
    # The rounds are evaluations of two episodes each, from seeds 1000, 1001 and 1002.
    rounds = [
        evaluated(folder, "evaluation.episodes=2", f"evaluation.seed={seed}")["greedy"]["mean"]
        for seed in (1000, 1001, 1002)
    ]
    assert len(set(rounds)) > 1
    assert whole["mean"] == pytest.approx(sum(rounds) / 3)
    assert whole["episodes"] == 6
    with pytest.raises(ConfigError, match=r"env\.n_envs \(4\) does not divide .* \(6\)"):
        evaluated(folder, "env.n_envs=4")


def test_a_trained_run_keeps_its_other_settings(tmp_path):
    folder = run(tmp_path, game("two_step"))
    with pytest.raises(ConfigError, match=r"agent\.hidden_dims: expected a key of env or "):
        evaluated(folder, "agent.hidden_dims=[8]")
    with pytest.raises(ConfigError, match=r"weights\.pt: does not fit"):
        evaluated(
            folder, "env.scenario=matrix", "env.scenario_kwargs={payoff: [[1, 2, 3], [4, 5, 6]]}"
        )


# Statistics


def returns(mean: float, std: float, episodes: int) -> dict[str, float]:
    """Return a summary of returns."""
    return {"mean": mean, "std": std, "episodes": episodes}


def test_a_summary_has_mean_deviation_and_number():
    # Of 1, 2, 6: mean 9 / 3 = 3, variance of a sample (4 + 1 + 9) / 2 = 7.
    assert summarize(torch.tensor([1.0, 2.0, 6.0])) == pytest.approx(
        {"mean": 3.0, "std": math.sqrt(7), "episodes": 3}
    )


@pytest.mark.parametrize(
    ("mean", "said"),
    [(1.01, "above"), (0.99, "no different from"), (-0.99, "no different from"), (-1.01, "below")],
)
def test_means_differ_by_more_than_two_standard_errors(mean, said):
    # Standard errors of 3 / sqrt(100) = 0.3 and 4 / sqrt(100) = 0.4: of the difference, 0.5.
    assert compare(returns(mean, 3, 100), returns(0, 4, 100)) == said
