"""What all tests share."""

import os

import pytest

WORKER = "PYTEST_XDIST_WORKER"  # set where tests run in several processes

if WORKER in os.environ:  # before torch is imported: a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _compiled_steps_of_the_tests(tmp_path_factory):
    """Keep compiled steps apart from the user's, and new in each run of the tests."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if WORKER in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QMIX_TRL_CACHE", str(shared / "steps"))
        yield
