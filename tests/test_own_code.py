"""What a user's function refers to: the modules that it may import when it runs."""

import importlib
import sys

import pytest

from qmix_trl.envs.compiled.trace.own_code import loaded_modules

FUNCTIONS = """\
import importlib

def imports():
    import outer.beside

def imports_from():
    def inner():
        from outer import beside

def imports_relatively():
    from .. import beside

def imports_from_relatively():
    from ..beside import VALUE

def imports_by_text():
    return importlib.import_module("outer.beside")

def imports_by_a_relative_text():
    return importlib.import_module("..beside", __package__)

def names(beside):
    beside.outer(outer=1)
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Return the loaded module outer.inner.mine, beside the loaded module outer.beside."""
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "beside.py").write_text("VALUE = 1\n")
    (tmp_path / "outer" / "inner" / "mine.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("outer.beside")
    yield importlib.import_module("outer.inner.mine")
    for name in ("outer", "outer.beside", "outer.inner", "outer.inner.mine"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    "name",
    [
        "imports",
        "imports_from",
        "imports_relatively",
        "imports_from_relatively",
        "imports_by_text",
        "imports_by_a_relative_text",
    ],
)
def test_a_module_that_a_function_imports_is_found(name, functions):
    assert sys.modules["outer.beside"] in loaded_modules(getattr(functions, name))


def test_a_name_that_is_a_modules_by_chance_is_none(functions):
    assert loaded_modules(functions.names) == []
