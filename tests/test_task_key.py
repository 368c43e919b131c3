"""The keys of compiled steps: all that a step depends on, and nothing else."""

import ast
import importlib
import importlib.util
import io
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_tools import bare_step, task_of

from qmix_trl.envs.compiled import compile as compiling
from qmix_trl.envs.compiled import once, stored_step, task_key, task_sources
from qmix_trl.envs.compiled.backends import of_cpu
from qmix_trl.envs.compiled.gate import Mismatch
from qmix_trl.native import store
from qmix_trl.native.built_file import NotLoadable, hash_of

SCENARIO = """
from vmas.simulator.scenario import BaseScenario
class Base(BaseScenario):
    def make_world(self, batch_dim, device, **kwargs): return None
    def reset_world_at(self, env_index=None): return None
    def reward(self, agent): return {reward}
    def observation(self, agent): return None
class Own(Base):
    {body}
"""


def scenario_of(folder, body="def done(self): return None", reward="1"):
    """Return a scenario from a file with this body and reward."""
    path = folder / "own_scenario.py"
    path.write_text(SCENARIO.format(body=body, reward=reward))
    spec = importlib.util.spec_from_file_location("own_scenario", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Own()


def key_of(scenario, *more, **changes):
    """Return the key of a scenario's task."""
    return task_key.task_key(task_of(scenario, **changes), *more)


def test_the_key_is_the_same_for_the_same_task(tmp_path):
    changes = {"scenario_kwargs": {"a": 1, "b": [2]}}
    first = key_of(scenario_of(tmp_path), "g++", **changes)
    assert first == key_of(scenario_of(tmp_path), "g++", **changes)
    turned = {"scenario_kwargs": {"b": [2], "a": 1}}
    assert first == key_of(scenario_of(tmp_path), "g++", **turned)
    assert first.startswith("own-")


def test_the_key_changes_with_everything_the_step_depends_on(tmp_path, monkeypatch):
    def keys():
        yield key_of(scenario_of(tmp_path))
        yield key_of(scenario_of(tmp_path), scenario_kwargs={"a": 1})
        yield key_of(scenario_of(tmp_path), scenario_kwargs={"a": 2})
        yield key_of(scenario_of(tmp_path), scenario_kwargs={"b": 1})
        yield key_of(scenario_of(tmp_path), state="observations")
        yield key_of(scenario_of(tmp_path), team_reward="sum")
        yield key_of(scenario_of(tmp_path), group="agent")
        yield key_of(scenario_of(tmp_path), "another compiler")
        yield key_of(scenario_of(tmp_path, body="def done(self): return 1"))
        yield key_of(scenario_of(tmp_path, reward="2"))  # of its base
        scenario = scenario_of(tmp_path)
        scenario.speed = 2
        yield key_of(scenario)
        monkeypatch.setattr(task_key, "package_text", lambda: "another version")
        yield key_of(scenario_of(tmp_path))
        monkeypatch.setattr(task_key, "version", lambda package: "9.9")
        yield key_of(scenario_of(tmp_path))

    found = list(keys())
    assert len(set(found)) == len(found) == 13


@pytest.fixture
def copied_package(tmp_path, monkeypatch):
    """Return a copy of the package's sources, in which keys are made."""
    package = tmp_path / "qmix_trl"
    shutil.copytree(task_key.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(task_key, "PACKAGE", package)
    monkeypatch.setattr(task_key, "COMPILER", package / "envs" / "compiled")
    return package


def changes_the_key(path):
    """Return whether one more line in a file changes the text that keys are made of."""
    before, text = task_key.package_text(), path.read_text()
    path.write_text(text + "\n")
    changed = task_key.package_text() != before
    path.write_text(text)
    return changed


def test_the_key_changes_with_every_file_that_builds_or_checks_a_step(copied_package):
    compiler = copied_package / "envs" / "compiled"
    sources = [path for path in compiler.rglob("*.*") if path.suffix in (".py", ".h")]
    assert len(sources) > 30
    sources += [copied_package / "native" / name for name in ("build.py", "store.py", "simd.h")]
    sources += [copied_package / "native" / "structures.py", copied_package / "errors.py"]
    sources += [copied_package / "envs" / f"vmas_{name}.py" for name in ("simulation", "scenarios")]
    assert [path for path in sources if not changes_the_key(path)] == []


def test_a_new_file_of_the_compiler_changes_the_key(copied_package):
    before = task_key.package_text()
    folder = copied_package / "envs" / "compiled" / "codegen" / "more"
    folder.mkdir()
    (folder / "new.h").write_text("// new")
    assert task_key.package_text() != before


def test_the_key_does_not_change_with_files_that_no_step_is_built_from(copied_package):
    others = [
        *(copied_package / "native" / "networks").iterdir(),
        *(copied_package / "agents").iterdir(),
        *(copied_package / "fused").iterdir(),
        copied_package / "envs" / "vmas.py",
        copied_package / "loss.py",
    ]
    assert len(others) > 15
    assert [path for path in others if changes_the_key(path)] == []


def files_used_by(path):
    """Return the files of the package that a source imports, and the headers that it reads."""
    root, used = task_key.PACKAGE.parent, []
    package = ".".join(path.relative_to(root).parent.parts)

    def module(name):
        place = root.joinpath(*name.split("."))
        found = place.with_suffix(".py") if place.with_suffix(".py").exists() else place
        return found / "__init__.py" if found.is_dir() else found

    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "header":
            folder, name = node.args
            folder = package if isinstance(folder, ast.Name | ast.Attribute) else folder.value
            used.append(root.joinpath(*folder.split("."), name.value))
        used += [module(name) for name in names if name.split(".")[0] == "qmix_trl"]
    return [path for path in used if path.exists()]


def test_the_key_covers_all_that_the_compiler_imports():
    waiting, seen = [task_key.COMPILER / "compile.py"], set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += files_used_by(path) if path.suffix == ".py" else []
    packages = {path for path in seen if path.name == "__init__.py"}
    assert all(len(ast.parse(path.read_text()).body) == 1 for path in packages), "only a docstring"
    assert seen - packages - set(task_key.package_files()) == set()
    assert {"simd.h", "draws.h", "rollout.h", "large_pages.py"} <= {path.name for path in seen}


def key_in_two_files(folder, body, reward):
    """Return the key of a scenario whose class and base class are in two files."""
    folder.mkdir()
    base = type(scenario_of(folder, reward=reward)).__mro__[1]
    path = folder / "own.py"
    path.write_text(f"class Own(Base):\n    {body}\n")
    spec = importlib.util.spec_from_file_location("own", path)
    module = importlib.util.module_from_spec(spec)
    module.Base = base
    spec.loader.exec_module(module)
    return key_of(module.Own())


METHOD, OTHER_METHOD = "def done(self): return 1", "def done(self): return 2"
PROPERTY, OTHER_PROPERTY = (f"done = property(lambda self: {i})" for i in (1, 2))


@pytest.mark.parametrize(
    ("first", "second"),
    [  # its body, and its base's reward
        ((METHOD, 1), (METHOD, 2)),
        ((METHOD, 1), (OTHER_METHOD, 1)),
        ((PROPERTY, 1), (OTHER_PROPERTY, 1)),
    ],
)
def test_the_key_changes_with_each_file_of_a_scenario(tmp_path, first, second):
    keys = [key_in_two_files(tmp_path / f"{i}", *x) for i, x in enumerate((first, first, second))]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_the_key_has_all_digits_of_tensors(tmp_path):
    near = [torch.full((5000,), 0.12345), torch.full((5000,), 0.12345)]
    near[1][2500] += 1e-6  # a tensor's text shows neither value
    for as_is in (lambda x: x, lambda x: [x.numpy()], lambda x: {"a": (x,)}):
        keys = [key_of(scenario_of(tmp_path), scenario_kwargs={"a": as_is(x)}) for x in near]
        assert keys[0] != keys[1]
        assert keys[0] == key_of(scenario_of(tmp_path), scenario_kwargs={"a": as_is(near[0])})


def test_the_key_changes_with_a_decorated_function(tmp_path):
    keys = []
    for reward in ("1", "2"):
        own = type(scenario_of(tmp_path, body="pass", reward=reward)).__mro__[1]
        own.reward = torch.no_grad()(own.reward)  # a function of another file
        keys.append(key_of(own()))
    assert keys[0] != keys[1]


# ------------------------------------------------------------------- the user's modules

PARTS = {
    "mine.py": """
import pack
from vmas.simulator.scenario import BaseScenario
from helper import NEAR
class Mine(BaseScenario):
    def make_world(self, batch_dim, device, **kwargs): return None
    def reset_world_at(self, env_index=None): return None
    def reward(self, agent):
        import late
        return late.BONUS + NEAR + pack.VALUE
    def observation(self, agent): return None
""",
    "helper.py": "import deeper\nNEAR = 1",
    "deeper.py": "VALUE = 1",
    "late.py": "BONUS = 1",
    "pack/__init__.py": "from .part import VALUE",
    "pack/part.py": "from . import other\nfrom .sub.near import N\nVALUE = 1",
    "pack/other.py": "VALUE = 1",
    "pack/sub/__init__.py": "",
    "pack/sub/near.py": "from ..far import F\nN = 1",
    "pack/far.py": "F = 1\ndef f():\n    from . import lazy",
    "pack/lazy.py": "from .sub.later import L",
    "pack/sub/later.py": "from ..last import X",
    "pack/last.py": "X = 1",
    "unused.py": "VALUE = 1",
}
KEYS_IN_ANOTHER_PROCESS = """
import functools, mine
from vmas.simulator.scenario import BaseScenario
from compiled_tools import task_of
from qmix_trl.envs.compiled.task_key import task_key
@functools.lru_cache
def doubled(x): return 2 * x
class Typed(BaseScenario):
    names = {"agent", "wall", "ball", "goal"}
    def make_world(self, batch_dim, device, **kwargs): return None
    def reset_world_at(self, env_index=None): return None
    def reward(self, agent): return doubled(agent.name in {"one", "two", "three", "four"})
    def observation(self, agent): return None
typed = Typed()
typed.kinds, typed.call = frozenset({int, str, float, bool}), lambda x: x in {"a", "b", "c"}
print(task_key(task_of(mine.Mine())), task_key(task_of(typed)))
print(doubled(3), task_key(task_of(typed)))
"""


def write_parts(folder, **changes):
    """Write the modules of a scenario; ``changes`` replace texts of files."""
    for name, text in (PARTS | changes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def keys_in_another_process(folder, **environment):
    """Return what a process prints that makes keys of the scenario of a folder and of one that
    has no file.
    """
    search = os.pathsep.join([str(folder), str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KEYS_IN_ANOTHER_PROCESS],
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_key_is_the_same_in_another_folder_and_another_process(tmp_path):
    printed = []
    for name, environment in (
        ("a", {"PYTHONHASHSEED": "1"}),
        ("b", {"PYTHONHASHSEED": "2", "LC_ALL": "POSIX", "PYTHONUTF8": "0"}),
    ):
        write_parts(tmp_path / name, **{"helper.py": "import deeper\nNEAR = 1  # größer"})
        printed.append(keys_in_another_process(tmp_path / name, **environment))
    assert printed[0] == printed[1]
    of_file, typed, _, after_a_call = printed[0]
    assert typed == after_a_call  # results that a function keeps do not count
    assert of_file != typed


def test_a_class_without_a_file_has_the_key_of_its_code():
    keys = []
    for reward in ("1 + agent", "1 + agent", "1 - agent"):
        space = {"__name__": "typed"}
        exec(SCENARIO.format(body="pass", reward=reward), space)
        keys.append(key_of(space["Own"]()))
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return the loaded module of a scenario; its modules are forgotten afterwards."""
    write_parts(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("mine")
    for name in ("mine", "helper", "deeper", "late", *(x for x in sys.modules if x[:4] == "pack")):
        sys.modules.pop(name, None)


def test_the_key_changes_with_the_files_of_all_modules_that_a_scenario_imports(mine, tmp_path):
    before = key_of(mine.Mine())
    changing = []
    for name, text in PARTS.items():
        write_parts(tmp_path, **{name: text + "\n# more"})
        changing += [name] if key_of(mine.Mine()) != before else []
        write_parts(tmp_path)
    assert changing == [name for name in PARTS if name != "unused.py"]
    assert not {"late", "pack.last"} & sys.modules.keys()  # in functions that have not run
    assert key_of(mine.Mine()) == before


def set_default(module):
    module.Mine.reward.__defaults__ = (3,)


def set_own_reward(module):
    module.Mine.reward = lambda self, agent: 1


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "NEAR", 2),
        lambda module: setattr(module.pack, "VALUE", 2),
        lambda module: setattr(module.Mine, "BONUS", 2),
        set_default,
        set_own_reward,
    ],
)
def test_the_key_changes_with_what_the_code_can_reach_in_one_process(mine, change):
    before = key_of(mine.Mine())
    assert key_of(mine.Mine()) == before
    change(mine)
    assert key_of(mine.Mine()) != before


def test_the_key_changes_with_a_module_that_a_function_imports(mine):
    late = importlib.import_module("late")
    before = key_of(mine.Mine())
    late.BONUS = 5
    assert key_of(mine.Mine()) != before


class Shown:
    """An object whose text does not tell its value."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "Shown()"


class ShownFloat(float):
    def __repr__(self):
        return "number"


def slotted(value):
    class Slotted:
        __slots__ = ("value",)

    found = Slotted()
    found.value = value
    return found


def closure(value):
    return lambda x: x + value


def default(value):
    return lambda x=value: x


def aliased(value):
    """Return two tensors of equal numbers: of one memory for 1, of two for 2."""
    tensor = torch.zeros(3)
    return [tensor, tensor[:] if value == 1 else tensor.clone()]


PAIRS = {
    "text": Shown,
    "number with a text": ShownFloat,
    "slots": slotted,
    "closure": closure,
    "default": default,
    "code": lambda value: (lambda x: x + 1) if value == 1 else (lambda x: x + 2),
    "array": lambda value: np.full(3, value),
    "key": lambda value: {1: 0} if value == 1 else {"1": 0},
    "order": lambda value: dict.fromkeys("ab" if value == 1 else "ba", 0),
    "type": lambda value: value == 1 if value == 1 else 1,
    "memory": aliased,
    "bfloat16": lambda value: torch.full((2,), value, dtype=torch.bfloat16),
    "sparse": lambda value: torch.full((2, 2), value).to_sparse(),
    "one number": lambda value: torch.tensor(float(value)),
    "in memory": lambda value: io.BytesIO(bytes([value])),
    "module": lambda value: ast if value == 1 else io,
    "set": lambda value: {"a", "b", str(value)},
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS.keys())
def test_the_key_changes_with_the_value_of_an_attribute_and_of_a_keyword(tmp_path, make):
    scenarios = [scenario_of(tmp_path) for _ in range(3)]
    for scenario, value in zip(scenarios, (1, 1, 2), strict=True):
        scenario.held = make(value)
    for keys in (
        [key_of(scenario) for scenario in scenarios],
        [key_of(scenarios[0], scenario_kwargs={"a": make(value)}) for value in (1, 1, 2)],
    ):
        assert keys[0] == keys[1]
        assert keys[0] != keys[2]


HELD = {
    "lock": threading.Lock,
    "file": lambda: open(os.devnull),  # noqa: SIM115 the test closes it
    "stream": lambda: os.fdopen(os.pipe()[0], "rb", 0),
    "temporary file": tempfile.NamedTemporaryFile,
    "logger": lambda: logging.getLogger("own"),
    "generator": lambda: random.Random(1),
    "NumPy generator": lambda: np.random.default_rng(1),
    "object": object,
    "lambda": lambda: lambda x: x,
}


@pytest.mark.parametrize("make", HELD.values(), ids=HELD.keys())
def test_a_scenario_that_holds_what_has_no_text_has_the_same_key_again(tmp_path, make):
    keys = []
    for _ in range(2):
        scenario = scenario_of(tmp_path)
        scenario.held = held = make()
        keys.append(key_of(scenario))
        getattr(held, "close", lambda: None)()
    assert keys[0] == keys[1]


def test_an_object_that_cannot_be_looked_into_has_no_key(tmp_path):
    scenario = scenario_of(tmp_path)
    scenario.held = (x for x in range(3))
    with pytest.raises(task_key.Unrepeatable, match="held is a generator, whose state cannot be"):
        key_of(scenario)


def test_the_key_changes_with_the_sources_of_the_simulator_of_vmas(tmp_path, monkeypatch):
    own = tmp_path / "simulator"
    shutil.copytree(task_key.SIMULATOR, own, ignore=shutil.ignore_patterns("__pycache__"))
    scenario = scenario_of(tmp_path)
    before = key_of(scenario)
    monkeypatch.setattr(task_key, "SIMULATOR", own)
    assert key_of(scenario) == before
    for name in ("core.py", "dynamics/drone.py"):
        text = (own / name).read_text()
        (own / name).write_text(text + "#")
        assert key_of(scenario) != before
        (own / name).write_text(text)


def test_the_key_changes_with_the_version_of_a_library_that_a_helper_imports(mine, monkeypatch):
    Path(sys.modules["deeper"].__file__).write_text("def f():\n    import yaml")
    before = key_of(mine.Mine())
    sources = task_sources.Sources(frozenset())
    sources.add_module("helper")
    assert sources.libraries == {"yaml"}
    versions = {"PyYAML": "9.9"}
    version = task_sources.version
    monkeypatch.setattr(task_sources, "version", lambda name: versions.get(name) or version(name))
    assert key_of(mine.Mine()) != before


# ------------------------------------------------------------- steps from disk that differ


@pytest.mark.parametrize("error", [Mismatch, NotLoadable])
def test_a_step_from_disk_that_differs_or_does_not_load_is_built_again_once(
    tmp_path, monkeypatch, error
):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    task, backend, made, checked = task_of(scenario_of(tmp_path)), of_cpu(), [], []

    def make(task, place, backend):
        made.append(place)
        text = str(len(made))
        (place / "step.so").write_text(text)
        step = bare_step([], None)
        return {
            "file": "step.so",
            "sha256": hash_of(text.encode()),
            "numbers": [],
            "layout": {"n_agents": 1, "observation_dim": 1, "state_dim": 1},
            "paths": step.paths.as_json(),
            "choices": step.choices,
            "guard": step.guard.as_json(),
            "constants": {},
            "carried": [],
            "draws": False,
            "shared": False,
            "reads_in_resets": False,
            "seconds": {},
        }

    def check(step, task, backend, n_envs):
        assert n_envs == 2
        checked.append(step.library.path.read_text())
        if checked[-1] in differing:
            raise error("its step differs from VMAS's")

    monkeypatch.setattr(compiling, "_make", make)
    monkeypatch.setattr(compiling, "check_at_start", check)
    monkeypatch.setattr(stored_step, "check_constants", lambda step, task: None)
    monkeypatch.setattr(once, "made", lambda task: "the same world")
    differing = {"1"}
    assert compiling.checked_step(task, backend, 2).library.path.read_text() == "2"
    assert (len(made), checked) == (2, ["1", "2"])
    assert compiling.checked_step(task, backend, 2).library.path.read_text() == "2"
    assert (len(made), checked) == (2, ["1", "2"])  # a process compares a step once
    monkeypatch.setattr(once, "_results", {})  # as in another process
    assert compiling.checked_step(task, backend, 2).library.path.read_text() == "2"
    assert (len(made), checked) == (2, ["1", "2", "2"])
    monkeypatch.setattr(once, "_results", {})
    differing = {"2", "3"}
    with pytest.raises(error):
        compiling.checked_step(task, backend, 2)
    assert len(made) == 3


def test_a_known_refusal_is_read_from_an_entry_that_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    task, backend = task_of(scenario_of(tmp_path)), of_cpu()
    key = task_key.task_key(task, backend.tools())
    assert compiling.known_refusal(task, backend) is None
    place, _ = store.kept(key, lambda place: {"refused": "too large", "n_nodes": 3})
    assert compiling.known_refusal(task, backend) == ("too large", 3)
    (place / store.NOTES).write_text("{")
    assert compiling.known_refusal(task, backend) is None
