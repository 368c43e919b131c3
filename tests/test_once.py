"""Results that a process finds once for a task, and again where anything may have changed."""

from functools import partial

import pytest
import torch
from compiled_tools import Plain, task_of
from vmas.simulator import core, physics
from vmas.simulator.core import World

from qmix_trl.envs.compiled import once as module
from qmix_trl.envs.compiled.once import once

TASK = task_of(Plain())


@pytest.fixture
def find(monkeypatch):
    """Return a function that counts its calls; nothing is known before and after."""
    monkeypatch.setattr(module, "_results", {})
    calls = []
    return lambda: calls.append(None) or len(calls)


def test_a_result_is_found_once_for_a_key_and_details(find):
    found = [once(key, TASK, details, find) for key in "ab" for details in (1, 2, 1)]
    assert found == [1, 2, 1, 3, 4, 3]


def test_without_a_key_it_is_found_each_time(find):
    assert [once(None, TASK, 1, find) for _ in range(2)] == [1, 2]


def test_an_exception_is_not_kept(find):
    with pytest.raises(ZeroDivisionError):
        once("a", TASK, 1, lambda: 1 / 0)
    assert once("a", TASK, 1, find) == 1


def scaled(by):
    step = World.step
    return lambda self: step(self) * by


class Mine(World):
    """A class of the user's in VMAS's place."""


CHANGES = {
    "a function": [(World, "step", scaled(2)), (World, "step", scaled(3))],
    "a class": [(core, "World", Mine), (core, "World", type("Mine", (World,), {}))],
    "an object": [(World, "step", partial(World.step)), (World, "step", partial(World.step))],
    "a property": [(World, "entities", property(lambda self: []))],
    "a function of a module": [(physics, "_get_closest_point_line", lambda *_: None)],
    "defaults": [(World.__init__, "__defaults__", (0.5, *World.__init__.__defaults__[1:]))],
    "code": [(World.step, "__code__", (lambda self: None).__code__)],
    "a number": [(core, "LINE_MIN_DIST", 1.0), (core, "LINE_MIN_DIST", 2.0)],
    "torch's type": [(torch, "get_default_dtype", lambda: torch.float64)],
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_found_again_if_vmas_in_memory_is_another(find, change, monkeypatch):
    assert once("a", TASK, 1, find) == 1
    for n, (holder, name, value) in enumerate(CHANGES[change]):
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, value)
            assert once("a", TASK, 1, find) == 2 + n
    assert once("a", TASK, 1, find) == 1


class FromFile(Plain):
    """Reads from a file whether a reset draws one place for all environments."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def make_world(self, batch_dim, device, **kwargs):
        with open(self.path) as file:
            self.shared = file.read() == "shared"
        return super().make_world(batch_dim, device)


def test_it_is_found_again_if_the_scenario_makes_another_world_of_its_files(find, tmp_path):
    path, found = tmp_path / "resets.txt", []
    task = task_of(FromFile(path))
    for text in ("shared", "", "shared"):
        path.write_text(text)
        found.append(once("a", task, 1, find))
    assert found == [1, 2, 1]


class Counting(Plain):
    """Counts in its class the worlds that it makes, and shows the count in the world."""

    made = 0

    def make_world(self, batch_dim, device, **kwargs):
        Counting.made += 1
        return super().make_world(batch_dim, device)


def test_a_scenarios_class_is_left_as_it_was(find):
    assert [once("a", task_of(Counting()), 1, find) for _ in range(2)] == [1, 1]
    assert Counting.made == 0


class Alone(Plain):
    """Runs in one environment only."""

    def make_world(self, batch_dim, device, **kwargs):
        assert batch_dim == 1
        return super().make_world(batch_dim, device)


def test_of_a_scenario_that_makes_no_world_of_a_few_it_is_found_each_time(find):
    assert [once("a", task_of(Alone()), 1, find) for _ in range(2)] == [1, 2]
