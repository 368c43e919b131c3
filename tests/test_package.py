"""The package: its public names, each imported from its module when it is first used."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qmix_trl


def test_the_table_the_types_and_the_public_names_agree():
    tree = ast.parse(Path(qmix_trl.__file__).read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {name.name: node.module for node in typed.body for name in node.names}
    assert imported == qmix_trl._MODULES
    assert sorted(imported) == sorted(qmix_trl.__all__)


@pytest.mark.parametrize("name", qmix_trl.__all__)
def test_a_public_name_is_that_of_its_module(name):
    module = importlib.import_module(qmix_trl._MODULES[name])
    assert getattr(qmix_trl, name) is getattr(module, name)
    assert name in dir(qmix_trl)


def test_modules_are_attributes_without_an_import_of_their_own():
    code = "import qmix_trl; print(qmix_trl.loss.QMixLoss.__name__, qmix_trl.envs.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["QMixLoss", "qmix_trl.envs"], done.stderr


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'qmix_trl' has no attribute 'QMixr'"):
        qmix_trl.QMixr  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'QMixr'"):
        from qmix_trl import QMixr  # noqa: F401


def test_configurations_are_read_without_torch_or_vmas():
    code = (
        "import sys; from qmix_trl import ConfigError, load_config; "
        "print('vmas' in sys.modules, 'torch' in sys.modules, 'qmix_trl' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


def test_agents_mixers_and_games_are_imported_without_vmas():
    code = "import sys; from qmix_trl import QMixLoss, make_env; print('vmas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


# Types that TorchRL names in annotations and imports for type checkers alone.
OF_TORCHRL = {"_AcceptedKeys", "BaseCollector", "LLMCollector"}


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_no_warning_of_ours(tmp_path):
    words = [sys.executable, "-W", "always::UserWarning", "-m", "pdoc", "qmix_trl", "-o", tmp_path]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line for line in (done.stdout + done.stderr).splitlines() if "Warn" in line]
    unknown = [re.findall(r"name '(\w+)' is not defined", line) for line in told]
    assert all(names and set(names) <= OF_TORCHRL for names in unknown), told
    page = (tmp_path / "qmix_trl.html").read_text("utf-8")
    for name in qmix_trl.__all__:
        assert f'<section id="{name}">' in page
    for heading in ("arguments", "raises", "returns"):  # sections of our docstrings, not text
        assert f'<h6 id="{heading}">' in page
