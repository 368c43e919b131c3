"""Evaluation: it repeats a run's returns, with the learned weights; its statistics."""

import math

import evaluate
import pytest
import torch
from recipe_tools import AGENTS, call, check_told, run, summary
from support.evaluation import compare, summarize

from qmix_trl import ConfigError


def test_evaluate_repeats_the_returns_of_the_run(tmp_path):
    folder = run(tmp_path, "evaluation.episodes=5", AGENTS["recurrent"])
    again = evaluate.evaluate(folder, episodes=None, seed=None, device="cpu")
    assert again == summary(folder)["return"]
    other = evaluate.evaluate(folder, episodes=None, seed=7, device="cpu")
    assert other["greedy"]["mean"] != again["greedy"]["mean"]
    assert evaluate.evaluate(folder, episodes=3, seed=None, device="cpu")["greedy"]["episodes"] == 3


def test_evaluate_takes_the_learned_weights(tmp_path):
    folder = run(tmp_path, "evaluation.episodes=20", "env.max_steps=20", "collection.steps=20")
    before = evaluate.evaluate(folder, episodes=None, seed=None, device="cpu")
    weights = torch.load(folder / "weights.pt", weights_only=True)
    # The opposite values: the greedy action becomes the worst one.
    for name in list(weights["agent"])[-2:]:
        weights["agent"][name].neg_()
    torch.save(weights, folder / "weights.pt")
    after = evaluate.evaluate(folder, episodes=None, seed=None, device="cpu")
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
        evaluate.evaluate(tmp_path / "x", episodes=None, seed=None, device="cpu")
    folder = run(tmp_path)
    for name, said in (("tyni-1", "did you mean 'tiny-1'"), ("x", "runs in .*/runs: tiny-1")):
        with pytest.raises(ConfigError, match=rf"got .*{name}, which has no config.*; {said}"):
            evaluate.evaluate(folder.with_name(name), episodes=None, seed=None, device="cpu")
    with pytest.raises(ConfigError, match="--episodes of at least 2"):
        evaluate.evaluate(folder, episodes=0, seed=None, device="cpu")
    (folder / "weights.pt").unlink()
    with pytest.raises(ConfigError, match=r"weights\.pt"):
        evaluate.evaluate(folder, episodes=None, seed=None, device="cpu")


def test_a_run_named_like_a_number_is_evaluated(tmp_path):
    folder = run(tmp_path, "name='7e3'")
    evaluate.evaluate(folder, episodes=None, seed=None, device="cpu")


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
