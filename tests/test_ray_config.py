"""Configurations with actors of Ray: which are refused, and what reads them without actors."""

import pytest
from recipe_tools import run, tiny
from support.components import in_process
from support.shares import of_all_ranks, share_of

from qmix_trl import ConfigError, load_config
from qmix_trl.config import checks

COUNTED = (
    "env={family: custom, make: 'family_tools:any_env', make_kwargs: {}, group: null, n_envs: 4, "
    "max_steps: 4, state: world, team_reward: mean, processes: 2}"
)
BY_RAY = (COUNTED, "collection.collector=ray")


@pytest.fixture
def _ray_is_there(monkeypatch):
    monkeypatch.setattr(checks, "check_extra", lambda *names: None)


def refusal(tmp_path, *overrides):
    with pytest.raises(ConfigError) as told:
        run(tmp_path, *overrides)
    return str(told.value).partition("': ")[2]  # after the override


def test_a_family_with_engines_is_refused(tmp_path):
    said = refusal(tmp_path, "collection.collector=ray")
    assert said == (
        "collection.collector: ray wants environments that step in Python (env.family: custom, "
        "pettingzoo, lbforaging, rware), got vmas, whose steps take less time than to send them; "
        "set collection.collector=auto"
    )


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("qmix_trl.errors.find_spec", lambda name: None)
    assert refusal(tmp_path, *BY_RAY) == (
        "collection.collector: expected the package ray, which is not installed; install it by "
        "pip install 'qmix-trl[ray]'"
    )


@pytest.mark.usefixtures("_ray_is_there")
def test_ranks_of_torchrun_are_refused(tmp_path):
    config = load_config(tiny(tmp_path), BY_RAY)
    assert share_of(config, 1) is config
    with pytest.raises(ConfigError, match="ray wants one process, got 2 ranks of torchrun"):
        share_of(of_all_ranks(config, 2, "keep"), 2)


@pytest.mark.usefixtures("_ray_is_there")
def test_actors_divide_the_environments(tmp_path):
    said = refusal(tmp_path, *BY_RAY, "env.processes=3")
    assert said.startswith("env.processes (3) does not divide env.n_envs (4)")


@pytest.mark.usefixtures("_ray_is_there")
def test_burn_in_is_refused_as_rows_come_in_any_order(tmp_path):
    slices = ("collection.rows=slices", "collection.steps=4", "replay.burn_in=2")
    said = refusal(tmp_path, *BY_RAY, *slices)
    assert said.startswith("replay.burn_in: expected 0 with collection.collector=ray")
    assert said.endswith("got 2")


@pytest.mark.usefixtures("_ray_is_there")
def test_evaluation_needs_no_actors(tmp_path):
    config = load_config(tiny(tmp_path), BY_RAY)
    alone = in_process(config)
    assert (alone.collection.collector, alone.env.processes) == ("auto", 1)
    spread = load_config(tiny(tmp_path), (COUNTED,))
    assert in_process(spread) is spread
