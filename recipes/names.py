"""List the names that a configuration can use: python recipes/names.py [KIND] [SCENARIO ..]

A kind is one of scenarios (of VMAS), games, agents, mixers and engines. The last lists the engine
of every scenario, with the reason why no faster one runs it; it is listed only when asked for, as
it compiles all scenarios, the first time in a quarter of an hour. Scenarios after it, by name or
path/to/file.py, are listed alone.
"""

import argparse
import time
from collections.abc import Sequence
from typing import get_args, get_type_hints

from support.terminal import Paragraphs, filled, tell_builds

from qmix_trl.config.checks import vmas_scenarios
from qmix_trl.config.schema import GAMES, RunConfig
from qmix_trl.errors import ConfigError, exit_on_mistake

KINDS = ("scenarios", "games", "agents", "mixers")


def names(kind: str) -> list[str]:
    """Return the names of a kind, one of ``KINDS``."""
    if kind == "scenarios":
        return vmas_scenarios()
    if kind == "games":
        return sorted(GAMES)
    sections = get_args(get_type_hints(RunConfig)[kind.removesuffix("s")])
    return sorted(get_args(get_type_hints(section)["name"])[0] for section in sections)


def list_engines(scenarios: Sequence[str]) -> None:
    """Print the engines of scenarios, for 600 environments.

    Raises:
        ConfigError: if there is no such scenario, or its code fails.
    """
    from qmix_trl import make_env
    from qmix_trl.envs.vmas_scenarios import first_group

    tell_builds()
    for scenario in scenarios:
        start = time.perf_counter()
        env = make_env(
            "vmas",
            scenario=scenario,
            n_envs=600,
            max_steps=100,
            state="world",
            team_reward="mean",
            seed=0,
            group=first_group(scenario),
        )
        seconds = time.perf_counter() - start
        print(filled(f"{scenario:24} {seconds:6.1f} s  {env.how}"), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    parser.add_argument(
        "kind",
        nargs="?",
        choices=(*KINDS, "engines"),
        help="one kind; without it, all but engines",
    )
    parser.add_argument("scenarios", nargs="*", help="(engines) of VMAS, or path/to/file.py")
    arguments = parser.parse_args()
    asked = arguments.kind
    with exit_on_mistake():
        if arguments.scenarios and asked != "engines":
            raise ConfigError(f"expected scenarios after engines alone, got {arguments.scenarios}")
        if asked == "engines":
            list_engines(arguments.scenarios or vmas_scenarios())
        else:
            for kind in [asked] if asked else KINDS:
                print(filled(f"{kind}: {' '.join(names(kind))}"))
