"""The names that a configuration can use, as ``names.py`` lists them."""

import typing
from pathlib import Path

import names as listing
import pytest
import vmas

from qmix_trl import AGENTS, MIXERS, RunConfig
from qmix_trl.envs.game_tables import GAMES
from qmix_trl.envs.vmas_scenarios import SCENARIOS


def test_every_game_is_listed():
    assert listing.names("games") == ["matrix", "memory", "random_matrix", "two_step"]
    assert listing.names("games") == sorted(GAMES)


def test_every_scenario_of_vmas_is_listed():
    files = (Path(vmas.__file__).parent / "scenarios").rglob("*.py")
    assert listing.names("scenarios") == sorted(p.stem for p in files if p.stem != "__init__")
    assert listing.names("scenarios") == SCENARIOS


@pytest.mark.parametrize(
    ("kind", "expected", "table"),
    [
        ("agents", ["feedforward", "recurrent"], AGENTS),
        (
            "mixers",
            ["custom", "none", "qfix", "qmix", "qplex", "vdn"],
            {**MIXERS, "none": None, "custom": None},
        ),
    ],
)
def test_the_names_of_a_section_are_listed(kind, expected, table):
    assert listing.names(kind) == expected == sorted(table)
    sections = typing.get_args(typing.get_type_hints(RunConfig)[kind.removesuffix("s")])
    named = [typing.get_args(typing.get_type_hints(section)["name"])[0] for section in sections]
    assert sorted(named) == expected
