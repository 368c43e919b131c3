"""Results that a process finds once for a task, and again where anything in memory has changed."""

from functools import wraps

import pytest
import torch
from vmas.simulator import core, physics
from vmas.simulator.core import World

from qmix_trl.envs.compiled.once import forget, once


@pytest.fixture
def find():
    """Return a function that counts its calls; nothing is known before and after."""
    forget()
    calls = []
    yield lambda: calls.append(None) or len(calls)
    forget()


def test_a_result_is_found_once_for_a_key_and_details(find):
    found = [once(key, details, find) for key in "ab" for details in (1, 2, 1)]
    assert found == [1, 2, 1, 3, 4, 3]


def test_without_a_key_it_is_found_each_time(find):
    assert [once(None, 1, find) for _ in range(2)] == [1, 2]


def test_an_exception_is_not_kept(find):
    with pytest.raises(ZeroDivisionError):
        once("a", 1, lambda: 1 / 0)
    assert once("a", 1, find) == 1


def another_step(monkeypatch):
    monkeypatch.setattr(World, "step", lambda self: None)


def wrapped_step(monkeypatch):
    step = World.step
    monkeypatch.setattr(World, "step", wraps(step)(lambda self: step(self)))


def another_default(monkeypatch):
    monkeypatch.setattr(World.__init__, "__defaults__", (0.5, *World.__init__.__defaults__[1:]))


def another_property(monkeypatch):
    monkeypatch.setattr(World, "entities", property(lambda self: []))


def another_function(monkeypatch):
    monkeypatch.setattr(physics, "_get_closest_point_line", lambda *args: None)


def another_number(monkeypatch):
    monkeypatch.setattr(core, "LINE_MIN_DIST", 1.0)


def other_numbers_by_default(monkeypatch):
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)


@pytest.mark.parametrize(
    "change",
    [
        another_step,
        wrapped_step,
        another_default,
        another_property,
        another_function,
        another_number,
        other_numbers_by_default,
    ],
)
def test_it_is_found_again_if_vmas_in_memory_is_another(find, change, monkeypatch):
    assert once("a", 1, find) == 1
    with monkeypatch.context() as patch:
        change(patch)
        assert once("a", 1, find) == 2
    assert once("a", 1, find) == 1
