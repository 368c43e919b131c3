"""PettingZoo's simple_spread_v3: three agents cover three landmarks and avoid each other.

It needs the extra ``envs``: pip install -e ".[envs]"
"""

from mpe2 import simple_spread_v3  # pyright: ignore[reportMissingImports]
from torchrl.envs.libs.pettingzoo import PettingZooWrapper


def make(*, n_agents: int, max_cycles: int) -> PettingZooWrapper:
    """Return the environment with its state, without a batch."""
    game = simple_spread_v3.parallel_env(N=n_agents, max_cycles=max_cycles)
    return PettingZooWrapper(game, return_state=True, categorical_actions=True)
