"""The number of threads on the CPU: as configured, or the fastest of a few."""

import pytest
import torch
from recipe_tools import RECIPES, metrics, run
from support import threads as module


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only number is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def numbers_of(batches, clock, seconds):
    """Return the threads of each batch, where work by so many threads takes so many seconds."""
    found = []
    for i in module.by_fastest_threads(batches, [1, 2, 4]):
        clock[0] += seconds(i)[torch.get_num_threads()]
        found.append(torch.get_num_threads())
    return found


def test_each_number_is_tried_and_the_fastest_taken(clock):
    found = numbers_of(range(100), clock, lambda i: {1: 1.0, 2: 0.7, 4: 0.9})
    assert found[:9] == [1, 2, 4] * 3
    assert found[9:69] == [2] * module.N_BETWEEN
    assert found[69:78] == [1, 2, 4] * 3  # again


def test_a_slow_batch_as_by_an_evaluation_does_not_count(clock):
    found = numbers_of(range(40), clock, lambda i: {1: 1.0, 2: 90.0 if i == 4 else 0.7, 4: 0.9})
    assert found[9:] == [2] * 31


def test_another_number_is_taken_when_processors_are_no_longer_free(clock):
    found = numbers_of(range(130), clock, lambda i: {1: 1.0, 2: 0.7 if i < 20 else 3.0, 4: 4.0})
    assert found[9:20] == [2] * 11
    assert found[-1] == 1


def test_all_batches_are_made_each_by_the_threads_that_use_it():
    made = []

    def batches():
        for i in range(20):
            made.append(torch.get_num_threads())
            yield i

    used = [(i, torch.get_num_threads()) for i in module.by_threads(batches(), "auto", 1)]
    assert used == list(enumerate(made))


@pytest.mark.parametrize(
    ("n_cores", "most", "n_processes", "numbers"),
    [
        (1, 4, 1, [1]),
        (2, 4, 1, [1, 2]),
        (3, 4, 1, [1, 2]),
        (64, 4, 1, [1, 2, 4]),
        (64, 8, 1, [1, 2, 4, 8]),
        (8, 4, 4, [1, 2]),
        (2, 4, 8, [1]),
    ],
)
def test_processes_share_the_processors(n_cores, most, n_processes, numbers, monkeypatch):
    monkeypatch.setattr(module, "AVAILABLE", n_cores)
    assert module.numbers_to_try(most, n_processes) == numbers


@pytest.mark.parametrize(("threads", "number"), [("auto", 1), (2, 2), (None, 3)])
def test_a_run_begins_with_the_configured_number(threads, number):
    torch.set_num_threads(3)
    module.set_threads(threads)
    assert torch.get_num_threads() == number


@pytest.mark.parametrize(("name", "batch"), [("memory_qmix", 1344), ("two_step_qmix", 2000)])
def test_a_curve_is_the_same_by_any_number_of_threads(name, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AVAILABLE", 4)
    few = [f"collection.total_frames={7 * batch}", f"evaluation.every_frames={7 * batch}"]
    few += ["update.per_batch=4"]
    config = RECIPES / "configs" / f"{name}.yaml"
    curves = [
        metrics(run(tmp_path, *few, f"runtime.threads={threads}", config=config))
        for threads in ("1", "3", "auto")
    ]
    assert curves[0]["loss"][-1] > 0
    assert all(curve == curves[0] for curve in curves)
