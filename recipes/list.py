"""List what a configuration can name: python recipes/list.py [KIND]

A kind is one of scenarios (of VMAS), games, agents and mixers.
"""

import argparse

from qmix_trl import AGENTS, MIXERS
from qmix_trl.envs.game_tables import GAMES


def names(what: str) -> list[str]:
    """Return the names of one kind."""
    if what == "scenarios":
        from qmix_trl.envs.vmas_scenarios import SCENARIOS

        return SCENARIOS
    return sorted({"games": GAMES, "agents": AGENTS, "mixers": {**MIXERS, "none": None}}[what])


if __name__ == "__main__":
    kinds = ("scenarios", "games", "agents", "mixers")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=kinds, help="one kind; without it, all")
    what = parser.parse_args().what
    for kind in [what] if what else kinds:
        print(f"{kind}: {' '.join(names(kind))}")
