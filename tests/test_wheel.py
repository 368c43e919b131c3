"""The wheel and the source distribution: complete, and at work in a folder of their own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
FOLDERS = ("qmix_trl", "recipes", "tests")
SHIPPED = (".py", ".h", ".yaml", ".ipynb", ".typed")
NAMES = {"qmix_trl": "qmix_trl", "recipes": "qmix_trl_recipes"}  # of the folders in the wheel
TINY = (
    "env.n_envs=2",
    "env.engine=eager",
    "collection.total_frames=200",
    "replay.batch_rows=2",
    "update.per_batch=1",
    "evaluation.episodes=2",
)

pytestmark = pytest.mark.slow


def checked(*words, **options):
    """Return the output of a command that succeeds."""
    words = list(map(str, words))
    done = subprocess.run(words, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_checkout():
    """Return the process's environment, in which Python does not find this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder of a source distribution, and of a wheel built from it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        unbuilt = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=unbuilt)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    checked(sys.executable, "-m", "build", "--no-isolation", tree)
    return tree / "dist"


@pytest.fixture(scope="module")
def program(built, tmp_path_factory):
    """Return qmix-trl of the wheel in a virtual environment; it finds torch in this one's packages.

    They stand behind its own, and links of editable installations in them are not followed.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q")
    checked(*pip, "--no-deps", "--no-index", wheel, cwd=folder, env=without_checkout())
    (packages,) = folder.glob("lib/python*/site-packages")  # only now: this one has qmix-trl, too
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "qmix-trl"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """Return a folder in which the wheel's commands run one after the other."""
    return tmp_path_factory.mktemp("empty")


def lines_of(program, folder, *words):
    """Return the lines that a command of the wheel prints, without this checkout."""
    environment = without_checkout()
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
    return checked(program, *words, cwd=folder, env=environment).splitlines()


def test_the_metadata_are_good(built):
    checked(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_has_every_file(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = set(opened.namelist())
    for folder, name in NAMES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SHIPPED and "__pycache__" not in path.parts:
                assert f"{name}/{path.relative_to(ROOT / folder).as_posix()}" in held
    assert {name.partition("/")[0] for name in held if ".dist-info" not in name} == {
        *NAMES.values()
    }


def test_the_source_distribution_has_the_tests(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    for path in (ROOT / "tests").glob("*.py"):
        assert f"tests/{path.name}" in held


def test_train_and_evaluate(program, empty):
    lines = lines_of(program, empty, "train", "balance_quick", *TINY)
    assert lines[0].startswith("runs/balance_quick-1: qmix on balance")
    assert lines[-1] == "next: qmix-trl evaluate runs/balance_quick-1"
    lines = lines_of(program, empty, *lines[-1].split()[2:])
    assert lines[0].startswith("balance: 2 episodes")
    assert lines[-1] == "next: qmix-trl render runs/balance_quick-1"


def test_the_doctor_and_a_copy(program, empty):
    *lines, last = lines_of(program, empty, "doctor")
    needed = {"python", "qmix-trl", "torch", "torchrl", "tensordict", "vmas", "pyyaml", "run"}
    assert needed <= {line.split()[1] for line in lines if line.startswith("ok ")}
    assert last == "next: qmix-trl train balance_quick"
    assert lines_of(program, empty, "copy", "mpe_spread_qmix", "mine") == [
        "copied: mine/mpe_spread_qmix.yaml mine/mpe_spread.py",
        "next: qmix-trl train mine/mpe_spread_qmix.yaml",
    ]
