"""What all tests share."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled_steps_of_the_tests(tmp_path_factory):
    """Keep compiled steps apart from the user's, and new in each run of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QMIX_TRL_CACHE", str(tmp_path_factory.mktemp("steps")))
        yield
