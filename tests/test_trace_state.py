"""The state of a simulator: which values it is, and reading and writing them."""

import torch
from compiled_tools import simulation_of
from environments.mpe_spread import MpeSpread
from trace_tools import Alias, Counter, Hoarder, Tuple, Viewed, observations, state_of
from vmas.scenarios.mpe import simple_spread

from qmix_trl.envs.compiled.trace.state import random_step
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_scenarios import load_scenario


def test_state_is_found_in_lists_dictionaries_and_closures():
    paths = state_of(simulation_of(Hoarder()))
    here = "env.scenario"
    own = {path for path in paths.tensors if path.startswith(f"{here}.") and "_world" not in path}
    # The closure's only cell is the list; listed[1] and mapped[never] are never written.
    expected = {f"{here}.listed[0]", f"{here}.mapped[count]", f"{here}.tally:closure[0][0]"}
    assert own == expected
    assert {"<agent_0>._state._pos", "<agent_0>._state._vel"} <= set(paths.tensors)
    assert paths.floats == (f"{here}.weight",)
    assert paths.choices == (f"{here}.goal@",)
    assert paths.changed_by_steps == ()


def test_a_scenario_that_extends_one_of_vmas_has_the_state_of_that_one():
    class Own(simple_spread.Scenario):
        def reward(self, agent):
            return simple_spread.Scenario.reward(self, agent)  # by the module

    theirs = walk(simulation_of(load_scenario("simple_spread")).simulator)
    for scenario in (MpeSpread(), Own()):
        ours = walk(simulation_of(scenario).simulator)
        assert ours.unwatched == {}
        assert ours.slots.keys() >= theirs.slots.keys()


def test_python_values_that_steps_change_are_found():
    paths = state_of(simulation_of(Counter()))
    assert (paths.changed_by_steps, paths.choices) == (("env.scenario.n_steps",), ())


def test_state_that_cannot_be_set_is_found():
    assert state_of(simulation_of(Tuple())).unsettable == ("env.scenario.pair(0)",)


def test_a_tensor_under_two_names_is_found_and_stays_one():
    simulation = simulation_of(Alias())
    paths, scenario = state_of(simulation), simulation.simulator.scenario
    assert paths.aliases == {"env.scenario.written": "env.scenario.read"}
    paths.write(simulation.simulator, [value.clone() for value in paths.read(simulation.simulator)])
    assert scenario.written is scenario.read


def test_a_choice_of_an_entity_is_its_name():
    simulation = simulation_of(Hoarder())
    paths, scenario = state_of(simulation), simulation.simulator.scenario
    for mark in simulation.simulator.world.landmarks:
        scenario.goal = mark
        assert paths.chosen(simulation.simulator) == (mark.name,)
        other = simulation_of(Hoarder())
        paths.copy_choices(simulation.simulator, other.simulator)
        assert other.simulator.scenario.goal is other.simulator.world.landmarks[int(mark.name[-1])]


def test_a_state_that_is_written_back_is_read_again():
    simulation = simulation_of(Hoarder())
    paths, step = state_of(simulation), random_step(simulation)
    before = [value.clone() for value in paths.read(simulation.simulator)]
    simulation.reset()
    step()
    changed = paths.read(simulation.simulator)
    assert not all(torch.equal(a, b) for a, b in zip(before, changed, strict=True))
    paths.write(simulation.simulator, [value.clone() for value in before])
    after = paths.read(simulation.simulator)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_views_see_a_state_that_is_copied_into_a_simulator():
    simulation = simulation_of(Viewed())
    paths, scenario = state_of(simulation), simulation.simulator.scenario
    simulation.reset()
    observations(simulation, 2)
    before = [value.clone() for value in paths.read(simulation.simulator)]
    read = scenario.read
    observations(simulation, 1)
    paths.copy_into(simulation.simulator, before)
    assert scenario.read is read
    assert read.tolist() == [2.0] * 3  # 1 for each of two steps
