"""Settings of all tests."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORKER = "PYTEST_XDIST_WORKER"  # set where tests run in several processes

if WORKER in os.environ:  # before torch is imported: one core for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    """Build every library once, in a cache of this run's own that its workers share.

    The gate's two runs share one: ``QMIX_TRL_TEST_CACHE``.
    """
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if WORKER in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QMIX_TRL_CACHE", os.environ.get("QMIX_TRL_TEST_CACHE", str(shared / "steps")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _package_of_processes():
    """Let processes that tests start import this checkout, installed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_gates():
    """Check kernels by short runs; ``test_gate`` has the full ones."""
    from qmix_trl.envs.compiled import gate_runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_runs, "RESET_STEPS", 24)
        patch.setattr(gate_runs, "FREE_STEPS", 24)
        patch.setattr(gate_runs, "EDGE_ROUNDS", 1)
        yield


@pytest.fixture(autouse=True)
def _signals_of_the_tests():
    """Leave pytest its own ends: recipes that are run in its process set theirs."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """Mark the tests that are skipped where there is no CUDA device as ``cuda``."""
    for item in items:
        reasons = [mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")]
        if any("CUDA device" in reason for reason in reasons):
            item.add_marker("cuda")
