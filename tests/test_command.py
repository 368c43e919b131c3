"""The command qmix-trl, configurations by name, and copies of them."""

import subprocess
import sys
import time
from pathlib import Path

import command
import copy_config as copying
import pytest
from recipe_tools import RECIPES, call
from support import commands
from support.shipped import CONFIGS, config_file, shipped_configs

from qmix_trl import ConfigError, __version__, load_config

SHIPPED = [path.stem for path in CONFIGS.glob("*.yaml")]


def qmix_trl(folder, *arguments):
    """Return the result of the command, with the modules that it has imported."""
    code = (
        "import sys, command; sys.argv[0] = '/somewhere/qmix-trl'\n"
        "try: command.main()\n"
        "finally: print('torch' in sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": f"{RECIPES.parent}:{RECIPES}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_command_is_a_recipe_that_explains_itself():
    for name, known in commands.COMMANDS.items():
        assert (RECIPES / known.file).is_file(), name
    scripts = {path.name for path in RECIPES.glob("*.py")} - {"__init__.py", "command.py"}
    assert scripts - {"train_benchmarl.py"} <= {known.file for known in commands.COMMANDS.values()}


def test_the_help_has_every_command_with_an_example(monkeypatch, capsys):
    for arguments in ([], ["--help"], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["qmix-trl", *arguments])
        command.main()
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        for name in commands.COMMANDS:
            assert sum(line.startswith(f"  {name} ") for line in lines) == 1, name
            assert sum(line.startswith(f"  qmix-trl {name} ") for line in lines) == 1, name


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qmix-trl", "--version"])
    command.main()
    assert capsys.readouterr().out == f"qmix-trl {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "x"], "error: unknown command 'trian'; did you mean 'train'?; known: train, "),
        (["train", "balance_quik"], "got 'balance_quik'; did you mean 'balance_quick'"),
        (["train", "balance_quick", "sed=1"], "sed: unknown key; did you mean 'seed'"),
        (["evaluate", "runs/none"], "got runs/none, which has no config.yaml"),
        (["copy", "balance_quik"], "did you mean 'balance_quick'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line_without_torch(arguments, said, tmp_path):
    done = qmix_trl(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_arguments_names_the_command(tmp_path):
    done = qmix_trl(tmp_path, "train", "balance_quick", "--seed", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: qmix-trl train [-h]")
    assert done.stderr.endswith(
        "unrecognized arguments: --seed 1; a key of the configuration is set without --: seed=...\n"
    )


def test_a_mistake_is_told_within_a_second(tmp_path):
    def seconds():
        start = time.process_time()
        before = sum(_children())
        qmix_trl(tmp_path, "train", "balance_quick", "sed=1")
        assert time.process_time() >= start
        return sum(_children()) - before

    assert seconds() < 1


def _children():
    """Return the processor time of the processes that have ended, by user and system."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime


# Commands that are printed


def test_a_recipe_that_is_a_file_prints_files(monkeypatch):
    monkeypatch.setattr(commands, "_PROGRAM", [])
    monkeypatch.setattr(sys, "executable", "/opt/none/python")
    monkeypatch.chdir(RECIPES.parent)
    assert commands.typed("copy", "my file.yaml") == (
        "/opt/none/python recipes/copy_config.py 'my file.yaml'"
    )
    monkeypatch.chdir("/")
    assert commands.typed("train").endswith(f" {RECIPES.relative_to('/')}/train.py")


def test_a_recipe_that_the_command_has_started_prints_the_command(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "qmix-trl"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setattr(commands, "_PROGRAM", [str(program)])
    monkeypatch.setenv("PATH", "")
    assert commands.typed("evaluate", Path("runs/x")) == f"{program} evaluate runs/x"
    monkeypatch.chdir(tmp_path)
    assert commands.typed("evaluate", Path("runs/x")) == "bin/qmix-trl evaluate runs/x"
    monkeypatch.setenv("PATH", str(program.parent))
    assert commands.typed("evaluate", Path("runs/x")) == "qmix-trl evaluate runs/x"


# Configurations by name


def test_a_configuration_is_a_file_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file("balance_quick") == str(CONFIGS / "balance_quick.yaml")
    Path("balance_quick").write_text("")
    assert config_file("balance_quick") == "balance_quick"
    with pytest.raises(ConfigError, match=r"'here/balance_quik.yaml'; did you mean 'balance_quick"):
        config_file("here/balance_quik.yaml")


def test_a_copy_gets_the_name_of_a_file(tmp_path):
    copies = copying.copy_config("mpe_spread_qmix", tmp_path / "new" / "mine.yaml")
    assert [path.relative_to(tmp_path).as_posix() for path in copies] == [
        "new/mine.yaml",
        "new/mpe_spread.py",
    ]
    assert load_config(copies[0]).env.scenario == str(copies[1].resolve())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_copy_is_equal_but_for_the_place_of_its_scenario(name, tmp_path):
    pytest.importorskip("lbforaging", reason="needs the extra envs")
    copies = copying.copy_config(name, tmp_path / "new")
    assert sorted(copies) == sorted((tmp_path / "new").iterdir())
    text, original = copies[0].read_text(), (CONFIGS / f"{name}.yaml").read_text()
    load_config(copies[0])
    if len(copies) == 1:
        assert text == original
        assert not any(".py" in line.partition("#")[0] for line in text.splitlines())
    else:
        (scenario,) = copies[1:]
        assert text.replace(scenario.name, f"../environments/{scenario.name}") == original
        shipped = RECIPES / "environments" / scenario.name
        assert scenario.read_bytes() == shipped.read_bytes()


def test_some_configuration_brings_a_scenario_of_its_own(tmp_path):
    assert [path.name for path in copying.copy_config("mpe_spread_qmix", tmp_path)] == [
        "mpe_spread_qmix.yaml",
        "mpe_spread.py",
    ]


@pytest.mark.parametrize("there", ["mpe_spread_qmix.yaml", "mpe_spread.py"])
def test_no_file_is_overwritten(there, tmp_path):
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConfigError, match=f"{there} exists and is not overwritten"):
        copying.copy_config("mpe_spread_qmix", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"below cannot be written: Not a directory"):
        copying.copy_config("balance_quick", tmp_path / "file" / "below")


def test_without_a_name_all_are_listed(capsys):
    call("copy_config.py")
    *lines, last = capsys.readouterr().out.splitlines()
    assert sorted(" ".join(lines).split()) == sorted(SHIPPED) == shipped_configs()
    assert lines[0].split()[0] == "balance_iql"
    assert last.startswith("next: ")
