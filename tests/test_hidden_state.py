"""State where a scenario may hide it: found, or a refusal that names it; never a constant."""

import cProfile
import ctypes
import datetime
import enum
import functools
import io
import itertools
import os
import pstats
import random
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gym
import numpy as np
import pytest
import torch
from compiled_tools import Plain, simulation_of

from qmix_trl.envs.compiled.trace.audit import audited
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
from qmix_trl.envs.compiled.trace.guard import Watch
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.trace import traced
from qmix_trl.envs.compiled.trace.walk import walk

LIMIT = 40
DIE = gym.spaces.Discrete(6, seed=0)
AGES = {"module": 0, "array": np.zeros(1), "tensor": torch.zeros(1)}


class Hiding(Plain):
    """Counts its steps, and adds their number to the observation; subclasses say where."""

    def make_world(self, batch_dim, device, **kwargs):
        self.begin()
        return super().make_world(batch_dim, device)

    def begin(self):
        """Set the count to 0."""

    def post_step(self):
        self.count()

    def observation(self, agent):
        return agent.state.pos + (self.age() >= LIMIT)


class InArray(Hiding):
    def begin(self):
        self.steps = np.zeros(3)

    def count(self):
        self.steps += 1

    def age(self):
        return float(self.steps[0])


class InArrayOfAModule(Hiding):
    def count(self):
        AGES["array"] += 1

    def age(self):
        return float(AGES["array"][0])


class InModule(Hiding):
    def count(self):
        AGES["module"] += 1

    def age(self):
        return AGES["module"]


class InClass(Hiding):
    steps = 0

    def count(self):
        type(self).steps += 1

    def age(self):
        return self.steps


class InDefault(Hiding):
    def count(self, steps=[0]):  # noqa: B006 - it is kept on purpose
        steps[0] += 1

    def age(self):
        return self.count.__func__.__defaults__[0][0]


class InClosure(Hiding):
    def begin(self):
        steps = 0

        def count():
            nonlocal steps
            steps += 1

        self.count, self.age = count, lambda: steps


class Slotted:
    __slots__ = ("steps",)

    def __init__(self):
        self.steps = 0


class InSlots(Hiding):
    def begin(self):
        self.held = Slotted()

    def count(self):
        self.held.steps += 1

    def age(self):
        return self.held.steps


class InIterator(Hiding):
    def begin(self):
        self.steps, self.now = itertools.count(), 0

    def count(self):
        self.now = next(self.steps)

    def age(self):
        return self.now


class InIteratorAlone(InIterator):
    def count(self):
        next(self.steps)

    def age(self):
        return 0


class InGeneratorOfPython(InIteratorAlone):
    def begin(self):
        self.steps = (i for i in itertools.count())


class InCache(Hiding):
    def begin(self):
        @functools.cache
        def held():
            return [0]

        self.held = held

    def count(self):
        self.held()[0] += 1

    def age(self):
        return self.held()[0]


class InAttributeOfAFunction(Hiding):
    def begin(self):
        self.count.__func__.steps = 0

    def count(self):
        self.count.__func__.steps += 1

    def age(self):
        return self.count.__func__.steps


class Mode(enum.Enum):
    NEAR, FAR = 0, 1


class InEnum(Hiding):
    def begin(self):
        self.mode = Mode.NEAR

    def count(self):
        self.mode = Mode.FAR if self.mode is Mode.NEAR else Mode.NEAR

    def age(self):
        return self.mode.value


class Rule:
    def value(self):
        return 0


class OtherRule(Rule):
    def value(self):
        return LIMIT


class InTypeOfAnObject(Hiding):
    def begin(self):
        self.rules = [Rule(), OtherRule()]

    def count(self):
        one, other = self.rules
        one.__class__, other.__class__ = type(other), type(one)

    def age(self):
        return self.rules[0].value()


class InOrderOfADictionary(Hiding):
    def begin(self):
        self.order = {"a": 0, "b": LIMIT}

    def count(self):
        first = next(iter(self.order))
        self.order[first] = self.order.pop(first)

    def age(self):
        return next(iter(self.order.values()))


class InNumberOfC(Hiding):
    def begin(self):
        self.steps = ctypes.c_double(0)

    def count(self):
        self.steps.value += 1

    def age(self):
        return self.steps.value


class InValueOfAThread(Hiding):
    def begin(self):
        self.held = threading.local()
        self.held.steps = 0

    def count(self):
        self.held.steps += 1

    def age(self):
        return self.held.steps


class InTensorOfAModule(Hiding):
    def count(self):
        AGES["tensor"] += 1

    def age(self):
        return AGES["tensor"]


HIDING = {
    InArray: r"change Python values: env\.scenario\.steps",
    InArrayOfAModule: r"change Python values: module .*AGES\[array\]",
    InModule: r"change Python values: module .*AGES\[module\]",
    InClass: r"change Python values: .*\.steps",
    InDefault: r"change Python values: .*count:default\[0\]\[0\]",
    InClosure: r"change Python values: .*:closure\[",
    InSlots: r"change Python values: env\.scenario\.held\.steps",
    InIterator: r"change Python values: env\.scenario\.",
    InIteratorAlone: r"change Python values: env\.scenario\.steps",
    InGeneratorOfPython: r"state cannot be seen: env\.scenario\.steps",
    InCache: r"change Python values: .*held:cached",
    InAttributeOfAFunction: r"change Python values: .*count\.steps",
    InEnum: r"change Python values: env\.scenario\.mode@",
    InTypeOfAnObject: r"change Python values: env\.scenario\.rules\[",
    InOrderOfADictionary: r"change Python values: env\.scenario\.order!",
    InNumberOfC: r"change Python values: env\.scenario\.steps",
    InValueOfAThread: r"change Python values: env\.scenario\.held\.steps",
    InTensorOfAModule: r"where it cannot be set: module .*AGES\[tensor\]",
}


@pytest.mark.parametrize("scenario", HIDING)
def test_a_step_that_changes_a_hidden_value_is_refused_by_its_name(scenario):
    with pytest.raises(Untraceable, match=HIDING[scenario]):
        traced(simulation_of(scenario(), TRACE_ENVS))


def test_a_buffer_of_a_network_is_state():
    class InBuffer(Hiding):
        def make_world(self, batch_dim, device, **kwargs):
            self.network = torch.nn.BatchNorm1d(2)
            self.network.steps = torch.zeros(batch_dim, 1)
            return super().make_world(batch_dim, device)

        def reset_world_at(self, env_index=None):
            super().reset_world_at(env_index)
            self.network.steps[slice(None) if env_index is None else env_index] = 0

        def count(self):
            self.network.steps += 1

        def age(self):
            return self.network.steps

    found = traced(simulation_of(InBuffer(), TRACE_ENVS))
    assert "env.scenario.network.steps" in found.paths.tensors


# ------------------------------------------------------------------------ chance


class Chance(Plain):
    """Reads something that may be another one each time."""

    def observation(self, agent):
        return agent.state.pos + (self.drawn() < 0)


def own_python_generator():
    """Return a scenario with a generator of Python of its own."""

    class Own(Chance):
        generator = random.Random(0)

        def drawn(self):
            return self.generator.random()

    return Own()


def own_numpy_generator():
    """Return a scenario with a generator of NumPy of its own."""

    class Own(Chance):
        def make_world(self, batch_dim, device, **kwargs):
            self.generator = np.random.default_rng(0)
            return super().make_world(batch_dim, device)

        def drawn(self):
            return self.generator.random()

    return Own()


def number_in_a_file():
    """Return a scenario whose steps read an open file from its start."""

    class Own(Chance):
        def make_world(self, batch_dim, device, **kwargs):
            self.file = Path(__file__).open()  # noqa: SIM115 - it stays open
            return super().make_world(batch_dim, device)

        def drawn(self):
            self.file.seek(0)
            return len(self.file.read(3))

    return Own()


def drawing(function):
    """Return a scenario whose steps call a function."""
    return type("Drawing", (Chance,), {"drawn": staticmethod(function)})()


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (own_python_generator(), "change Python values|chance in Python"),
        (own_numpy_generator(), "change Python values"),
        (drawing(random.random), "chance in Python"),
        (drawing(lambda: np.random.default_rng().random()), "chance in Python"),
        (drawing(time.monotonic), "chance in Python"),
        (drawing(lambda: datetime.datetime.now().timestamp()), "chance in Python"),
        (drawing(lambda: float(os.environ["HOME"] == "")), "chance in Python"),
        (drawing(lambda: float(os.environ.get("HOME") == "")), "chance in Python"),
        (drawing(lambda: len(Path(__file__).read_text())), "chance in Python"),
        (drawing(lambda: len(np.loadtxt(io.StringIO("1 2")))), "chance in Python"),
        (number_in_a_file(), "chance in Python"),
        (drawing(lambda: DIE.sample()), "chance in Python"),
        (drawing(lambda: float(torch.bernoulli(torch.tensor(0.5)))), "draws by torch.bernoulli"),
        (drawing(lambda: torch.nn.functional.dropout(torch.ones(3)).sum()), "torch's generator"),
    ],
)
def test_a_step_that_depends_on_chance_is_refused(scenario, message):
    with pytest.raises(Untraceable, match=message):
        traced(simulation_of(scenario, TRACE_ENVS))


def test_a_profiler_goes_on_after_an_audit():
    def after_the_audit():
        return sum(range(10))

    with cProfile.Profile() as profile:
        with audited(frozenset()) as audit:
            random.random()
        after_the_audit()
    assert audit.chances
    names = {name for _, _, name in pstats.Stats(profile).stats}
    assert "after_the_audit" in names


def test_a_value_that_is_drawn_when_a_scenario_is_made_is_refused():
    class Made(Plain):
        def make_world(self, batch_dim, device, **kwargs):
            self.size = torch.rand(2)
            return super().make_world(batch_dim, device)

        def observation(self, agent):
            return agent.state.pos * self.size

    with pytest.raises(Untraceable, match="a second trace, of another seed"):
        traced(simulation_of(Made(), TRACE_ENVS))


# ------------------------------------------------------------------------ resets


class Remembering(Plain):
    """Counts its resets."""

    n_resets = 0

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.n_resets += 1


def test_resets_that_remember_are_refused():
    with pytest.raises(Untraceable, match=r"what went before: env\.scenario\.n_resets"):
        traced(simulation_of(Remembering(), TRACE_ENVS))


class Carrying(Plain):
    """Carries the last reward of an episode over to the next."""

    def make_world(self, batch_dim, device, **kwargs):
        self.last = self.carried = torch.zeros(batch_dim, device=device)
        return super().make_world(batch_dim, device)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.carried = self.last.clone()

    def reward(self, agent):
        self.last = agent.state.vel[:, 0] + self.carried
        return self.last


def test_a_tensor_that_resets_carry_over_is_refused():
    with pytest.raises(Untraceable, match=r"what went before: env\.scenario\.carried"):
        traced(simulation_of(Carrying(), TRACE_ENVS))


@dataclass(frozen=True)
class Settings:
    bonus: float = 1.0


class Seldom(Plain):
    """A reset may change a setting that steps read; here it has not yet."""

    def make_world(self, batch_dim, device, **kwargs):
        self.settings, self.unread, self.size = Settings(), 0, torch.ones(2)
        return super().make_world(batch_dim, device)

    def observation(self, agent):
        return agent.state.pos * asdict(self.settings)["bonus"] + self.size


def change_setting(scenario):
    """Change a setting that steps read by its text."""
    scenario.settings = replace(scenario.settings, bonus=2.0)


def change_tensor(scenario):
    """Write to a tensor that no step and no reset has written."""
    scenario.size[0] = 3


def add_attribute(scenario):
    """Change nothing that steps read."""
    scenario.unread_too = 5


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (change_setting, "env.scenario.settings.bonus"),
        (change_tensor, "env.scenario.size"),
        (lambda scenario: None, None),
    ],
)
def test_a_reset_that_changes_a_value_for_the_first_time_is_noticed(change, path):
    found = traced(simulation_of(Seldom(), TRACE_ENVS))
    simulation = simulation_of(Seldom(), 4)
    watch = Watch(found.guard, walk(simulation.simulator))
    simulation.reset()
    assert watch.broken_path(walk(simulation.simulator)) is None
    change(simulation.simulator.scenario)
    assert watch.broken_path(walk(simulation.simulator)) == path


def test_a_guard_names_values_at_the_first_reset_of_another_simulation():
    found = traced(simulation_of(Seldom(), TRACE_ENVS))
    simulation = simulation_of(Seldom(), 4)
    change_setting(simulation.simulator.scenario)
    contents = walk(simulation.simulator)
    assert Watch(found.guard, contents).broken_path(contents) == "env.scenario.settings.bonus"
