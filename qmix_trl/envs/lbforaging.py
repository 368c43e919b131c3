"""Level-based foraging of the package lbforaging as a team under the canonical contract."""

import math
from functools import partial
from typing import Any

from qmix_trl.envs import gymnasium_team


def clear(env: Any) -> None:
    """Take all players off the field: the last episode's positions would block cells of a reset."""
    for player in env.players:
        player.position = None


LBFORAGING = gymnasium_team.Package(
    name="lbforaging",
    example="Foraging-8x8-2p-2f-coop-v3",
    limit="max_episode_steps",
    no_limit=math.inf,
    prepare=clear,
)
make_env = partial(gymnasium_team.make_env, LBFORAGING)
