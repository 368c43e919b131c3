"""The graphs of a step: their choices, what they compute, and the steps that have none."""

import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compiled_tools import Plain, simulation_of
from trace_tools import Counter, Hoarder, Tuple, state_of
from vmas.simulator.core import Agent, Landmark, Sphere, World

from qmix_trl.envs.compiled.trace import graph, pure, resets, trace
from qmix_trl.envs.compiled.trace.graph import N_RESULTS, TRACE_ENVS, trace_step
from qmix_trl.envs.compiled.trace.snapshot import TEXTS, snapshot
from qmix_trl.envs.compiled.trace.state import random_step


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
    monkeypatch.setattr(resets, "CHOICE_RESETS", 40)


def traced(scenario):
    """Return the trace of a scenario's step."""
    return trace.traced(simulation_of(scenario, TRACE_ENVS))


@pytest.mark.usefixtures("_few_resets")
def test_there_is_a_graph_for_each_choice_that_the_step_reads():
    found = traced(Goal())
    assert found.paths.choices == ("env.scenario.goal@",)
    assert {graph.choices for graph in found.graphs} == {(("mark_0",),), (("mark_1",),)}


@pytest.mark.usefixtures("_few_resets")
def test_a_choice_that_the_step_does_not_read_is_no_choice():
    class Blind(Goal):
        observation = Plain.observation

    found = traced(Blind())
    assert found.paths.choices == ()
    assert [graph.choices for graph in found.graphs] == [((),)]


@pytest.mark.usefixtures("_few_resets")
def test_one_graph_holds_for_all_choices_that_make_no_difference():
    class Idle(Goal):
        def observation(self, agent):
            return agent.state.pos + 0 * len(self.goal.name)

    found = traced(Idle())
    (graph,) = found.graphs
    assert sorted(graph.choices) == [("mark_0",), ("mark_1",)]


def test_a_trace_equals_the_step_from_other_states_and_leaves_the_simulator_unchanged():
    simulation = simulation_of(Hoarder(), TRACE_ENVS)
    paths = state_of(simulation)
    before, state = snapshot(simulation.simulator), paths.read(simulation.simulator)
    graph = trace_step(simulation, paths)
    after, same = snapshot(simulation.simulator), paths.read(simulation.simulator)
    for path in before.keys() - {TEXTS}:  # floats of the state are tensors after a trace
        assert torch.equal(before[path].float(), after[path].float()), path
    assert all(torch.equal(a, b) for a, b in zip(state, same, strict=True))
    step = random_step(simulation)
    for _ in range(5):
        step()
    state = [value.clone() for value in paths.read(simulation.simulator)]
    action = torch.arange(TRACE_ENVS)[:, None] % simulation.n_actions
    ours = graph.graph(*state, action, torch.zeros(2, dtype=torch.int64))
    theirs = simulation.step(action)
    assert torch.equal(ours[0], theirs.seen.observation)
    then = paths.read(simulation.simulator)
    for path, a, b in zip(paths.all, ours[N_RESULTS:], then, strict=True):
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
    simulation = simulation_of(Bumping(), TRACE_ENVS)
    paths = state_of(simulation)
    graph = trace_step(simulation, paths)
    simulation.reset()
    simulation.simulator.agents[0].set_pos(torch.tensor([[4.9, 0.0]]), batch_index=None)
    state = [value.clone() for value in paths.read(simulation.simulator)]
    action = torch.zeros(TRACE_ENVS, 1, dtype=torch.int64)
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
    return simulation_of(case(), TRACE_ENVS)


def assert_it_is_near(n_envs, position):
    """Assert something about a tensor that depends on the state."""
    assert (position.abs() < 100).all()


def branch_on_a_constant(n_envs, position):
    """Branch on a tensor that is the same in all states."""
    if torch.ones(2).sum() > 1:
        position + 1


@pytest.mark.parametrize("function", [assert_it_is_near, branch_on_a_constant])
def test_assertions_and_branches_on_constants_are_traced(function):
    assert len(trace.traced(calling(function)).graphs) == 1


def draws_by_numpy(n_envs, position):
    """Draw from NumPy's global generator."""
    np.random.rand()  # noqa: NPY002 - scenarios do


class ManyChoices(Goal):
    """Observes a number that resets choose out of many."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.number = random.randrange(10**6)

    def observation(self, agent):
        return agent.state.pos * self.number


@pytest.mark.usefixtures("_few_resets")
@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        (lambda: simulation_of(Counter()), "steps change Python values: env.scenario.n_steps"),
        (lambda: simulation_of(Tuple()), r"where it cannot be set: env\.scenario\.pair\(0\)"),
        (
            lambda: simulation_of(ManyChoices()),
            "more than 2 choices in Python: env.scenario.n",
        ),
        (
            lambda: calling(lambda n, x: torch.rand(2)),
            r"draws \(2,\), for all environments at once",
        ),
        (lambda: calling(lambda n, x: torch.randperm(n)), "draws by torch.randperm"),
        (lambda: calling(lambda n, x: x.sum().item()), r"depends on tensors at test_trace_graph"),
        (lambda: calling(lambda n, x: [x + 1 for _ in range(500)]), "times, more than 500"),
        (lambda: calling(lambda n, x: x.numpy()), r"depends on tensors at test_trace_graph"),
        (lambda: calling(lambda n, x: torch.tensor([x[0, 0], 1.0])), r"depends on tensors at test"),
        (lambda: calling(lambda n, x: len((x > 0).nonzero())), "shape of a result depends on num"),
        (lambda: calling(draws_by_numpy), "chance in Python: it draws from NumPy's"),
        (lambda: calling(lambda n, x: time.time()), r"chance in Python: test_trace_graph\.py"),
    ],
)
def test_a_step_that_is_no_pure_function_of_tensors_is_refused(monkeypatch, simulation, message):
    monkeypatch.setattr(trace, "MOST_CHOICES", 2)
    monkeypatch.setattr(graph, "MOST_CALLS", 500)
    with pytest.raises(pure.Untraceable, match=message):
        trace.traced(simulation())


def test_static_collisions_ignore_the_distance():
    world = World(2, torch.device("cpu"))
    for name, collide in (("a", True), ("b", True), ("ghost", False)):
        world.add_agent(Agent(name, shape=Sphere(0.1), collide=collide))
    a, b, ghost = world.agents
    b.set_pos(torch.tensor([[10.0, 0.0]]), batch_index=None)
    assert not world.collides(a, b)
    simulator = SimpleNamespace(world=world, scenario=Plain())
    with pure.static_collisions(simulator):
        assert world.collides(a, b)
        assert not world.collides(a, ghost)
        assert not world.collides(a, a)
    assert not world.collides(a, b)


class Looked(Plain):
    """Looks a number up in a table of each environment, at the agent's cell."""

    def make_world(self, batch_dim, device, **kwargs):
        self.table = torch.zeros(batch_dim, 4)
        return super().make_world(batch_dim, device)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.table[slice(None) if env_index is None else env_index] = torch.arange(4.0)

    def cell(self):
        return self.world.agents[0].state.pos[:, 0].clamp(0, 3).to(torch.long)

    def reward(self, agent):
        return self.table[torch.arange(self.world.batch_dim), self.cell()]


class Chosen(Looked):
    """Chooses the numbers of a table by a mask of its own."""

    def reward(self, agent):
        return self.table[0, self.table[0] > self.cell()[0]].sum().expand(self.world.batch_dim)


def test_numbers_at_computed_places_are_traced_and_choices_by_a_mask_are_not():
    simulation = simulation_of(Looked(), TRACE_ENVS)
    step = trace_step(simulation, state_of(simulation))
    assert any(n.target is torch.ops.aten.index.Tensor for n in step.graph.graph.nodes)
    simulation = simulation_of(Chosen(), TRACE_ENVS)
    with pytest.raises(pure.Untraceable):
        trace_step(simulation, state_of(simulation))
