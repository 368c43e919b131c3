"""Runs of the recipes in a fraction of a second, shared by their tests."""

import csv
import json
import runpy
import sys
from pathlib import Path

import evaluate
import pytest
import train

RECIPES = Path(__file__).parents[1] / "recipes"
TINY = """\
name: auto
seed: 0
runtime:
  device: cpu
  threads: 1
  compile: false
  cuda_graph: auto
env:
  family: vmas
  scenario: balance
  scenario_kwargs: {n_agents: 4, random_package_pos_on_line: true, package_mass: 5}
  group: null
  others: no_op
  actions_per_dimension: null
  n_envs: 2
  max_steps: 4
  state: world
  team_reward: mean
  engine: eager
  verify: 0.0
agent:
  name: feedforward
  hidden_dims: [8]
  layer_norm: false
  share_parameters: true
  use_last_action: false
  use_agent_id: true
mixer:
  name: qmix
  mixing_embed_dim: 8
  hypernet_layers: 2
  hypernet_embed_dim: 8
exploration:
  epsilon_start: 1.0
  epsilon_end: 0.05
  anneal_frames: 16
  repeat_exponent: null
collection:
  total_frames: 16
  rows: episodes
  steps: 4
  collector: auto
replay:
  storage: memory
  capacity_rows: 16
  batch_rows: 2
  sampling: uniform
  burn_in: 0
loss:
  gamma: 0.99
  double_q: true
  td_lambda: 0.8
  reward_scale: 1.0
  bounded_targets: false
  weighting: null
update:
  per_batch: 1
  max_grad_norm: 10.0
  optimizer: {name: adam, lr: 0.001, eps: 1e-8}
  target: {name: hard, period_updates: 2}
evaluation:
  every_frames: 1000
  episodes: 2
  seed: 1000
  video: false
checkpoint:
  every_seconds: null
  keep: 2
logging: []
"""  # 2 batches of 2 episodes of 4 steps: 16 frames
MIXERS = {
    "qmix": ("mixer={name: qmix, mixing_embed_dim: 8, hypernet_layers: 1, hypernet_embed_dim: 8}"),
    "vdn": "mixer={name: vdn}",
    "none": "mixer={name: none}",
}
AGENTS = {
    "recurrent": (
        "agent={name: recurrent, hidden_dim: 8, layer_norm: false, share_parameters: true, "
        "use_last_action: true, use_agent_id: true}"
    ),
    "feedforward": (
        "agent={name: feedforward, hidden_dims: [8], layer_norm: false, share_parameters: true, "
        "use_last_action: false, use_agent_id: true}"
    ),
}
# In an order in which each pair that follows another has both agents and two mixers.
COMBINATIONS = [
    ("qmix", "recurrent"),
    ("vdn", "feedforward"),
    ("none", "recurrent"),
    ("qmix", "feedforward"),
    ("vdn", "recurrent"),
    ("none", "feedforward"),
]
TIMING = ("frames_per_second", "seconds_left")


def game(scenario: str, keywords: str = "") -> str:
    """Return the override that puts a game in the environment's place."""
    return (
        f"env={{family: games, scenario: {scenario}, scenario_kwargs: {{{keywords}}}, n_envs: 2, "
        "max_steps: 4, state: world}"
    )


def tiny(folder: Path) -> Path:
    """Write and return the file of a run of a fraction of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


def run(
    folder: Path, *overrides: str, config: Path | None = None, resume: str | Path | None = None
) -> Path:
    """Train in this process; return the run's folder."""
    config = tiny(folder) if config is None else config
    resume = None if resume is None else str(resume)
    return train.train(str(config), overrides, str(folder / "runs"), resume)


def metrics(folder: Path) -> dict[str, list[float | None]]:
    """Return the columns of a run's metrics, without those that tell the time."""
    with (folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {
        name: [float(line[name]) if line[name] else None for line in lines]
        for name in lines[0]
        if name not in TIMING
    }


def summary(folder: Path) -> dict:
    """Return a run's summary."""
    return json.loads((folder / "summary.json").read_text())


def evaluated(folder: Path, *overrides: str, **settings: str) -> dict[str, dict[str, float]]:
    """Return the summaries of a run's returns and of the baselines', as in ``summary.json``."""
    (found,) = evaluate.evaluate([folder], overrides, device="cpu", **settings)
    return {**found.baselines, "greedy": found.runs[str(folder)]}


def call(recipe: str, *arguments: str) -> None:
    """Run a recipe as its command line does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [recipe, *arguments])
        runpy.run_path(str(RECIPES / recipe), run_name="__main__")


def check_told(code: int, said: str, expected: int, parts: list[str]) -> None:
    """Assert that a mistake got its exit code and at most two lines that name it."""
    assert code == expected, said
    assert 1 <= len(said.strip().splitlines()) <= 2, said
    assert "Traceback" not in said
    for part in parts:
        assert part in said
