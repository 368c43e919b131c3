"""Evaluation of a policy by the returns of whole episodes."""

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
    """Return the undiscounted team return of one episode of each environment: float [E].

    The environment is seeded first, so that all policies are evaluated on the same episodes.

    Args:
        env: an environment under the contract, with the policy's memory (``with_memory``). Its
            batch may have any shape, E is its number of environments. It must terminate or
            truncate every episode within ``max_steps``.
        policy: the policy that acts.
        max_steps: the greatest length of an episode.
        seed: the seed of the environment.
    """
    env.set_seed(seed)
    batch = env.rollout(max_steps, policy, break_when_any_done=False)  # [*B, T]
    batch = batch.reshape(-1, batch.shape[-1])  # [E, T]
    mask = first_episode_mask(batch.get(next_key(DONE)))
    return torch.where(mask, batch.get(next_key(REWARD))[..., 0], 0).sum(1)
