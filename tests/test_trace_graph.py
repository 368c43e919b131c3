"""The graphs of a step: their choices, what they compute, and the steps that have none."""

import random

import pytest
import torch
from compiled_tools import Plain, simulation_of
from trace_tools import Counter, Hoarder, Tuple, state_of
from vmas.simulator.core import Agent, Landmark, Sphere, World

from qmix_trl.envs.compiled.trace import graph as trace
from qmix_trl.envs.compiled.trace import pure
from qmix_trl.envs.compiled.trace.snapshot import TEXTS, snapshot


class Goal(Plain):
    """Chooses a landmark and a number in Python at resets; observes only the landmark."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        for i, mark in enumerate(self.world.landmarks):
            mark.set_pos(torch.full((1, 2), float(i)), batch_index=env_index)
        self.goal = self.world.landmarks[random.randrange(2)]
        self.number = random.randrange(2)

    def observation(self, agent):
        return agent.state.pos - self.goal.state.pos


@pytest.fixture
def _few_resets(monkeypatch):
    """Find choices in 40 resets: they miss one of two choices with probability 2^-39."""
    monkeypatch.setattr(trace, "CHOICE_RESETS", 40)


@pytest.mark.usefixtures("_few_resets")
def test_there_is_a_graph_for_each_choice_that_changes_the_step():
    graphs = trace.variants(simulation_of(Goal(), trace.TRACE_ENVS))
    assert {graph.choices for graph in graphs} == {("mark_0",), ("mark_1",)}
    assert {graph.choice_paths for graph in graphs} == {("env.scenario.goal@",)}


@pytest.mark.usefixtures("_few_resets")
def test_there_is_one_graph_if_no_choice_changes_the_step():
    class Blind(Goal):
        observation = Plain.observation

    (graph,) = trace.variants(simulation_of(Blind(), trace.TRACE_ENVS))
    assert (graph.choice_paths, graph.choices) == ((), ())


@pytest.mark.parametrize(
    ("kinds", "places"),
    [  # of the choices 000, 001, .. 111 of three values
        ((0, 0, 0, 0, 1, 1, 1, 1), (0,)),
        ((0, 1, 0, 1, 0, 1, 0, 1), (2,)),
        ((0, 1, 0, 1, 1, 0, 1, 0), (0, 2)),  # kind 1: the first differs from the last
        ((0, 1, 1, 0, 1, 0, 0, 1), (0, 1, 2)),  # kind 1: an odd number of ones
    ],
)
def test_the_smallest_set_of_choices_that_determines_the_graph(kinds, places):
    choices = [(i >> 2, i >> 1 & 1, i & 1) for i in range(8)]
    assert trace.smallest_deciding(choices, kinds) == places


def test_a_trace_equals_the_step_from_other_states_and_leaves_the_simulator_unchanged():
    simulation = simulation_of(Hoarder(), trace.TRACE_ENVS)
    paths = state_of(simulation)
    before, state = snapshot(simulation.simulator), paths.read(simulation.simulator)
    graph = trace.trace_step(simulation, paths)
    after, same = snapshot(simulation.simulator), paths.read(simulation.simulator)
    for path in before.keys() - {TEXTS}:  # floats of the state are tensors after a trace
        assert torch.equal(before[path].float(), after[path].float()), path
    assert all(torch.equal(a, b) for a, b in zip(state, same, strict=True))
    step = trace.random_step(simulation)
    for _ in range(5):
        step()
    state = [value.clone() for value in paths.read(simulation.simulator)]
    action = torch.arange(trace.TRACE_ENVS)[:, None] % simulation.n_actions
    ours = graph.graph(*state, action, torch.zeros(2, dtype=torch.int64))
    theirs = simulation.step(action)
    assert torch.equal(ours[0], theirs.seen.observation)
    then = paths.read(simulation.simulator)
    for path, a, b in zip(paths.all, ours[trace.N_RESULTS :], then, strict=True):
        assert torch.equal(a, b), path
    assert not torch.equal(state[0], then[0])


class Bumping(Plain):
    """An agent and an obstacle of radius 0.1 each, apart after resets."""

    def make_world(self, batch_dim, device, **kwargs):
        world = World(batch_dim, device)
        world.add_agent(Agent("agent_0", shape=Sphere(0.1)))
        world.add_landmark(Landmark("mark_0", shape=Sphere(0.1), collide=True))
        return world

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.world.landmarks[0].set_pos(torch.tensor([[5.0, 0.0]]), batch_index=env_index)


def test_a_trace_without_contacts_holds_for_states_with_contacts():
    simulation = simulation_of(Bumping(), trace.TRACE_ENVS)
    paths = state_of(simulation)
    graph = trace.trace_step(simulation, paths)
    simulation.reset()
    simulation.simulator.agents[0].set_pos(torch.tensor([[4.9, 0.0]]), batch_index=None)
    state = [value.clone() for value in paths.read(simulation.simulator)]
    action = torch.zeros(trace.TRACE_ENVS, 1, dtype=torch.int64)
    ours = graph.graph(*state, action, torch.zeros(2, dtype=torch.int64))
    theirs = simulation.step(action).seen.observation
    assert torch.equal(ours[0], theirs)
    assert (theirs[..., 0] < 4.9).all()  # it was pushed


class Calling(Plain):
    """Calls a function of (E, position) in its steps."""

    function = staticmethod(lambda n_envs, position: None)

    def observation(self, agent):
        self.function(self.world.batch_dim, agent.state.pos)
        return agent.state.pos


def calling(function, scenario=Calling):
    """Return a simulation whose steps call a function of (E, position)."""
    case = type("Case", (scenario,), {"function": staticmethod(function)})
    return simulation_of(case(), trace.TRACE_ENVS)


def assert_it_is_near(n_envs, position):
    """Assert something about a tensor that depends on the state."""
    assert (position.abs() < 100).all()


def branch_on_a_constant(n_envs, position):
    """Branch on a tensor that is the same in all states."""
    if torch.ones(2).sum() > 1:
        position + 1


@pytest.mark.parametrize("function", [assert_it_is_near, branch_on_a_constant])
def test_assertions_and_branches_on_constants_are_traced(function):
    assert len(trace.variants(calling(function))) == 1


class ManyChoices(Goal):
    """Observes a number that resets choose out of many."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.number = random.randrange(10**6)

    def observation(self, agent):
        return agent.state.pos * self.number


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        (lambda: simulation_of(Counter()), "steps change Python values: env.scenario.n_steps"),
        (lambda: simulation_of(Tuple()), r"where it cannot be set: env\.scenario\.pair\(0\)"),
        (lambda: simulation_of(ManyChoices()), "more than 2 choices in Python: env.scenario.goal@"),
        (
            lambda: calling(lambda n, x: torch.rand(2)),
            r"draws \(2,\), for all environments at once",
        ),
        (lambda: calling(lambda n, x: torch.randperm(n)), "draws by torch.randperm"),
        (lambda: calling(lambda n, x: x.sum().item()), r"depends on tensors at test_trace_graph"),
        (lambda: calling(lambda n, x: [x + 1 for _ in range(500)]), "times, more than 500"),
    ],
)
def test_a_step_that_is_no_pure_function_of_tensors_is_refused(monkeypatch, simulation, message):
    monkeypatch.setattr(trace, "MOST_CHOICES", 2)
    monkeypatch.setattr(trace, "MOST_CALLS", 500)
    with pytest.raises(pure.Untraceable, match=message):
        trace.variants(simulation())


def test_static_collisions_ignore_the_distance():
    world = World(2, torch.device("cpu"))
    for name, collide in (("a", True), ("b", True), ("ghost", False)):
        world.add_agent(Agent(name, shape=Sphere(0.1), collide=collide))
    a, b, ghost = world.agents
    b.set_pos(torch.tensor([[10.0, 0.0]]), batch_index=None)
    assert not world.collides(a, b)
    with pure.static_collisions(world):
        assert world.collides(a, b)
        assert not world.collides(a, ghost)
        assert not world.collides(a, a)
    assert not world.collides(a, b)
