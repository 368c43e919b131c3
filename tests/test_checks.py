"""A kernel from disk is compared with the scenario as it is now."""

import json
import os
import subprocess
import sys

import pytest
import torch
from compiled_tools import Plain, simulation_of, task_of
from vmas.simulator.core import Agent, World

from qmix_trl import make_env
from qmix_trl.envs.compiled.checks import constants_of_all_seeds
from qmix_trl.envs.compiled.compile_inductor import beyond_32_bits, check_axes
from qmix_trl.envs.compiled.engines import pool
from qmix_trl.envs.compiled.engines.pool import counts_environments
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.guard import Guard
from qmix_trl.envs.compiled.trace.trace import find_settable_state
from qmix_trl.errors import ConfigError, Refused
from qmix_trl.keys import REWARD, next_key


class OfFile(Plain):
    """Reads a bonus from a file when it is made; it is paid after 100 steps."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def make_world(self, batch_dim, device, **kwargs):
        self.steps = torch.zeros(batch_dim)
        self.noise = torch.rand(3)
        self.bonus = torch.tensor(json.loads(self.path.read_text())["bonus"])
        world = World(batch_dim, device)
        world.add_agent(Agent(name="agent_0", collide=False))
        return world

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.steps[slice(None) if env_index is None else env_index] = 0

    def post_step(self):
        self.steps += 1

    def reward(self, agent):
        return torch.where(self.steps > 100, self.bonus, 0.0)


def test_constants_are_known_by_their_numbers_but_for_those_of_a_seed(tmp_path):
    path = tmp_path / "settings.json"
    guard = Guard({}, frozenset(), frozenset({"bonus", "noise"}))

    def constants(bonus):
        path.write_text(json.dumps({"bonus": bonus}))
        return constants_of_all_seeds(task_of(OfFile(path)), guard)

    one, same, other = constants(1.0), constants(1.0), constants(2.0)
    assert set(one) == {"env.scenario.bonus"}
    assert one == same != other


@pytest.mark.slow
def test_a_file_that_was_edited_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    path = tmp_path / "settings.json"
    for bonus in (1.0, 2.0):
        path.write_text(json.dumps({"bonus": bonus}))
        settings = {"n_envs": 2, "max_steps": 200, "state": "world", "team_reward": "mean"}
        env = make_env("vmas", scenario=OfFile(path), seed=0, engine="kernel", **settings)
        found = env.rollout(102)[next_key(REWARD)][..., 0]
        assert found[:, -3:].tolist() == [[0.0, bonus, bonus]] * 2


def test_numbers_that_count_environments_begin_again_in_a_second_simulation():
    numbered = torch.arange(4.0)[:, None]
    assert counts_environments(numbered, numbered.clone())
    assert counts_environments(torch.cat([numbered, numbered], 1), torch.rand(4, 2)) is False
    equal = torch.ones(4, 1)
    assert not counts_environments(equal, equal)
    assert not counts_environments(torch.rand(4, 1), torch.rand(4, 1))


def test_inductor_refuses_a_number_of_environments_that_is_another_size():
    paths = find_settable_state(simulation_of(Plain(), TRACE_ENVS))
    with pytest.raises(Refused, match="another axis of size 2, the number of environments"):
        check_axes(simulation_of(Plain(), 2), paths)  # positions have two numbers
    for n_envs in (1, 37, 64):
        check_axes(simulation_of(Plain(), n_envs), paths)


def test_whole_numbers_beyond_32_bits_are_found_by_environment():
    limit = 2**31
    each, common = torch.tensor([[1, limit], [-limit, 0], [0, limit - 1]]), torch.tensor([limit])
    assert beyond_32_bits([each, torch.ones(3)], 3).tolist() == [True, True, False]
    assert beyond_32_bits([common], 3).tolist() == [True, True, True]
    assert beyond_32_bits([torch.zeros((), dtype=torch.int64)], 3).tolist() == [False] * 3


def kernel_of(scenario, n_envs):
    """Return an environment of a scenario on the kernel."""
    settings = {"max_steps": 9, "state": "world", "team_reward": "mean", "engine": "kernel"}
    return make_env("vmas", scenario=scenario, n_envs=n_envs, seed=0, **settings)


class OfManyEnvironments(Plain):
    """Pays where there are more than 300 environments, which no build has."""

    def reward(self, agent):
        return torch.full((self.world.batch_dim,), float(self.world.batch_dim > 300))


@pytest.mark.slow
def test_a_step_that_depends_on_many_environments_is_refused_with_as_many():
    assert kernel_of(OfManyEnvironments(), 300).how.name == "kernel"
    with pytest.raises(ConfigError, match=r"agent_reward\[0\] is 0 instead of 1"):
        kernel_of(OfManyEnvironments(), 301)


class Numbered(Plain):
    """Numbers its environments, counts on, and pays the number."""

    def make_world(self, batch_dim, device, **kwargs):
        self.number = torch.arange(float(batch_dim))
        return super().make_world(batch_dim, device)

    def post_step(self):
        self.number = self.number + 1

    def reward(self, agent):
        return self.number


def test_numbers_of_environments_are_those_of_one_simulation(monkeypatch):
    env = kernel_of(Numbered(), 5)
    assert env.rollout(1)[next_key(REWARD)].flatten().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    monkeypatch.setattr(pool, "MOST_TOGETHER", 4)  # of a simulation
    with pytest.raises(ConfigError, match="it numbers its environments, and there are more than 4"):
        kernel_of(Numbered(), 5)


BUILD = """
from qmix_trl import make_env

make_env("vmas", scenario="dropout", n_envs=2, max_steps=9, state="world",
         team_reward="mean", seed=0, engine="kernel")
"""


@pytest.mark.slow
def test_two_builds_print_the_same_source(tmp_path):
    texts = []
    for seed in "01":  # sets have another order
        cache = tmp_path / seed
        env = {**os.environ, "QMIX_TRL_CACHE": str(cache), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD], env=env, check=True)
        texts.append([path.read_text() for path in cache.glob("dropout*/*.cpp")])
    assert len(texts[0]) == 1
    assert texts[0] == texts[1]
