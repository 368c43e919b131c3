"""Snapshots of a simulator."""

import pytest
import torch
from compiled_tools import simulation_of
from trace_tools import Alias, Counter, Hoarder, Viewed, observations

from qmix_trl.envs.compiled.trace.snapshot import restore, snapshot


@pytest.mark.parametrize("scenario", [Hoarder, Counter, Alias, Viewed])
def test_a_simulator_restored_from_a_snapshot_steps_as_before(scenario):
    simulation = simulation_of(scenario())
    for mark, x in zip(simulation.simulator.world.landmarks, (1.0, 2.0), strict=True):
        mark.set_pos(torch.full((1, 2), x), batch_index=None)
    observations(simulation, 2)
    saved = snapshot(simulation.simulator)
    first = observations(simulation, 3)
    simulation.reset()
    inside = simulation.simulator.scenario
    if isinstance(inside, Hoarder):
        marks = simulation.simulator.world.landmarks
        inside.goal = marks[1 - int(saved["env.scenario.goal@"])]  # the other one
    observations(simulation, 1)
    restore(simulation.simulator, saved)
    again = snapshot(simulation.simulator)
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[path], again[path]) for path in saved)
    assert torch.equal(observations(simulation, 3), first)
