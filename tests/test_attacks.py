"""Scenarios made to be wrong in silence: a kernel is right about them, or it is refused."""

import functools
import json
import operator
import random
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import vmas
from compiled_tools import Plain
from vmas.simulator.core import Agent, Landmark, World

from qmix_trl import ConfigError, make_env
from qmix_trl.keys import OBSERVATION, REWARD, TERMINATED, next_key
from qmix_trl.native import build

try:
    build.compiler()
except build.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)

LATE = 2500  # steps: behind the longest run of the gate, which looks for limits of at most 2,000
ENDLESS = 10**6


def env_of(scenario, n_envs=2, engine="kernel"):
    """Return an environment without a time limit and without the shadow check."""
    return make_env(
        "vmas",
        scenario=scenario,
        n_envs=n_envs,
        max_steps=ENDLESS,
        state="world",
        team_reward="mean",
        seed=0,
        engine=engine,
        verify=0.0,
    )


def served(scenario, n_envs=2):
    """Return an environment with the kernel, or with VMAS itself if the kernel is refused."""
    try:
        return env_of(scenario, n_envs)
    except ConfigError as error:
        told = str(error)
    assert "does not run on kernel" in told
    assert "\n" not in told
    return env_of(scenario, n_envs, "eager")


def rewards_of(env, n_steps):
    """Return the rewards [E, T] of steps that go on behind ends of episodes."""
    return env.rollout(n_steps, break_when_any_done=False)[next_key(REWARD)][..., 0]


def by_vmas(scenario, n_envs, n_steps):
    """Return the rewards [E, T] of VMAS, which resets an environment when it ends."""
    simulator = vmas.make_env(scenario, num_envs=n_envs, continuous_actions=False, seed=0)
    found = []
    for _ in range(n_steps):
        _, (reward,), ends, _ = simulator.step([torch.zeros(n_envs, 1)])
        found.append(reward.clone())
        for e in ends.nonzero()[:, 0].tolist():
            simulator.reset_at(e)
    return torch.stack(found, 1)


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


# -------------------------------------------------------------------- types of numbers


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


class Cubes(Counting):
    """A cube of a whole number is beyond 2**31 from step 1,291 on, and stays positive."""

    def value(self):
        return (self.steps.long() ** 3 < 0).float()


class Cast(Counting):
    """A float beyond 2**31 becomes a whole number."""

    def value(self):
        far = torch.where(self.steps > LATE, 3e9, self.steps)
        return (far.long() < 0).float()


class OfInfinity(Counting):
    """Infinity times 0 is NaN."""

    def value(self):
        return (torch.exp(self.steps) * 0.0).isnan().float()


class PlaceOfNaN(Counting):
    """The greatest number's place is that of NaN."""

    def value(self):
        late = torch.where(self.steps > LATE, torch.nan, 0.0)
        return torch.stack([torch.ones_like(late), late], -1).argmax(-1).float()


class NegativeZero(Counting):
    """-0.0 + 0.0 is 0.0, whose angle is 0; that of -0.0 is pi."""

    def value(self):
        x = torch.where(self.steps > LATE, -0.0, 1.0)
        return (torch.atan2(torch.zeros_like(x), x + 0.0) > 1).float()


class Underflow(Counting):
    """Without a sign, 1 - 3 is 254."""

    def value(self):
        n = torch.where(self.steps > LATE, 1, 5).to(torch.uint8)
        return (n - 3 > 100).float()


class Turning(Counting):
    """The sine of a large angle."""

    def value(self):
        angle = torch.where(self.steps > LATE, 3e5, self.steps * 0.01)
        return (torch.sin(angle) - 0.1070637 * (self.steps > LATE)).abs() < 1e-3

    def reward(self, agent):
        return torch.where(self.steps > LATE, self.value().float(), 1.0)


# ----------------------------------------------------------- Python values out of sight


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
    """A count that is an attribute of a library."""

    def begin(self, n_envs):
        self.held = torch.backends
        self.held.age = 0


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


# -------------------------------------------------------------------- writes and views


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


class Swapping(Counting):
    """The first environment gets a number of the second, by two masks."""

    def value(self):
        late, rows = self.steps > LATE, torch.arange(self.world.batch_dim)
        to, of = late & (rows == 0), late & (rows == 1)
        found = torch.zeros(self.world.batch_dim)
        found[to] = rows.float()[of]
        found[of] = 1.0
        return found


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


# ----------------------------------------------------------------- reads by Python


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


@dataclass
class Attack:
    """A scenario whose reward is 0 up to step ``change``, and 1 afterwards."""

    scenario: Plain
    change: int = LATE
    n_steps: int = LATE + 20


STEPPING = [
    Attack(Money(), 2200, 2300),
    Attack(Wrapping(), 1638, 1700),
    Attack(Saturating(), ENDLESS),
    Attack(Budget(), 500, 600),
    Attack(Cubes(), ENDLESS, 1400),
    Attack(Cast(), ENDLESS),
    Attack(OfInfinity(), 88, 120),
    Attack(Turning(), 0),
    Attack(PlaceOfNaN()),
    Attack(NegativeZero(), ENDLESS),
    Attack(Underflow()),
    Attack(Swapping()),
    Attack(InSeeds()),
    Attack(InSurrender()),
    Attack(InSemaphore()),
    Attack(OnTensor()),
    Attack(OnNumber()),
    Attack(OnArray()),
    Attack(OnWorldClass()),
    Attack(OnLibrary()),
    Attack(ByComputedName()),
    Attack(BySetter()),
    Attack(ByDescriptor()),
    Attack(ThroughView()),
    Attack(ThroughData()),
    Attack(OfData()),
    Attack(ThroughNumpy()),
    Attack(OneName()),
    Attack(ShapeOfMasked()),
    Attack(InAssertion()),
    Attack(Applying()),
    Attack(Undoing()),
    Attack(Equal()),
    Attack(Close()),
    Attack(Formatted()),
    # Forces take a step to move anything, and this step's forces come before the count.
    Attack(Ghosts(), LATE + 1),
]


@pytest.mark.parametrize("attack", STEPPING, ids=lambda a: type(a.scenario).__name__)
def test_a_change_behind_the_gate_comes_at_its_step(attack):
    found = rewards_of(served(attack.scenario), attack.n_steps)
    steps = torch.arange(1, attack.n_steps + 1)
    if isinstance(attack.scenario, (InSeeds, InSemaphore, OnTensor, ByComputedName, BySetter)):
        # Counts of Python begin when the scenario is made; an engine takes a step before.
        assert found[:, -1].tolist() == [1.0, 1.0]
        assert found[:, LATE // 2].tolist() == [0.0, 0.0]
        return
    assert torch.equal(found, (steps > attack.change).float().expand(2, -1))


# ------------------------------------------------------------------------------ chance


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


@pytest.mark.parametrize("scenario", [OwnGenerator(), SeededAgain(), Forked(), SeededGlobally()])
def test_numbers_of_a_seed_are_the_same_at_each_step(scenario):
    found = rewards_of(served(scenario, 3), 6)
    torch.testing.assert_close(found, found[:, :1].expand(-1, 6), rtol=0, atol=0)


class Into(Counting):
    """Draws into a tensor by ``out``."""

    def begin(self, n_envs):
        self.noise = torch.zeros(n_envs)

    def count(self):
        torch.rand(self.world.batch_dim, out=self.noise)

    def value(self):
        return self.noise.clone()


def test_draws_into_a_tensor_are_new_numbers():
    found = rewards_of(served(Into()), 100)
    assert len(found.unique()) > 150
    assert abs(found.mean() - 0.5) < 0.1


class Rare(Counting):
    """One step in 500 has a reward."""

    def value(self):
        return torch.where(torch.rand(self.world.batch_dim) < 0.002, 1.0, 0.0)


class Noisy(Counting):
    """VMAS adds noise to the action, which the reward shows."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device)
        world.agents[0]._u_noise = 1.0
        return world

    def reward(self, agent):
        return agent.action.u[:, 0].clone()


def test_rare_branches_come_as_often_as_they_should():
    env = env_of(Rare(), 20)  # on the kernel
    assert 18 <= rewards_of(env, 1000).sum() <= 68  # 40 on average, and 3.5 deviations


def test_noise_of_actions_has_its_variance():
    env = env_of(Noisy(), 20)  # on the kernel
    assert rewards_of(env, 200).var() == pytest.approx(1 + 2 / 3, rel=0.1)  # actions -1, 0, 1


class Booleans(Counting):
    """Sums of booleans, and remainders and quotients of negative numbers."""

    def value(self):
        a, b, n = self.steps > 2, self.steps % 2 == 0, -self.steps.long()
        logic = (a + b).float() + 2 * (a * b).float() + 4 * (a ^ b).float()
        return logic + 8 * torch.stack([a, b]).sum(0) + 16 * (n // 3) + 64 * (n % 3)


def test_booleans_and_negative_numbers_are_those_of_python():
    found = rewards_of(env_of(Booleans()), 40)  # on the kernel
    expected = [
        float((a or b) + 2 * (a and b) + 4 * (a ^ b) + 8 * (a + b) + 16 * (-t // 3) + 64 * (-t % 3))
        for t, a, b in ((t, t > 2, t % 2 == 0) for t in range(1, 41))
    ]
    assert found.tolist() == [expected] * 2


# ------------------------------------------------------------------------------ resets


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


class OwnGain(Ending):
    """Each environment has a gain of its own, which nothing writes."""

    def begin(self, n_envs):
        self.gain = torch.linspace(1, 2, n_envs)

    def value(self):
        return self.gain * self.steps


RESETS = [
    *(ByEnvironment, OnlyAtFirst, ByIndex, TouchingAll, OneClock, CountingViews, Replacing),
    *(PythonClock, NumberThenTensor, NoneThenTensor, OwnGain),
]


@pytest.mark.parametrize("scenario", RESETS)
def test_resets_of_one_environment_are_those_of_vmas(scenario):
    expected = by_vmas(scenario(), 3, 14)
    assert torch.equal(rewards_of(served(scenario(), 3), 14), expected)


@pytest.mark.parametrize("scenario", RESETS)
def test_the_eager_engine_resets_one_environment_as_vmas_does(scenario):
    expected = by_vmas(scenario(), 3, 14)
    assert torch.equal(rewards_of(env_of(scenario(), 3, "eager"), 14), expected)


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


@pytest.mark.parametrize("scenario", [AfterSuccess, KeptColumn])
def test_what_long_episodes_leave_behind_goes_on(scenario):
    expected = by_vmas(scenario(), 2, 190)
    assert expected[:, -1].tolist() == [3.0 if scenario is AfterSuccess else 30.0] * 2
    assert torch.equal(rewards_of(served(scenario()), 190), expected)


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


def test_a_level_changes_with_the_age_of_an_environment():
    found = rewards_of(served(Alternating()), 800)
    assert torch.equal(found[:, :480], torch.zeros(2, 480))
    assert torch.equal(found[:, 520:], torch.ones(2, 280))


class OddShapes(Counting):
    """A reset makes two tokens for each environment; one reset in 50 makes three."""

    def begin(self, n_envs):
        self.tokens = torch.ones(n_envs, 2)

    def begin_episode(self, rows):
        n_tokens = 3 if random.random() < 0.02 else 2
        self.tokens = torch.ones(self.world.batch_dim, n_tokens)

    def done(self):
        return self.steps >= 1

    def value(self):
        return self.tokens.sum(-1)


def test_a_shape_that_resets_choose_is_seen():
    found = rewards_of(served(OddShapes()), 1500)
    assert found.unique().tolist() == [2.0, 3.0]


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


def test_a_tensor_that_grows_is_right():
    found = rewards_of(served(Growing()), 9)
    assert found.tolist() == [[t * (t + 1) / 2 for t in range(1, 10)]] * 2


class Read(Counting):
    """A reset chooses mode 1 in one of 50 cases; steps read it by a function made before.

    Args:
        reader: returns a function of nothing that reads an object's mode.
    """

    def __init__(self, reader):
        super().__init__()
        self.reader = reader

    def begin(self, n_envs):
        self.mode = 0
        self.read = self.reader(self)

    def begin_episode(self, rows):
        self.mode = 1 if random.random() < 0.02 else 0

    def done(self):
        return self.steps >= 1

    def value(self):
        return self.same(self.read())


def by_attrgetter(owner):
    """Return a function that reads a mode by ``operator.attrgetter``."""
    return functools.partial(operator.attrgetter("mode"), owner)


def by_getattr(owner):
    """Return a function that reads a mode by ``getattr``."""
    return functools.partial(getattr, owner, "mode")


@pytest.mark.parametrize("reader", [by_attrgetter, by_getattr])
def test_a_rare_choice_that_no_code_names_is_seen(reader):
    found = rewards_of(served(Read(reader)), 1500)
    assert found.unique().tolist() == [0.0, 1.0]


class Ageing(Counting):
    """Each environment has an age of its own from the start, which no reset touches."""

    def begin(self, n_envs):
        self.age = torch.arange(n_envs) * 1.0

    def count(self):
        self.age = self.age + 0.5

    def value(self):
        return self.age.clone()


def test_each_of_many_environments_begins_with_its_own_number():
    found = rewards_of(served(Ageing(), 4100), 2)
    assert torch.equal(found[:, 1], torch.arange(4100) + 1.0)


# -------------------------------------------------------------- numbers of environments


class IfMany(Counting):
    """The reward is 1 in large batches."""

    def value(self):
        return self.same(self.world.batch_dim >= 64)


class IfOne(Counting):
    """The reward is 1 where there is one environment."""

    def value(self):
        return self.same(self.world.batch_dim == 1)


class BeginningInMany(Counting):
    """Episodes begin at level 1 in large batches."""

    def begin(self, n_envs):
        self.level = torch.zeros(n_envs)

    def begin_episode(self, rows):
        self.level[rows] = float(self.world.batch_dim > 100)

    def value(self):
        return self.level.clone()


@pytest.mark.parametrize(
    ("scenario", "n_envs", "expected"),
    [(IfMany(), 64, 1.0), (IfMany(), 8, 0.0), (IfOne(), 1, 1.0), (BeginningInMany(), 2, 0.0)],
)
def test_rules_for_a_number_of_environments_hold_for_that_number(scenario, n_envs, expected):
    assert rewards_of(served(scenario, n_envs), 4).unique().tolist() == [expected]


class NearInBatch(Plain):
    """A penalty where VMAS says that two agents may collide: they never come near each other."""

    def make_world(self, batch_dim, device, **kwargs):
        world = World(batch_dim, device)
        for i in range(2):
            world.add_agent(Agent(name=f"agent_{i}"))
        return world

    def reset_world_at(self, env_index=None):
        for i, agent in enumerate(self.world.agents):
            agent.set_pos(torch.full((1, 2), 10.0 * i), batch_index=env_index)

    def reward(self, agent):
        near = self.world.collides(*self.world.agents)
        return torch.full((self.world.batch_dim,), -1.0 if near else 0.0)


def test_agents_far_apart_have_no_penalty_for_being_near():
    assert rewards_of(served(NearInBatch(), 1), 5).unique().tolist() == [0.0]


class OfFile(Counting):
    """Reads a bonus from a file when it is made; it is paid after 100 steps."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def begin(self, n_envs):
        self.bonus = torch.tensor(json.loads(self.path.read_text())["bonus"])

    def value(self):
        return torch.where(self.steps > 100, self.bonus, 0.0)


def test_a_file_that_was_edited_is_read_again(tmp_path):
    path = tmp_path / "settings.json"
    for bonus in (1.0, 2.0):
        path.write_text(json.dumps({"bonus": bonus}))
        found = rewards_of(served(OfFile(path)), 102)
        assert found[:, -3:].tolist() == [[0.0, bonus, bonus]] * 2


class OfSeed(Counting):
    """Draws a bonus from a generator of its own when it is made; it is paid after 100 steps."""

    def __init__(self, seed):
        super().__init__()
        self.generator = np.random.default_rng(seed)

    def begin(self, n_envs):
        self.bonus = torch.tensor(float(self.generator.integers(1000)))

    def value(self):
        return torch.where(self.steps > 100, self.bonus, 0.0)


def test_each_seed_of_a_scenario_has_numbers_of_its_own():
    for seed in (0, 1):
        bonus = float(np.random.default_rng(seed).integers(1000))
        found = rewards_of(served(OfSeed(seed)), 102)
        assert found[:, -3:].tolist() == [[0.0, bonus, bonus]] * 2


class BesideLarge(ThroughView):
    """Observes a small number, which a write through a view changes, and a place far away."""

    def begin(self, n_envs):
        super().begin(n_envs)
        self.place = torch.zeros(n_envs, 8)

    def begin_episode(self, rows):
        super().begin_episode(rows)
        self.place[rows] = 1e7

    def count(self):
        self.first += 1
        self.place += 1

    def value(self):
        return self.same(0)

    def observation(self, agent):
        return torch.cat([self.all.sum(-1, keepdim=True), self.place], -1)


def test_large_numbers_hide_no_wrong_one():
    batch = served(BesideLarge()).rollout(9, break_when_any_done=False)
    seen = batch[next_key(OBSERVATION)][:, :, 0, 0]
    assert seen.tolist() == [list(map(float, range(1, 10)))] * 2
    assert not batch[next_key(TERMINATED)].any()


class OfAgents(Counting):
    """A constant mask has as many places as there are environments; it matters late."""

    def begin(self, n_envs):
        self.table = torch.tensor([[1.0], [5.0]])
        self.mask = torch.tensor([True, False])

    def value(self):
        _, order = torch.sort(torch.stack([self.steps, -self.steps], -1), -1)  # has no kernel
        late = self.steps > LATE
        return torch.where(late, self.table[self.mask].sum(), 0.0) * order[:, 0]


class SortedMoney(Money):
    """Whole numbers beyond 2**31, beside an operation that no kernel has."""

    def value(self):
        _, order = torch.sort(torch.stack([self.steps, -self.steps], -1), -1)
        return super().value() * order[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "last"), [(OfAgents(), 1.0), (SortedMoney(), 1.0)])
def test_inductor_is_right_behind_the_gate(scenario, last):
    with pytest.raises(ConfigError, match="does not run on kernel"):
        env_of(scenario)
    try:
        env = env_of(scenario, engine="inductor")
    except ConfigError:
        return
    assert rewards_of(env, LATE + 5)[:, -1].tolist() == [last] * 2
