"""Evaluation: the returns of whole episodes."""

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from qmix_trl.functional import first_episode_mask
from qmix_trl.keys import DONE, REWARD, next_key


@torch.no_grad()
def episode_returns(
    env: EnvBase, policy: TensorDictModuleBase, *, max_steps: int, seed: int
) -> Tensor:
    """Return the undiscounted team return of one episode of every environment: float [E].

    The environment is seeded anew, so that every policy meets the same episodes.

    Args:
        env: under the contract, with the policy's memory; it must end or truncate episodes
            within ``max_steps``.
        policy: what acts.
        max_steps: the longest episode.
        seed: of the environment.
    """
    env.set_seed(seed)
    batch = env.rollout(max_steps, policy, break_when_any_done=False)  # [E, T]
    mask = first_episode_mask(batch.get(next_key(DONE)))
    return torch.where(mask, batch.get(next_key(REWARD))[..., 0], 0).sum(1)
