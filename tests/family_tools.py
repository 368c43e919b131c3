"""One environment of each family, for the tests that all families pass."""

from dataclasses import dataclass

import pytest
from team_tools import AnyEnv, Layout

from qmix_trl import make_env

LIMIT = 5  # steps


@dataclass(frozen=True)
class Family:
    """Settings of an environment that a family makes.

    Attributes:
        name: of the family.
        settings: arguments of its ``make_env``.
        packages: that it needs, of an extra.
        masked: whether it has action masks.
        draws: whether episodes begin at random.
        dies: whether agents may be done before the team.
        resumes: whether its runs are resumed.
    """

    name: str
    settings: dict
    packages: tuple[str, ...] = ()
    masked: bool = False
    draws: bool = True
    dies: bool = False
    resumes: bool = True


def any_env():
    """Return a game in which agents die, for the family custom."""
    return AnyEnv(Layout(n_envs=None))


STATED = {"state": "world", "team_reward": "mean"}
ENVS = ("pettingzoo", "mpe2")
FAMILIES = {
    "vmas": Family("vmas", {"scenario": "balance", "engine": "eager", **STATED}),
    "games": Family(
        "games",
        {"scenario": "memory", "scenario_kwargs": {"delay": 9}, "state": "world"},
        masked=True,
    ),
    "foraging": Family("foraging", {"scenario": "5x5-2p-1f", "state": "world"}),
    "custom": Family(
        "custom",
        {"make": "family_tools:any_env", **STATED},
        masked=True,
        draws=False,
        dies=True,
        resumes=False,
    ),
    "pettingzoo": Family(
        "pettingzoo",
        {"scenario": "mpe2.simple_spread_v3", **STATED},
        packages=ENVS,
        masked=True,
    ),
    "pettingzoo, masks and deaths": Family(
        "pettingzoo",
        {
            "scenario": "pettingzoo_tools:mines",
            "scenario_kwargs": {"masks": "infos"},
            **STATED,
        },
        packages=("pettingzoo",),
        masked=True,
        dies=True,
    ),
    "lbforaging": Family(
        "lbforaging",
        {"scenario": "Foraging-5x5-2p-1f-v3", "team_reward": "sum"},
        packages=("lbforaging",),
    ),
    "rware": Family(
        "rware", {"scenario": "rware-tiny-2ag-v2", "team_reward": "mean"}, packages=("rware",)
    ),
}


def made(family: Family, *, n_envs=3, seed=0, **changes):
    """Return environments of a family; skip the test where a package is missing."""
    for package in family.packages:
        pytest.importorskip(package, reason="needs the extra envs")
    settings = {**family.settings, "n_envs": n_envs, "max_steps": LIMIT, "seed": seed, **changes}
    return make_env(family.name, **settings)
