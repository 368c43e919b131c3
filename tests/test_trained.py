"""Agents and mixers of runs: loaded from a run's folder alone, last or best."""

import shutil

import pytest
import torch
from recipe_tools import AGENTS, COMBINATIONS, MIXERS, evaluated, game, run, summary
from support.evaluation import Evaluation
from support.run_weights import RunWeights
from torchrl.envs import EnvBase

from qmix_trl import (
    CheckpointError,
    ConfigError,
    EnvDims,
    QMixer,
    RecurrentAgent,
    VDNMixer,
    load_agent,
    load_config,
    load_mixer,
    save_weights,
)
from qmix_trl.checkpoint.weights import about_weights

MIXERS_BY_NAME = {"qmix": QMixer, "vdn": VDNMixer, "none": type(None)}
DIMS = EnvDims(n_agents=2, observation_dim=3, n_actions=4, state_shape=torch.Size([5]))


@pytest.mark.parametrize(("mixer", "agent"), COMBINATIONS)
def test_a_loaded_agent_acts_as_the_trained_one(mixer, agent, tmp_path):
    folder = run(tmp_path, MIXERS[mixer], AGENTS[agent], game("two_step"))
    before = torch.get_rng_state()
    loaded, its_mixer = load_agent(folder), load_mixer(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded).__name__.lower() == f"{agent}agent"
    assert (
        type(its_mixer).__name__ == {"qmix": "QMixer", "vdn": "VDNMixer", "none": "NoneType"}[mixer]
    )
    saved = torch.load(folder / "weights.pt", weights_only=True)
    for module, part in ((loaded, "agent"), (its_mixer, "mixer")):
        state = {} if module is None else module.state_dict()
        assert state.keys() == saved[part].keys()
        assert all(torch.equal(state[name], saved[part][name]) for name in state)
    evaluation = Evaluation(load_config(folder / "config.yaml"), torch.device("cpu"))
    assert evaluation.greedy(loaded) == summary(folder)["return"]["greedy"]


def test_no_environment_is_made_to_load_an_agent(tmp_path, monkeypatch):
    folder = run(tmp_path, AGENTS["recurrent"])

    def refuse(*arguments, **keywords):
        raise AssertionError("an environment is made")

    monkeypatch.setattr(EnvBase, "__init__", refuse)
    assert load_agent(folder, weights="best").n_actions == 9  # balance: 3 x 3 forces
    with pytest.raises(AssertionError, match="an environment is made"):
        evaluated(folder)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a run's folder, .* got .*/none, which has no"):
        load_agent(tmp_path / "none")


def test_a_users_file_that_is_gone_is_not_needed(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from qmix_trl import make_env\n\ndef make(n_envs):\n"
        "    return make_env('games', scenario='two_step', n_envs=n_envs, max_steps=4,"
        " state='world', seed=0)\n"
    )
    env = (
        f"env={{family: custom, make: '{mine}:make', make_kwargs: {{}}, group: null, n_envs: 2, "
        "max_steps: 4, state: world, team_reward: auto, processes: 1}"
    )
    folder = run(tmp_path, env)
    mine.unlink()
    shutil.rmtree(folder / "source")
    with pytest.raises(ConfigError, match="expected a file"):
        load_config(folder / "config.yaml")
    assert load_agent(folder).n_actions == 2  # the two-step game: 2 agents, 2 actions


def test_weights_without_sizes_get_one_line(tmp_path):
    folder = run(tmp_path, game("two_step"))
    state = torch.load(folder / "weights.pt", weights_only=True)
    del state["about"]
    torch.save(state, folder / "weights.pt")
    with pytest.raises(ConfigError, match=r"weights\.pt: expected weights with the sizes") as told:
        load_agent(folder)
    assert "load_weights" in str(told.value)
    (folder / "best_weights.pt").unlink()
    with pytest.raises(ConfigError, match=r"best_weights\.pt: there is none; .* last weights"):
        load_agent(folder, weights="best")
    with pytest.raises(ValueError, match="expected weights of last, best, got 'bst'"):
        load_agent(folder, weights="bst")


@pytest.mark.parametrize(
    "about",
    [
        {"dims": {"n_agents": 0, "observation_dim": 3, "n_actions": 4, "state_shape": [5]}},
        {"dims": {"n_agents": 2.0, "observation_dim": 3, "n_actions": 4, "state_shape": [5]}},
        {"dims": {"n_agents": 2, "observation_dim": 3, "n_actions": 4, "state_shape": 5}},
        {"dims": {"n_agents": 2}},
        {"dims": "large"},
        {"greedy_return": "high"},
    ],
    ids=str,
)
def test_sizes_that_are_none_are_damage(about, tmp_path):
    agent = RecurrentAgent(2, 3, 4)
    torch.save({"agent": agent.state_dict(), "mixer": {}, "about": about}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="damaged, or no file of save_weights"):
        about_weights(tmp_path)


def test_sizes_and_return_are_saved_beside_weights(tmp_path):
    agent, mixer = RecurrentAgent(2, 3, 4), QMixer(2, 5)
    save_weights(tmp_path, agent, mixer, weights="best", dims=DIMS, greedy_return=1.5)
    found = about_weights(tmp_path, "best")
    assert (found.dims, found.greedy_return) == (DIMS, 1.5)
    save_weights(tmp_path, agent, mixer)
    found = about_weights(tmp_path)
    assert (found.dims, found.greedy_return) == (None, None)


# The best weights


def run_weights(folder) -> tuple[RunWeights, torch.Tensor]:
    """Return a run's weights, and a parameter that tells one save from another."""
    agent = RecurrentAgent(2, 3, 4, hidden_dim=2)
    return RunWeights(folder, agent, None, DIMS), agent.fc2.bias


def saved(folder, name) -> float:
    """Return that parameter in a file."""
    state = torch.load(folder / name, weights_only=True)
    return state["agent"]["fc2.bias"][0].item()


def test_the_first_weights_of_the_highest_return_are_kept(tmp_path):
    weights, bias = run_weights(tmp_path)
    kept = []
    for i, mean in enumerate((-3.0, 2.0, 1.0, 2.0)):
        bias.data.fill_(i)
        weights.save({"mean": mean})
        kept.append((saved(tmp_path, "weights.pt"), saved(tmp_path, "best_weights.pt")))
    assert kept == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert about_weights(tmp_path, "best").greedy_return == 2
    assert about_weights(tmp_path).greedy_return == 2


def test_a_run_that_goes_on_replaces_the_best_weights_only_by_better_ones(tmp_path, capsys):
    weights, _ = run_weights(tmp_path)
    weights.save({"mean": 2.0})
    again, bias = run_weights(tmp_path)
    for mean, kept in ((1.0, 2.0), (2.5, 2.5)):
        bias.data.fill_(mean)
        again.save({"mean": mean})
        assert about_weights(tmp_path, "best").greedy_return == kept
    (tmp_path / "best_weights.pt").write_bytes(b"damage")
    again, _ = run_weights(tmp_path)
    assert "best_weights.pt: damaged" in capsys.readouterr().out
    again.save({"mean": 0.0})
    assert about_weights(tmp_path, "best").greedy_return == 0


def test_a_training_keeps_the_weights_of_its_highest_greedy_return(tmp_path, monkeypatch):
    returns = iter([1.0, 4.0, 3.0])
    summary_of = {"std": 1.0, "episodes": 2}
    monkeypatch.setattr(
        "support.evaluation.Evaluation.greedy", lambda *_: {"mean": next(returns), **summary_of}
    )
    settings = ["evaluation.every_frames=8", "collection.total_frames=16", game("two_step")]
    folder = run(tmp_path, *settings, "checkpoint.every_seconds=0")  # two evaluations
    assert about_weights(folder, "best").greedy_return == 4
    best = (folder / "best_weights.pt").read_bytes()
    run(tmp_path, "collection.total_frames=24", resume=folder)  # the third one
    assert (folder / "best_weights.pt").read_bytes() == best
    assert about_weights(folder).greedy_return == 3
    assert summary(folder)["return"]["greedy"]["mean"] == 3
