"""Environments of other packages as a team, in this process or in several."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from qmix_trl.envs.contract import check_choice, check_sizes
from qmix_trl.envs.process_team import ProcessTeam
from qmix_trl.envs.python_team import PythonTeam
from qmix_trl.envs.single_env import SingleEnv
from qmix_trl.errors import ConfigError

TEAM_REWARDS = ("mean", "sum")
TRIED_STEPS = 2


def make_team(
    make: Callable[[], SingleEnv],
    *,
    n_envs: int,
    max_steps: int,
    team_reward: str,
    seed: int,
    device: torch.device | str,
    processes: int,
    reset_when_done: bool,
) -> PythonTeam | ProcessTeam:
    """Return environments as a team: in this process a batch [E], in P processes [P, E / P].

    Numbers do not depend on the number of processes.

    Args:
        make: makes one of the environments.
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates.
        team_reward: "mean" or "sum" of the agents' rewards.
        seed: of the environments.
        device: of the team; the environments step on the CPU.
        processes: P.
        reset_when_done: whether an environment that is done is reset at once. If not, it waits
            until all are reset together.

    Raises:
        ConfigError: if a size is below 1, P does not divide E, or environments differ in sizes.
    """
    check_sizes(n_envs=n_envs, max_steps=max_steps, processes=processes)
    check_choice("team_reward", team_reward, TEAM_REWARDS)
    if n_envs % processes:
        raise ConfigError(
            f"env.processes: expected a divisor of the number of environments, {n_envs}, got "
            f"{processes}"
        )
    share, reproduces = n_envs // processes, try_out(make())
    make_share = partial(
        PythonTeam,
        make,
        n_envs=share,
        max_steps=max_steps,
        team_reward=team_reward,
        reproduces=reproduces,
        reset_when_done=reset_when_done,
    )
    if processes == 1:
        env = make_share(device=device)
    else:
        env = ProcessTeam(make_share, processes, share, reproduces).to(device)
    env.set_seed(seed)
    return env


def try_out(env: SingleEnv) -> bool:
    """Return whether an episode reproduces from its seed, and close the environment.

    A few steps are taken twice, by the first available actions.
    """
    episodes = []
    for _ in range(2):
        shown = [env.reset(0)]
        for _ in range(TRIED_STEPS):
            mask = shown[-1].action_mask
            action = [0] * env.dims.n_agents if mask is None else mask.argmax(-1).tolist()
            after, _, terminated, truncated = env.step(action)
            shown.append(after)
            if terminated or truncated:
                break
        episodes.append([array for step in shown for array in step if array is not None])
    env.close()
    first, second = episodes
    return len(first) == len(second) and all(map(np.array_equal, first, second))
