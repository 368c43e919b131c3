"""How a step becomes a graph: its random numbers, its state, its choices and its trace."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compiled_tools import BOUNDS, Plain, occupied_by, simulation_of
from scipy import stats
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.utils import ScenarioUtils

from qmix_trl.envs.compiled.engines import pool
from qmix_trl.envs.compiled.trace import draws, pure, state
from qmix_trl.envs.compiled.trace import graph as trace
from qmix_trl.envs.compiled.trace import snapshot as snapshots

RARE = 1e-3  # a fixed seed whose sample is rarer than this under the hypothesis is no chance

# ------------------------------------------------------------------------------ random numbers


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [  # Random123's kat_vectors, threefry2x32 of 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_its_published_answers(key, counter, words):
    x, y = draws.threefry(torch.tensor(key), torch.tensor([counter[0]]), counter[1])
    assert (x.item(), y.item()) == words


KEY = torch.tensor([11, 7])
LAWS = {"uniform": (stats.uniform, 1 / 2, 1 / 12), "normal": (stats.norm, 0, 1)}


@pytest.mark.parametrize("kind", LAWS)
def test_draws_have_the_law_of_their_kind(kind):
    law, mean, variance = LAWS[kind]
    numbers = draws.draw(kind, KEY, 5000, 3, (2, 2)).double().numpy()  # [E, 2, 2]
    assert numbers.shape == (5000, 2, 2)
    assert stats.kstest(numbers.ravel(), law.cdf).pvalue > RARE
    n = numbers.size
    assert abs(numbers.mean() - mean) < 4 * math.sqrt(variance / n)
    # The variance of a sample's variance is (fourth central moment - variance^2) / n.
    spread = float(law.moment(4) - 1) if kind == "normal" else 1 / 80 - 1 / 144
    assert abs(numbers.var() - variance) < 4 * math.sqrt(spread / n)


@pytest.mark.parametrize("kind", LAWS)
def test_draws_of_neighbours_are_independent(kind):
    numbers = draws.draw(kind, KEY, 5000, 0, (4,))  # [E, 4]
    later = draws.draw(kind, KEY + torch.tensor([0, 1]), 5000, 0, (4,))
    other_seed = draws.draw(kind, KEY + torch.tensor([1, 0]), 5000, 0, (4,))
    for beside in (numbers.roll(1, 0), numbers.roll(1, 1), later, other_seed):
        r = np.corrcoef(numbers.flatten(), beside.flatten())[0, 1]
        assert abs(r) < 4 / math.sqrt(numbers.numel())


@pytest.mark.parametrize("kind", LAWS)
def test_a_number_does_not_depend_on_what_is_drawn_with_it(kind):
    together = draws.draw(kind, KEY, 6, 0, (5,))
    apart = [draws.draw(kind, KEY, 6, first, (n,)) for first, n in ((0, 2), (2, 3))]
    assert torch.equal(together, torch.cat(apart, 1))
    assert torch.equal(together[:4], draws.draw(kind, KEY, 4, 0, (5,)))


def test_uniform_numbers_have_24_bits_below_1():
    ends = draws.unit(torch.tensor([0, 255, 256, 0xFFFFFFFF]))
    # 0, 0, 2^-24 and 1 - 2^-24: all floats.
    assert ends.tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def quarters(kind, shape):
    """A source of draws: 1/4 everywhere, -1/4 for normal numbers."""
    return torch.full(shape, 0.25 if kind == "uniform" else -0.25)


@pytest.mark.parametrize(
    ("function", "shape", "value"),
    [
        (lambda: torch.rand(3, 2), (3, 2), 0.25),
        (lambda: torch.rand((3, 2)), (3, 2), 0.25),
        (lambda: torch.rand(size=(3, 2)), (3, 2), 0.25),
        (lambda: torch.rand(3), (3,), 0.25),
        (lambda: torch.rand_like(torch.ones(2, 3)), (2, 3), 0.25),
        (lambda: torch.randn(3, 2), (3, 2), -0.25),
        (lambda: torch.randn_like(torch.ones(4)), (4,), -0.25),
        (lambda: torch.ones(4).uniform_(), (4,), 0.25),
        (lambda: torch.ones(4).uniform_(2, 4), (4,), 2.5),  # 2 + 2/4
        (lambda: torch.ones(4).uniform_(to=4), (4,), 1.0),
        (lambda: torch.ones(4).normal_(), (4,), -0.25),
        (lambda: torch.ones(4).normal_(1, 2), (4,), 0.5),  # 1 - 2/4
        (lambda: torch.ones(4).normal_(std=2), (4,), -0.5),
        (lambda: torch.distributions.Uniform(2.0, 4.0).sample((3,)), (3,), 2.5),
    ],
)
def test_draw_mode_gives_the_sources_numbers(function, shape, value):
    with draws.DrawMode(quarters):
        drawn = function()
    assert torch.equal(drawn, torch.full(shape, value))


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.randint(3, (2,)),
        lambda: torch.randint_like(torch.ones(2), 3),
        lambda: torch.randperm(3),
        lambda: torch.bernoulli(torch.ones(2)),
        lambda: torch.multinomial(torch.ones(2), 1),
        lambda: torch.normal(torch.ones(2), torch.ones(2)),
        lambda: torch.ones(2).random_(3),
        lambda: torch.ones(2).bernoulli_(0.5),
        lambda: torch.ones(2).exponential_(),
        lambda: torch.ones(2).multinomial(1),
        lambda: torch.ones(2).bernoulli(),
        lambda: torch.ones(2).cauchy_(),
        lambda: torch.ones(2).log_normal_(),
        lambda: torch.ones(2).geometric_(0.5),
        lambda: torch.poisson(torch.ones(2)),
    ],
)
def test_draw_mode_refuses_other_draws(function):
    with draws.DrawMode(quarters), pytest.raises(NotImplementedError, match="draws by torch"):
        function()


TAKEN = ((0.0, 0.0), (0.5, 0.5), (-0.8, 0.9))


def vmas_spawn(occupied, distance):
    """Return positions [E, 1, 2] by VMAS's own loop."""
    world = SimpleNamespace(batch_dim=len(occupied), device="cpu")
    low, high = BOUNDS
    return ScenarioUtils.find_random_pos_for_entity(
        occupied, None, world, distance, (low[0], high[0]), (low[1], high[1])
    )


def test_spawned_positions_have_the_law_of_vmas():
    torch.manual_seed(0)
    occupied = occupied_by(*TAKEN, n_envs=3000)
    ours = draws.spawn(occupied, KEY, 0, 0.6, *BOUNDS)  # [E, 1, 2]
    theirs = vmas_spawn(occupied, 0.6)
    assert ours.shape == theirs.shape
    to_taken = [torch.cdist(occupied, x)[..., 0] for x in (ours, theirs)]  # [E, K]
    assert to_taken[0].min() >= 0.6
    pairs = [(ours[..., a], theirs[..., a]) for a in (0, 1)]
    pairs += list(zip(*(d.unbind(1) for d in to_taken), strict=True))
    for a, b in pairs:
        assert stats.ks_2samp(a.flatten(), b.flatten()).pvalue > RARE


def test_spawning_where_nothing_is_taken_is_uniform():
    position = draws.spawn(torch.zeros(4000, 0, 2), KEY, 3, 0.6, *BOUNDS)[:, 0]
    for axis, (low, high) in enumerate(zip(*BOUNDS, strict=True)):
        law = stats.uniform(low, high - low)
        assert stats.kstest(position[:, axis].numpy(), law.cdf).pvalue > RARE


def test_spawning_in_a_full_space_gives_the_last_proposal(monkeypatch):
    monkeypatch.setattr(draws, "SPAWN_TRIES", 3)
    position = draws.spawn(occupied_by((0.0, 0.0), n_envs=5), KEY, 2, 9.0, *BOUNDS)
    words = draws.threefry(KEY, torch.arange(5), 3 * draws.SPAWN_STREAM + 2)  # site 2, try 2
    x, y = (draws.unit(word) for word in words)
    expected = torch.stack([x * 2 - 1, y * 1.5 - 0.5], -1)  # the bounds' lengths are 2 and 1.5
    torch.testing.assert_close(position[:, 0], expected)


def test_spawns_of_one_step_differ():
    occupied = torch.zeros(5, 0, 2)
    first, second = (draws.spawn(occupied, KEY, site, 0.1, *BOUNDS) for site in (0, 1))
    assert not (first == second).any()


# ------------------------------------------------------------------------------ memory


class Hoarder(Plain):
    """State in all the places where Python can keep it."""

    def make_world(self, batch_dim, device, **kwargs):
        self.listed = [torch.zeros(batch_dim), torch.ones(batch_dim)]
        self.mapped = {"count": torch.zeros(batch_dim), "never": torch.ones(batch_dim)}
        held = [torch.zeros(batch_dim)]

        def tally():
            held[0] += 1

        self.tally, self.weight, self.size = tally, 1.0, 2.0
        world = super().make_world(batch_dim, device)
        self.goal = world.landmarks[0]
        return world

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.weight = random.random()
        self.goal = self.world.landmarks[random.randrange(2)]
        self.listed[0].zero_()

    def post_step(self):
        self.listed[0] += self.weight
        self.mapped["count"] = self.mapped["count"] + self.world.agents[0].state.pos[:, 0]
        self.tally()

    def observation(self, agent):
        return torch.cat([agent.state.pos, self.goal.state.pos, self.listed[0][:, None]], -1)


class Alias(Plain):
    """One tensor by two names, written by one of them and read by the other."""

    def make_world(self, batch_dim, device, **kwargs):
        self.written = self.read = torch.zeros(batch_dim)
        return super().make_world(batch_dim, device)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.written.zero_()

    def post_step(self):
        self.written += 1

    def observation(self, agent):
        return self.read[:, None].clone()


class Viewed(Alias):
    """A tensor that is written and a view of it that is read."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device)
        self.read = self.written.view(-1)
        return world


class Tuple(Plain):
    """State where no other tensor can be put."""

    def make_world(self, batch_dim, device, **kwargs):
        self.pair = (torch.zeros(batch_dim), 1)
        return super().make_world(batch_dim, device)

    def post_step(self):
        self.pair[0].add_(1)


class Counter(Plain):
    """Counts steps in Python."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.n_steps = 0

    def post_step(self):
        self.n_steps += 1


def state_of(simulation):
    """Return where its state stands."""
    with simulation.own_randomness():
        return state.find_state(simulation.simulator, trace.random_step(simulation))


def test_state_is_found_wherever_it_is_kept():
    paths = state_of(simulation_of(Hoarder()))
    here = "env.scenario"
    own = {path for path in paths.tensors if path.startswith(f"{here}.") and "_world" not in path}
    # The closure's only cell is the list; listed[1] and mapped[never] are never written.
    expected = {f"{here}.listed[0]", f"{here}.mapped[count]", f"{here}.tally.closure[0][0]"}
    assert own == expected
    assert {"<agent_0>._state._pos", "<agent_0>._state._vel"} <= set(paths.tensors)
    assert paths.floats == (f"{here}.weight",)
    assert paths.choices == (f"{here}.goal@",)
    assert paths.fleeting == ()


def test_values_that_steps_change_in_python_are_found():
    paths = state_of(simulation_of(Counter()))
    assert (paths.fleeting, paths.choices) == (("env.scenario.n_steps",), ())


def test_state_that_cannot_be_set_is_found():
    assert state_of(simulation_of(Tuple())).unsettable == ("env.scenario.pair(0)",)


def test_a_tensor_by_two_names_is_found_and_stays_one():
    simulation = simulation_of(Alias())
    paths, scenario = state_of(simulation), simulation.simulator.scenario
    assert paths.aliases == {"env.scenario.written": "env.scenario.read"}
    paths.write(simulation.simulator, [value.clone() for value in paths.read(simulation.simulator)])
    assert scenario.written is scenario.read


def test_what_is_chosen_names_the_entity():
    simulation = simulation_of(Hoarder())
    paths, scenario = state_of(simulation), simulation.simulator.scenario
    for mark in simulation.simulator.world.landmarks:
        scenario.goal = mark
        assert paths.chosen(simulation.simulator) == (mark.name,)
        other = simulation_of(Hoarder())
        paths.copy_choices(simulation.simulator, other.simulator)
        assert other.simulator.scenario.goal is other.simulator.world.landmarks[int(mark.name[-1])]


def test_reading_and_writing_the_state_is_a_round_trip():
    simulation = simulation_of(Hoarder())
    paths, step = state_of(simulation), trace.random_step(simulation)
    before = [value.clone() for value in paths.read(simulation.simulator)]
    simulation.reset()
    step()
    changed = paths.read(simulation.simulator)
    assert not all(torch.equal(a, b) for a, b in zip(before, changed, strict=True))
    paths.write(simulation.simulator, [value.clone() for value in before])
    after = paths.read(simulation.simulator)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_state_is_copied_so_that_views_see_it():
    simulation = simulation_of(Viewed())
    paths, scenario = state_of(simulation), simulation.simulator.scenario
    simulation.reset()
    seen_in(simulation, 2)
    before = [value.clone() for value in paths.read(simulation.simulator)]
    read = scenario.read
    seen_in(simulation, 1)
    paths.copy_into(simulation.simulator, before)
    assert scenario.read is read
    assert read.tolist() == [2.0] * 3  # 1 for each of two steps


def seen_in(simulation, steps):
    """Return what is seen in steps of equal actions."""
    action = torch.ones(simulation.n_envs, 1, dtype=torch.int64)
    return torch.stack([simulation.step(action).seen.observation for _ in range(steps)])


@pytest.mark.parametrize("scenario", [Hoarder, Counter, Alias, Viewed])
def test_a_snapshot_goes_on_as_before(scenario):
    simulation = simulation_of(scenario())
    for mark, x in zip(simulation.simulator.world.landmarks, (1.0, 2.0), strict=True):
        mark.set_pos(torch.full((1, 2), x), batch_index=None)
    seen_in(simulation, 2)
    kept = snapshots.snapshot(simulation.simulator)
    first = seen_in(simulation, 3)
    simulation.reset()
    inside = simulation.simulator.scenario
    if isinstance(inside, Hoarder):
        marks = simulation.simulator.world.landmarks
        inside.goal = marks[1 - int(kept["env.scenario.goal@"])]  # the other one
    seen_in(simulation, 1)
    snapshots.restore(simulation.simulator, kept)
    again = snapshots.snapshot(simulation.simulator)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[path], again[path]) for path in kept)
    assert torch.equal(seen_in(simulation, 3), first)


# ------------------------------------------------------------------------------ trace


class Goal(Plain):
    """Resets choose a landmark and a number in Python; only the landmark is seen."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        for i, mark in enumerate(self.world.landmarks):
            mark.set_pos(torch.full((1, 2), float(i)), batch_index=env_index)
        self.goal = self.world.landmarks[random.randrange(2)]
        self.number = random.randrange(3)

    def observation(self, agent):
        return agent.state.pos - self.goal.state.pos


@pytest.fixture
def _few_resets(monkeypatch):
    """Let 40 resets find choices: one of two stays unseen once in 2^39."""
    monkeypatch.setattr(trace, "CHOICE_RESETS", 40)


@pytest.mark.usefixtures("_few_resets")
def test_one_graph_is_traced_for_each_choice_that_matters():
    graphs = trace.variants(simulation_of(Goal(), trace.TRACE_ENVS))
    assert {graph.choices for graph in graphs} == {("mark_0",), ("mark_1",)}
    assert {graph.choice_paths for graph in graphs} == {("env.scenario.goal@",)}


@pytest.mark.usefixtures("_few_resets")
def test_one_graph_is_traced_where_no_choice_matters():
    class Blind(Goal):
        observation = Plain.observation

    (graph,) = trace.variants(simulation_of(Blind(), trace.TRACE_ENVS))
    assert (graph.choice_paths, graph.choices) == ((), ())


@pytest.mark.parametrize(
    ("kinds", "places"),
    [  # of the choices 000, 001, .. 111 of three values
        ((0, 0, 0, 0, 1, 1, 1, 1), (0,)),
        ((0, 1, 0, 1, 0, 1, 0, 1), (2,)),
        ((0, 1, 0, 1, 1, 0, 1, 0), (0, 2)),  # whether the first is the last
        ((0, 1, 1, 0, 1, 0, 0, 1), (0, 1, 2)),  # whether an odd number of them is 1
    ],
)
def test_the_fewest_choices_that_tell_kinds_apart_decide(kinds, places):
    choices = [(i >> 2, i >> 1 & 1, i & 1) for i in range(8)]
    assert trace.deciding(choices, kinds) == places


def test_a_trace_is_the_step_from_any_state_and_leaves_the_simulator_alone():
    simulation = simulation_of(Hoarder(), trace.TRACE_ENVS)
    paths = state_of(simulation)
    before = snapshots.snapshot(simulation.simulator)
    graph = trace.trace_step(simulation, paths)
    after = snapshots.snapshot(simulation.simulator)
    for path, value in before.items():
        assert torch.equal(value.float(), after[path].float()), path
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


def test_a_trace_holds_for_contacts_that_were_none_when_it_was_made():
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


class Step(Plain):
    """Does in its steps what a function of (environments, position) does."""

    doing = staticmethod(lambda n_envs, position: None)

    def observation(self, agent):
        self.doing(self.world.batch_dim, agent.state.pos)
        return agent.state.pos


def doing(function, scenario=Step):
    """Return a simulation of a scenario that does something in its steps."""
    case = type("Case", (scenario,), {"doing": staticmethod(function)})
    return simulation_of(case(), trace.TRACE_ENVS)


def assert_it_is_near(n_envs, position):
    """Look at a tensor only to be sure of it."""
    assert (position.abs() < 100).all()


def branch_on_a_constant(n_envs, position):
    """Look at a tensor that is the same in all states."""
    if torch.ones(2).sum() > 1:
        position + 1


@pytest.mark.parametrize("function", [assert_it_is_near, branch_on_a_constant])
def test_assertions_and_constants_do_not_stop_a_trace(function):
    assert len(trace.variants(doing(function))) == 1


class Fickle(Goal):
    """Sees a number of many that resets choose."""

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
        (lambda: simulation_of(Fickle()), "more than 2 choices in Python: env.scenario.goal@"),
        (lambda: doing(lambda n, x: torch.rand(2)), r"draws \(2,\), for all environments at once"),
        (lambda: doing(lambda n, x: torch.randperm(n)), "draws by torch.randperm"),
        (lambda: doing(lambda n, x: x.sum().item()), r"depends on tensors at test_compiled_trace"),
        (lambda: doing(lambda n, x: [x + 1 for _ in range(500)]), "times, more than 500"),
    ],
)
def test_a_step_that_is_no_pure_function_is_refused(monkeypatch, simulation, message):
    monkeypatch.setattr(trace, "MOST_CHOICES", 2)
    monkeypatch.setattr(trace, "MOST_CALLS", 500)
    with pytest.raises(pure.Untraceable, match=message):
        trace.variants(simulation())


def test_what_may_collide_does_so_at_any_distance_in_a_trace():
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


# ------------------------------------------------------------------------------ pool


class Drawing(Plain):
    """Draws in its resets what a function of (environments) draws."""

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
def test_draws_for_the_whole_batch_are_noticed(drawing, shared):
    scenario = type("Case", (Drawing,), {"drawing": staticmethod(drawing)})()
    assert pool.shares_draws(simulation_of(scenario, 5)) is shared


@pytest.mark.parametrize(("n", "shared"), [(1, True), (5, False)])
def test_a_draw_from_a_generator_of_its_own_is_noticed_by_what_it_moves(n, shared):
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
