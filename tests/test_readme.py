"""The README: what it tells a user to run, runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Return the README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_snippet_runs_and_learns_from_what_it_collects():
    snippet = blocks("python")[0]
    short = snippet.replace("n_envs=32", "n_envs=4").replace("n_batches=30", "n_batches=2")
    short = short.replace("range(60)", "range(2)").replace("batch_rows=16", "batch_rows=2")
    assert sum(a != b for a, b in zip(snippet.split(), short.split(), strict=True)) == 4
    names = {}
    exec(short, names)
    assert names["explore"].frames == 2 * 4 * 100
    assert len(names["replay"]) == 2 * 4


@pytest.mark.parametrize("marker", ["first command", "test command"])
def test_a_command_stands_behind_each_marker(marker):
    found = re.findall(rf"<!-- {marker} -->\n```bash\n(.+)\n```", README)
    assert len(found) == 1
    assert found[0].startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"(?:recipes|qmix_trl|tests)/[\w/.]+\w", README))
    assert {"recipes/train.py", "qmix_trl/keys.py"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_source_file_stands_in_the_map():
    files = {
        path.relative_to(ROOT / folder).as_posix()
        for folder in ("qmix_trl", "recipes")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    file_map = README[README.index("## Where things are") :]
    assert [name for name in sorted(files) if Path(name).name not in file_map] == []
