"""List what a configuration can name: python recipes/names.py [KIND]

A kind is one of scenarios (of VMAS), games, agents, mixers, and engines: which one steps each
scenario, and why not one before it. Engines are listed only when asked for: this compiles all
scenarios, the first time in a quarter of an hour.
"""

import argparse
import time

from qmix_trl import AGENTS, MIXERS, make_env
from qmix_trl.envs.game_tables import GAMES


def names(what: str) -> list[str]:
    """Return the names of one kind."""
    if what == "scenarios":
        from qmix_trl.envs.vmas_scenarios import SCENARIOS

        return SCENARIOS
    return sorted({"games": GAMES, "agents": AGENTS, "mixers": {**MIXERS, "none": None}}[what])


def list_engines() -> None:
    """Print the engine of every scenario, for 600 environments."""
    from qmix_trl.envs.vmas_scenarios import SCENARIOS, first_group

    for scenario in SCENARIOS:
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
        print(f"{scenario:24} {seconds:6.1f} s  {env.how}", flush=True)


if __name__ == "__main__":
    kinds = ("scenarios", "games", "agents", "mixers")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=(*kinds, "engines"), help="one kind; without it, all but engines"
    )
    what = parser.parse_args().what
    if what == "engines":
        list_engines()
    else:
        for kind in [what] if what else kinds:
            print(f"{kind}: {' '.join(names(kind))}")
