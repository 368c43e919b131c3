"""Resets that draw one number for all environments."""

import random

import numpy as np
import pytest
import torch
from compiled_tools import Plain, simulation_of
from vmas.simulator.utils import ScenarioUtils

from qmix_trl.envs.compiled.engines import pool


class Drawing(Plain):
    """Calls a function of E in its resets."""

    drawing = staticmethod(lambda n_envs: None)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.drawing(self.world.batch_dim)


@pytest.mark.parametrize(
    ("drawing", "shared"),
    [
        (lambda n: None, False),
        (lambda n: torch.rand(n, 2), False),
        (lambda n: torch.zeros(n, 2).uniform_(-1, 1), False),
        (lambda n: torch.randint(3, (n,)), False),
        (lambda n: torch.rand(2), True),
        (lambda n: torch.zeros(1, 2).normal_(), True),
        (lambda n: torch.randint(3, (1,)), True),
        (lambda n: torch.randperm(3), True),
        (lambda n: random.random(), True),
        (lambda n: np.random.rand(n), True),  # noqa: NPY002 - as scenarios do
        (lambda n: np.random.randint(3), True),  # noqa: NPY002
    ],
)
def test_a_draw_for_the_whole_batch_is_noticed(drawing, shared):
    scenario = type("Case", (Drawing,), {"drawing": staticmethod(drawing)})()
    assert pool.shares_draws(simulation_of(scenario, 5)) is shared


@pytest.mark.parametrize(("n", "shared"), [(1, True), (5, False)])
def test_a_shared_draw_from_a_private_generator_is_noticed_by_equal_positions(n, shared):
    generator = np.random.default_rng(0)

    class Case(Plain):
        def reset_world_at(self, env_index=None):
            pos = torch.tensor(generator.random((n, 2)), dtype=torch.float32)
            self.world.agents[0].set_pos(pos, batch_index=None)

    assert pool.shares_draws(simulation_of(Case(), 5)) is shared


def test_a_spawning_scenario_shares_no_draws():
    class Spawning(Plain):
        def reset_world_at(self, env_index=None):
            ScenarioUtils.spawn_entities_randomly(
                self.world.agents + self.world.landmarks,
                self.world,
                env_index,
                0.1,
                (-1, 1),
                (-1, 1),
            )

    assert pool.shares_draws(simulation_of(Spawning(), 5)) is False
