"""The check of a machine: each line says ok, missing or wrong, and the remedy."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from packaging.requirements import Requirement
from recipe_tools import RECIPES, call, game, tiny
from support.doctor import finding, machine, packages, reading
from support.doctor.finding import Finding
from support.doctor.reading import Choice, Reading

from qmix_trl import load_config
from qmix_trl.native import store
from qmix_trl.native.build import BuildFailed, NoCompiler

# Packages


@pytest.mark.parametrize(
    ("wanted", "errors", "state", "parts"),
    [
        ("packaging>=20", {"packaging": None}, "ok", []),
        ("packaging>=2000", {}, "wrong", ["expected packaging>=2000", "pip install 'packaging>="]),
        ("packaging>=20", {"packaging": "OSError: x"}, "wrong", ["not imported: OSError: x"]),
        ("no-such-package<2", {}, "missing", ["pip install 'no-such-package<2'"]),
    ],
)
def test_a_package_is_ok_missing_or_wrong(wanted, errors, state, parts):
    found = packages.check_package(Requirement(wanted), errors, is_needed=True)
    assert found.state == state
    assert found.ends_runs == (state != "ok")
    for part in parts:
        assert part in str(found)


def test_the_ranges_are_those_of_the_project():
    core, extras = packages.requirements()
    assert {one.name for one in core} == {"torch", "torchrl", "tensordict", "vmas", "pyyaml"}
    assert {one.name for one in extras["recipes"]} == {"rich", "matplotlib", "scipy", "pillow"}
    assert [one for group in extras.values() for one in group if one.name == "qmix-trl"] == []


def test_the_module_of_each_installed_package_is_found():
    core, extras = packages.requirements()
    names = [one.name for group in (core, *extras.values()) for one in group]
    installed = [name for name in names if packages._version(name)]
    assert {"pyyaml", "torch"} <= set(installed)
    assert [name for name in installed if find_spec(packages.module_of(name)) is None] == []


def test_an_extra_lacks_its_packages_or_has_a_broken_one(monkeypatch):
    good, lacking, broken = (Requirement(x) for x in ("packaging", "no-such-package", "pytest"))
    extras = {"full": [good], "half": [good, lacking], "broken": [lacking, broken]}
    monkeypatch.setattr(packages, "requirements", lambda: ([], extras))
    monkeypatch.setattr(packages, "imported", lambda modules: {"pytest": "ImportError: x"})
    full, half, wrong, gpu = map(str, packages.check_packages())
    assert full.startswith("ok        extra full     packaging ")
    assert half == (
        "missing   extra half     without no-such-package; pip install 'qmix-trl[half]'"
    )
    assert wrong.startswith("wrong     extra broken")
    assert "not imported: ImportError: x; pip install --force-reinstall 'pytest'" in wrong
    assert gpu.startswith("ok        gpu")


def test_imports_that_fail_or_end_python_are_told(tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("print('hello')\nraise ImportError('a\\nb')")
    (tmp_path / "dies.py").write_text("import os; os._exit(11)")
    (tmp_path / "works.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert packages.imported(["fails", "dies", "works"]) == {
        "fails": "ImportError: a b",
        "dies": "it ends Python by exit code 11",
        "works": None,
    }


@pytest.mark.parametrize(
    ("has_driver", "seen", "state", "part"),
    [
        (True, {"version": "12.8", "names": ["H100"]}, "ok", "H100, CUDA 12.8"),
        (True, {"version": None, "names": []}, "wrong", "(a CPU build)"),
        (True, {"version": "12.8", "names": []}, "wrong", "(built for CUDA 12.8)"),
        (False, {"version": None, "names": []}, "ok", "none; runs take the CPU"),
        (False, None, "ok", "none; runs take the CPU"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_wrong(
    has_driver, seen, state, part, tmp_path, monkeypatch
):
    driver = tmp_path / "version"
    if has_driver:
        driver.write_text("")
    monkeypatch.setattr(packages, "DRIVER", driver)
    found = packages.check_gpu(seen)
    assert (found.state, found.ends_runs) == (state, False)
    assert part in found.detail


def broken_torch(folder):
    """Return the result of the command where torch cannot be imported."""
    (folder / "torch.py").write_text("raise OSError('libtorch.so: cannot open')")
    return subprocess.run(
        [sys.executable, RECIPES / "doctor.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{RECIPES.parent}"},
        capture_output=True,
        text=True,
    )


def test_a_torch_that_cannot_be_imported_is_told(tmp_path):
    done = broken_torch(tmp_path)
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("wrong     torch ")]
    assert "not imported: OSError: libtorch.so: cannot open; pip install --force-reinstall" in line
    assert [line.split()[0] for line in lines if line.split()[1] in ("cpu", "pyyaml")] == ["ok"] * 2
    assert [line for line in lines if line.split()[1] == "run"] == []
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: no run works: torch")


# The machine


@pytest.mark.parametrize(
    ("error", "state", "part"),
    [
        (NoCompiler("none; apt install g++"), "missing", "apt install g++"),
        (BuildFailed("g++: boom"), "wrong", "g++: boom; mend it, or name another by CXX"),
    ],
)
def test_a_compiler_that_is_absent_or_fails(error, state, part, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(machine, "check_compiler", fail)
    found = machine.check_cpp()
    assert (found.state, found.ends_runs) == (state, False)
    assert part in str(found)


def test_stale_entries_of_the_cache_are_told_and_removed(tmp_path, monkeypatch):
    root = tmp_path / "built"
    monkeypatch.setenv("QMIX_TRL_CACHE", str(root))
    assert "0 entries" in machine.check_cache(is_cleaned=False).detail
    store.kept("old", lambda place: (place / "file").write_bytes(bytes(3 * 2**20)) and {})
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(root / "old" / store.NOTES, (long_ago, long_ago))
    told = str(machine.check_cache(is_cleaned=False))
    assert f"{root}, 1 entries, 3 MiB, 1 not used for 30 days; " in told
    assert told.endswith("doctor.py --clean removes these")
    assert (root / "old").exists()
    assert machine.check_cache(is_cleaned=True).detail.endswith("removed 1, 3 MiB")
    assert list(root.iterdir()) == []


def test_a_cache_that_cannot_serve_is_wrong(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("QMIX_TRL_CACHE", str(file))
    found = machine.check_cache(is_cleaned=True)
    assert (found.state, found.ends_runs) == ("wrong", False)
    assert f"{file} is no folder; set QMIX_TRL_CACHE" in str(found)


def test_a_run_needs_disk_and_memory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert machine.check_disk().state == machine.check_memory().state == "ok"
    monkeypatch.setattr(machine, "free_disk", lambda folder: 5 * 2**20)
    monkeypatch.setattr(machine, "free_system_memory", lambda: 7 * 2**20)
    disk, memory = machine.check_disk(), machine.check_memory()
    assert (disk.state, disk.ends_runs, disk.detail) == (
        "wrong",
        True,
        f"5 MiB free in {tmp_path}",
    )
    assert (memory.state, memory.ends_runs, memory.detail) == ("wrong", True, "7 MiB free")
    monkeypatch.setattr(machine, "free_system_memory", lambda: 2**63)
    assert machine.check_memory().state == "ok"


def test_a_run_that_fails_shows_its_last_line(monkeypatch):
    monkeypatch.setattr(machine, "TRIAL", ("sed=1",))
    found = machine.check_run()
    assert (found.state, found.ends_runs) == ("wrong", True)
    assert "sed: unknown key; did you mean 'seed'?" in found.detail


# The command


def test_a_line_fits_the_terminal(monkeypatch, capsys):
    line = Finding("wrong", "torch", "a long text " * 10, "pip install x")
    finding.show(line)
    assert capsys.readouterr().out == f"{line}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    finding.show(line)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(" ".join(lines).split()) == " ".join(str(line).split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "balance_quik"], "did you mean 'balance_quick'"),
        (["--config", "balance_quick", "sed=1"], "sed: unknown key"),
        (["seed=1"], "expected --config CONFIG"),
    ],
)
def test_mistakes_are_told_before_any_check(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        call("doctor.py", *arguments)
    told = capsys.readouterr()
    assert (caught.value.code, told.out) == (2, "")
    assert said in told.err


# The reading


CHOICES = [Choice(n_envs, n_envs, threads) for n_envs in (75, 150) for threads in (1, 2)]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        # 150 x 1 is the configured one: it stays if its range overlaps with the fastest's.
        (([9, 9], [9, 9], [5, 9], [7, 8]), (150, 1)),
        # It does not: the same number of environments comes before the same number of threads.
        (([9, 9], [9, 9], [5, 8], [7, 9]), (150, 2)),
        (([9, 9], [1, 1], [5, 8], [7, 8]), (75, 1)),
    ],
)
def test_the_nearest_of_the_fastest_is_recommended(rates, expected):
    config = load_config(RECIPES / "configs" / "balance_quick.yaml")
    assert (config.env.n_envs, config.runtime.threads) == (150, "auto")
    readings = list(map(Reading, CHOICES, rates))
    chosen = reading.recommended(readings, config).choice
    assert (chosen.n_envs, chosen.threads) == expected


def test_sizes_train_on_each_frame_as_often():
    file = RECIPES / "configs" / "balance_quick.yaml"
    # 150 environments, 100 updates: a quarter of 150 is no whole number.
    assert reading.sizes(load_config(file)) == {75: 50, 150: 100, 300: 200, 600: 400}
    small = load_config(file, ["replay.capacity_rows=300", "update.per_batch=3"])
    assert reading.sizes(small) == {150: 3, 300: 6}
    one_batch = ["replay.capacity_rows=150", "replay.batch_rows=75", "replay.sampling=each_once"]
    assert reading.sizes(load_config(file, one_batch)) == {150: 100}


def test_a_reading_of_a_game(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "READING_SECONDS", 0)
    monkeypatch.setattr(reading, "threads", lambda config: [1])
    config = load_config(tiny(tmp_path), [game("two_step")])
    threads = torch.get_num_threads()
    try:
        found = reading.read(config, torch.device("cpu"))
        monkeypatch.setattr(reading, "MAKING_SECONDS", -1)
        (own,) = reading.read(config, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    # 2 environments and 1 update: no part of them, and 2 or 4 times as many.
    assert [(one.choice.n_envs, one.choice.per_batch) for one in found] == [(2, 1), (4, 2), (8, 4)]
    assert all(
        len(one.frames_per_second) == reading.FEWEST_ROUNDS and one.median > 0 for one in found
    )
    assert own.choice == found[0].choice  # without time for more environments
    assert str(found[0]).split()[:3] == ["2", "1", "1"]
    assert found[0].choice.overrides() == [
        "env.n_envs=2",
        "update.per_batch=1",
        "runtime.threads=1",
    ]
