"""Scenarios made to be wrong in silence: the compiler refuses each by its reason."""

import functools
import operator
import threading

import numpy as np
import pytest
import torch
from compiled_tools import Plain, simulation_of
from vmas.simulator.core import Agent, Landmark, World

from qmix_trl.envs.compiled.trace.alike import check_any_number
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.trace import traced

LATE = 2500  # steps: behind the longest run of the gate, which looks for limits of at most 2,000


class Counting(Plain):
    """Counts the steps of each environment's episode; subclasses make the reward of it."""

    def make_world(self, batch_dim, device, **kwargs):
        self.steps = torch.zeros(batch_dim, device=device)
        self.begin(batch_dim)
        world = World(batch_dim, device)
        world.add_agent(Agent(name="agent_0", collide=False))
        return world

    def begin(self, n_envs):
        """Make the attributes."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        rows = slice(None) if env_index is None else env_index
        self.steps[rows] = 0
        self.begin_episode(rows)

    def begin_episode(self, rows):
        """Reset the attributes of one environment, or of all."""

    def post_step(self):
        self.steps += 1
        self.count()

    def count(self):
        """Change the attributes after a step."""

    def reward(self, agent):
        return self.value()

    def same(self, number):
        """Return a number for each environment."""
        return torch.full((self.world.batch_dim,), float(number))


class Ending(Counting):
    """Environments end at different times: the first after 3 steps, the second after 5."""

    def done(self):
        return self.steps >= 3 + 2 * torch.arange(self.world.batch_dim)


class Money(Counting):
    """Whole numbers beyond 2**31."""

    dtype, first, gain = torch.int64, 0, 1_000_000

    def begin(self, n_envs):
        self.held = torch.zeros(n_envs, dtype=self.dtype)

    def begin_episode(self, rows):
        self.held[rows] = self.first

    def count(self):
        self.held += self.gain

    def value(self):
        return (self.held.float() > 2.2e9).float()


class Wrapping(Money):
    """16 bits wrap from 32,767 to -32,768."""

    dtype, gain = torch.int16, 20

    def value(self):
        return (self.held < 0).float()


class Saturating(Money):
    """In half precision 2,048 + 1 is 2,048."""

    dtype, gain = torch.float16, 1

    def value(self):
        return (self.held > 2048).float()


class Budget(Money):
    """In double precision 1e8 - 1 is less than 1e8; in single precision it is 1e8."""

    dtype, first, gain = torch.float64, 1e8, -1

    def value(self):
        return (self.held < 1e8 - 500).float()


class InSeeds(Counting):
    """A count whose name contains "_seed", which VMAS has for other things."""

    def begin(self, n_envs):
        self.n_seeds = 0

    def count(self):
        self.n_seeds += 1

    def value(self):
        return self.same(self.n_seeds > LATE)


class InSurrender(InSeeds):
    """A count whose name contains "render"."""

    def begin(self, n_envs):
        self.surrendered = 0

    def count(self):
        self.surrendered += 1

    def value(self):
        return self.same(self.surrendered > LATE)


class InSemaphore(Counting):
    """A count in an object of a module whose objects are said to be harmless."""

    def begin(self, n_envs):
        self.turns = threading.Semaphore(0)

    def count(self):
        self.turns.release()

    def value(self):
        return self.same(self.turns._value > LATE)


@pytest.fixture(autouse=True)
def libraries_as_before():
    """Take the counts off classes and modules of libraries, which later tests would find."""
    yield
    for holder in (World, torch.backends):
        if "age" in vars(holder):
            del holder.age


class OnTensor(Counting):
    """A count that is an attribute of a tensor."""

    def begin(self, n_envs):
        self.held = torch.ones(3)
        self.held.age = 0

    def count(self):
        self.held.age += 1

    def value(self):
        return self.same(self.held.age > LATE)


class Rank(int):
    """A number with attributes."""


class OnNumber(OnTensor):
    """A count that is an attribute of a number."""

    def begin(self, n_envs):
        self.held = Rank(3)
        self.held.age = 0


class Map(np.ndarray):
    """An array with attributes."""


class OnArray(OnTensor):
    """A count that is an attribute of an array."""

    def begin(self, n_envs):
        self.held = np.zeros(3).view(Map)
        self.held.age = 0


class OnWorldClass(OnTensor):
    """A count that is an attribute of a class of VMAS."""

    def begin(self, n_envs):
        self.held = World
        self.held.age = 0


class OnLibrary(OnTensor):
    """A count that is an attribute of a module within a library."""

    def begin(self, n_envs):
        torch.backends.age = 0

    def count(self):
        torch.backends.age += 1

    def value(self):
        return self.same(torch.backends.age > LATE)


class Swapping(Counting):
    """The first environment gets a number of the second, by two masks."""

    def value(self):
        rows = torch.arange(self.world.batch_dim)
        to, of = (self.steps > LATE) & (rows == 0), (self.steps > LATE) & (rows == 1)
        found = torch.zeros(self.world.batch_dim)
        found[to] = 2 * rows.float()[of] + 1
        return found


class SwappingTwoReads(Counting):
    """Numbers of two masks are added."""

    def value(self):
        rows = torch.arange(self.world.batch_dim)
        to, of = (self.steps > LATE) & (rows == 0), (self.steps > LATE) & (rows == 1)
        found = torch.zeros(self.world.batch_dim)
        found[to] = self.steps[to] + self.steps[of]
        return found


class SwappingStacked(Counting):
    """Numbers of one mask go through a stack to the places of another."""

    def value(self):
        rows = torch.arange(self.world.batch_dim)
        to, of = (self.steps > LATE) & (rows == 0), (self.steps > LATE) & (rows == 1)
        found = torch.zeros(self.world.batch_dim)
        found[to] = torch.stack([rows.float()[of]] * 2).sum(0)
        return found


class SwappingInPlace(Counting):
    """A mask is another one when the numbers that it read are written."""

    def value(self):
        rows = torch.arange(self.world.batch_dim)
        to, of = (self.steps > LATE) & (rows == 0), (self.steps > LATE) & (rows == 1)
        found, mask = torch.zeros(self.world.batch_dim), of.clone()
        read = rows.float()[mask]
        mask.copy_(to)
        found[mask] = read
        return found


class SumOfMasked(Counting):
    """A sum over the environments of a mask."""

    def value(self):
        return self.same(0) + self.steps[self.steps > LATE].sum()


class ByComputedName(Counting):
    """A count that is read by a name that no code holds."""

    def begin(self, n_envs):
        self.count_of_steps = 0

    def count(self):
        self.count_of_steps += 1

    def value(self):
        name = "_".join(["count", "of", "steps"])
        return self.same(self.__getattribute__(name) > LATE)


class BySetter(Counting):
    """A count behind a property with a setter."""

    def begin(self, n_envs):
        self.hidden = 0

    @property
    def age(self):
        return self.hidden

    @age.setter
    def age(self, age):
        self.hidden = age

    def count(self):
        self.age += 1

    def value(self):
        return self.same(self.age > LATE)


class ById:
    """A descriptor that keeps its values by the owner's id."""

    def __init__(self):
        self.held = {}

    def __get__(self, owner, kind=None):
        return self.held.get(id(owner), 0)

    def __set__(self, owner, value):
        self.held[id(owner)] = value


class ByDescriptor(Counting):
    """A count that a descriptor keeps outside of the scenario."""

    age = ById()

    def begin(self, n_envs):
        self.age = 0

    def count(self):
        self.age += 1

    def value(self):
        return self.same(self.age > LATE)


class ThroughView(Counting):
    """A late write to a tensor through a view of it."""

    def begin(self, n_envs):
        self.all = torch.zeros(n_envs, 2)
        self.first = self.all[:, 0]

    def begin_episode(self, rows):
        self.all[rows] = 0

    def count(self):
        self.first += (self.steps > LATE).float()

    def value(self):
        return (self.all.sum(-1) > 0).float()


class ThroughData(Counting):
    """A late write by ``data``, which a tensor's version does not count."""

    def begin(self, n_envs):
        self.alarm = torch.zeros(n_envs)

    def count(self):
        self.alarm.data.copy_((self.steps > LATE).float())

    def value(self):
        return self.alarm.clone()


class OfData(ThroughData):
    """``data`` is replaced, and the tensor stays the same object."""

    def count(self):
        self.alarm.data = (self.steps > LATE).float()


class ThroughNumpy(ThroughData):
    """A write to a tensor's memory by NumPy."""

    def begin_episode(self, rows):
        self.alarm.numpy()[rows] = 0

    def count(self):
        self.alarm.numpy()[:] += 1

    def value(self):
        return (self.alarm > LATE).float()


class OneName(Counting):
    """Two landmarks have one name; the first moves once, and stays there."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device)
        for _ in range(2):
            world.add_landmark(Landmark(name="mark", collide=False))
        return world

    def begin_episode(self, rows):
        for mark in self.world.landmarks:
            mark.state.pos[rows] = 0

    def count(self):
        now = (self.steps == LATE + 1)[:, None]
        for mark in self.world.landmarks:
            mark.state.pos = torch.where(now, torch.ones(1, 2), mark.state.pos)

    def value(self):
        return self.world.landmarks[0].state.pos[:, 0].clone()


class ShapeOfMasked(Counting):
    """Python reads how many environments are in a mask: at the end none is."""

    def begin(self, n_envs):
        self.health = torch.zeros(n_envs)

    def begin_episode(self, rows):
        self.health[rows] = LATE + 0.5

    def count(self):
        self.health -= 1

    def value(self):
        alive = self.health > 0
        return self.same(len(self.health[alive]) == 0)


class InAssertion(Counting):
    """An assertion keeps what it reads."""

    def value(self):
        assert (late := bool((self.steps > LATE).all())) in (True, False)  # noqa: RUF018
        return self.same(late)


class Applying(Counting):
    """Python computes each number of a tensor."""

    def value(self):
        return self.steps.clone().apply_(lambda n: float(n > LATE))


class Undoing(Counting):
    """Python changes numbers of a tensor that come late."""

    def value(self):
        late = (self.steps > LATE).float()
        return late + late.clone().apply_(lambda n: -n) + late


class Equal(Counting):
    """Python asks whether two tensors are equal."""

    def value(self):
        return self.same(torch.equal(self.steps, self.steps.clamp(min=LATE + 1)))


class Close(Counting):
    """Python asks whether two tensors are close."""

    def value(self):
        return self.same(torch.allclose(self.steps, self.steps.clamp(min=LATE + 1), rtol=0))


class Formatted(Counting):
    """Python reads a number by its text."""

    def value(self):
        return self.same(float(f"{self.steps.max():.1f}") > LATE)


class Ghosts(Plain):
    """Two agents overlap, but collide only after ``LATE`` steps, as their filter reads a tensor."""

    def make_world(self, batch_dim, device, **kwargs):
        self.steps = torch.zeros(batch_dim, device=device)
        world = World(batch_dim, device)
        for i in range(2):
            agent = Agent(f"agent_{i}", collision_filter=self.is_solid, u_multiplier=0.0)
            world.add_agent(agent)
        return world

    def is_solid(self, entity):
        return bool((self.steps > LATE).all())

    def reset_world_at(self, env_index=None):
        self.steps[slice(None) if env_index is None else env_index] = 0
        for i, agent in enumerate(self.world.agents):
            agent.set_pos(torch.full((1, 2), 0.01 * i), batch_index=env_index)

    def post_step(self):
        self.steps += 1

    def reward(self, agent):
        return (agent.state.vel.abs().sum(-1) > 0).float()


class OwnGenerator(Counting):
    """Each step draws the same numbers, from a generator of its own."""

    def value(self):
        return torch.rand(self.world.batch_dim, generator=torch.Generator().manual_seed(7))


class SeededAgain(Counting):
    """Each step seeds the scenario's generator again, and draws in place."""

    def begin(self, n_envs):
        self.generator = torch.Generator()

    def value(self):
        self.generator.manual_seed(7)
        return torch.empty(self.world.batch_dim).uniform_(generator=self.generator)


class Forked(Counting):
    """Each step draws the same numbers from torch's generator, and sets that back."""

    def value(self):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return torch.rand(self.world.batch_dim)


class SeededGlobally(Counting):
    """Each step seeds torch's generator."""

    def value(self):
        torch.manual_seed(7)
        return torch.rand(self.world.batch_dim)


class Into(Counting):
    """Draws into a tensor by ``out``."""

    def begin(self, n_envs):
        self.noise = torch.zeros(n_envs)

    def count(self):
        torch.rand(self.world.batch_dim, out=self.noise)

    def value(self):
        return self.noise.clone()


class ByEnvironment(Ending):
    """Each environment has a level of its own, which a reset gives it again."""

    def begin(self, n_envs):
        self.level = torch.zeros(n_envs)

    def begin_episode(self, rows):
        self.level[rows] = (torch.arange(self.world.batch_dim) % 3).float()[rows]

    def value(self):
        return self.level.clone()


class OnlyAtFirst(ByEnvironment):
    """A reset of all environments begins at level 0, a reset of one at level 1."""

    def begin_episode(self, rows):
        self.level[rows] = 0.0 if isinstance(rows, slice) else 1.0


class ByIndex(ByEnvironment):
    """A reset of one environment takes its index, a reset of all 0."""

    def begin_episode(self, rows):
        self.level[rows] = 0.0 if isinstance(rows, slice) else float(rows)


class TouchingAll(Ending):
    """A reset of one environment restarts the timers of all."""

    def begin(self, n_envs):
        self.timer = torch.zeros(n_envs)

    def begin_episode(self, rows):
        self.timer[:] = 0

    def count(self):
        self.timer += 1

    def value(self):
        return self.timer.clone()


class OneClock(TouchingAll):
    """One clock for all environments, which each reset restarts."""

    def begin(self, n_envs):
        self.timer = torch.zeros(())

    def begin_episode(self, rows):
        self.timer.zero_()

    def value(self):
        return self.timer.expand(self.world.batch_dim).clone()


class CountingViews(TouchingAll):
    """An observation counts how often it was made, as one that keeps the last frames does."""

    def begin_episode(self, rows):
        self.timer[rows] = 0

    def count(self):
        pass

    def observation(self, agent):
        self.timer = self.timer + 1
        return self.timer[:, None].clone()


class Replacing(TouchingAll):
    """A reset of one environment makes a new tensor for all."""

    def begin_episode(self, rows):
        self.timer = torch.zeros(self.world.batch_dim)


class PythonClock(TouchingAll):
    """One clock for all environments, a number of Python."""

    def begin(self, n_envs):
        self.timer = 0.0

    def begin_episode(self, rows):
        self.timer = 0.0

    def value(self):
        return torch.zeros(self.world.batch_dim) + self.timer


class NumberThenTensor(PythonClock):
    """A sum is a number of Python at first, and a tensor from the first step on."""

    def count(self):
        self.timer = self.timer + torch.ones(self.world.batch_dim)


class NoneThenTensor(Ending):
    """There is no earlier number in an episode's first step."""

    def begin(self, n_envs):
        self.before = None

    def begin_episode(self, rows):
        self.before = None

    def value(self):
        gained = self.same(0) if self.before is None else self.steps - self.before
        self.before = self.steps.clone()
        return gained


class AfterSuccess(Counting):
    """The level rises at a reset if the episode reached step 50."""

    def begin(self, n_envs):
        self.level = torch.zeros(n_envs)

    def reset_world_at(self, env_index=None):
        rows = slice(None) if env_index is None else env_index
        self.level[rows] += (self.steps[rows] >= 50).float()
        super().reset_world_at(env_index)

    def done(self):
        return self.steps >= 60

    def value(self):
        return self.level.clone()


class KeptColumn(Counting):
    """A reset clears one column of a tensor; the other one counts late steps of all episodes."""

    def begin(self, n_envs):
        self.counts = torch.zeros(n_envs, 2)

    def begin_episode(self, rows):
        self.counts[rows, 0] = 0

    def count(self):
        self.counts[:, 0] += 1
        self.counts[:, 1] += (self.counts[:, 0] > 50).float()

    def done(self):
        return self.steps >= 60

    def value(self):
        return self.counts[:, 1].clone()


class Alternating(Counting):
    """The level changes after every 500 steps of an environment's life, at its next reset."""

    def begin(self, n_envs):
        self.level = torch.zeros(n_envs)
        self.life = torch.zeros(n_envs, dtype=torch.int64)

    def begin_episode(self, rows):
        self.level[rows] = ((self.life // 500) % 2).float()[rows]

    def count(self):
        self.life += 1

    def done(self):
        return self.steps >= 10

    def value(self):
        return self.level + 100 * (self.life > 10**6)


class Growing(Counting):
    """A tensor grows with each step."""

    def begin(self, n_envs):
        self.past = torch.zeros(n_envs, 0)

    def begin_episode(self, rows):
        if isinstance(rows, slice):
            self.past = torch.zeros(self.world.batch_dim, 0)
        else:
            self.past[rows] = 0

    def count(self):
        self.past = torch.cat([self.past, self.steps[:, None]], 1)

    def value(self):
        return self.past.sum(-1)


REFUSED = {
    Wrapping: r"of another type: env\.scenario\.held",
    Saturating: r"of another type: env\.scenario\.held",
    Budget: r"of another type: env\.scenario\.held",
    InSeeds: r"change Python values: env\.scenario\.n_seeds",
    InSurrender: r"env\.scenario\.surrendered",
    InSemaphore: r"env\.scenario\.turns\._value",
    OnTensor: r"env\.scenario\.held\.age",
    OnNumber: r"env\.scenario\.held\.age",
    OnArray: r"env\.scenario\.held\.age",
    OnWorldClass: r"World\.age",
    OnLibrary: r"module torch\.backends\.age",
    Swapping: r"numbers of one mask in the places of another",
    SwappingTwoReads: r"numbers of one mask in the places of another",
    SwappingStacked: r"several places of a mask together",
    SwappingInPlace: r"numbers of one mask in the places of another",
    SumOfMasked: r"several places of a mask together",
    ByComputedName: r"env\.scenario\.count_of_steps",
    BySetter: r"env\.scenario\.hidden",
    ByDescriptor: r"ByDescriptor\.age\.held",
    ThroughView: r"shares memory",
    ThroughData: r"the data of a tensor",
    OfData: r"the data of a tensor",
    ThroughNumpy: r"second trace",
    OneName: r"two entities have one name: mark",
    ShapeOfMasked: r"how many entries a mask has",
    InAssertion: r"Python code depends on tensors",
    Applying: r"Python code depends on tensors",
    Undoing: r"Python code depends on tensors",
    Equal: r"trying to get value",
    Close: r"trying to get value",
    Formatted: r"trying to get value",
    Ghosts: r"collision filter reads tensors",
    OwnGenerator: r"of a generator",
    SeededAgain: r"of a generator",
    Forked: r"chance in Python",
    SeededGlobally: r"chance in Python",
    Into: r"of a generator",
    ByEnvironment: r"tell environments apart",
    OnlyAtFirst: r"one differs from a reset of all",
    ByIndex: r"one differs from a reset of all",
    TouchingAll: r"changes others",
    OneClock: r"a number of all environments",
    CountingViews: r"changes others",
    Replacing: r"changes others",
    NumberThenTensor: r"env\.scenario\.timer",
    NoneThenTensor: r"env\.scenario\.before",
    AfterSuccess: r"what went before",
    KeptColumn: r"what went before",
    Alternating: r"what went before",
    Growing: r"env\.scenario\.past",
}


@pytest.mark.parametrize("scenario", REFUSED, ids=lambda scenario: scenario.__name__)
def test_a_step_or_reset_that_no_kernel_can_repeat_is_refused(scenario):
    with pytest.raises(Untraceable, match=REFUSED[scenario]):
        traced(simulation_of(scenario(), TRACE_ENVS))


class OneMaskTwice(Counting):
    """A mask that is computed twice is one mask, and numbers that it reads can be computed with."""

    limit = torch.tensor(5.0)

    def value(self):
        found = torch.zeros(self.world.batch_dim)
        found[self.steps > self.limit] = 3 * self.steps[self.steps > self.limit] + 1
        return found


class LongMaskTwice(Counting):
    """A mask of a long computation, in which each number is used twice."""

    def mask(self):
        x = self.steps / 100
        for _ in range(40):
            x = x * x
        return x > 5

    def value(self):
        found = torch.zeros(self.world.batch_dim)
        found[self.mask()] = 3 * self.steps[self.mask()] + 1
        return found


@pytest.mark.parametrize("scenario", [OneMaskTwice(), LongMaskTwice()])
def test_one_mask_may_be_computed_twice(scenario):
    assert traced(simulation_of(scenario, TRACE_ENVS)).graphs


class OfPairs(Counting):
    """A mask over environments and two agents; its numbers are a list of points."""

    def value(self):
        points = self.steps[:, None, None] + torch.arange(4.0).view(2, 2)  # [E, 2, 2]
        near = points[..., 0] > 1  # [E, 2]
        found = torch.zeros_like(points)
        found[near] = points[near][:, :1] * torch.tensor([1.0, 10.0])
        return found.sum((1, 2))


def test_a_mask_over_environments_and_agents_reads_a_list_of_places():
    simulation = simulation_of(OfPairs(), TRACE_ENVS)
    (graph,) = traced(simulation).graphs
    steps = graph.paths.all.index("env.scenario.steps")
    state = [value.clone() for value in graph.state]
    state[steps] = torch.arange(TRACE_ENVS) * 1.0 - 3
    action, key = torch.zeros(TRACE_ENVS, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    reward = graph.graph(*state, action, key)[3][:, 0]
    after = state[steps] + 1
    # 11 times the first number of each point (x, x + 1) or (x + 2, x + 3), if it is above 1.
    expected = sum(11 * x * (x > 1) for x in (after, after + 2))
    torch.testing.assert_close(reward, expected)


class ReadByFunction(Counting):
    """Steps read a mode by a function that was made before.

    Args:
        reader: returns a function of nothing that reads an object's mode.
    """

    def __init__(self, reader):
        super().__init__()
        self.reader = reader

    def begin(self, n_envs):
        self.mode = 0
        self.read = self.reader(self)

    def value(self):
        return self.same(self.read())


READERS = {
    "attrgetter": lambda owner: functools.partial(operator.attrgetter("mode"), owner),
    "getattr": lambda owner: functools.partial(getattr, owner, "mode"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_value_that_no_code_names_is_guarded(reader):
    found = traced(simulation_of(ReadByFunction(reader), TRACE_ENVS))
    assert found.guard.matters("env.scenario.mode")


class BeginningInMany(Counting):
    """Episodes begin at level 1 in large batches."""

    def begin(self, n_envs):
        self.level = torch.zeros(n_envs)

    def begin_episode(self, rows):
        self.level[rows] = float(self.world.batch_dim > 100)

    def value(self):
        return self.level.clone()


def test_resets_that_depend_on_the_number_of_environments_are_refused():
    scenario = BeginningInMany()
    paths = traced(simulation_of(scenario, TRACE_ENVS)).paths
    few, many = simulation_of(scenario, 32), simulation_of(scenario, 128)
    with pytest.raises(Untraceable, match=r"number of environments: env\.scenario\.level"):
        check_any_number(few, many, paths, ())
    check_any_number(few, simulation_of(scenario, 64), paths, ())
