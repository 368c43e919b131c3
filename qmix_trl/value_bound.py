"""The interval in which targets are kept, as rewards allow."""

import math

import torch
from torch import Tensor, nn

from qmix_trl.ranks import ALONE, Ranks


def sum_of_discounts(gamma: float, n_steps: float = math.inf) -> float:
    """Return ``1 + gamma + .. + gamma^(n_steps - 1)``, the factor between a reward and its sum."""
    if gamma == 1:
        return n_steps
    return (1 - gamma**n_steps) / (1 - gamma)


class TargetBound(nn.Module):
    """Next values within ``[r_min, r_max] / (1 - gamma)``, as the rewards seen allow.

    r_min and r_max are the extremes of all rewards so far. A step that terminates is followed by
    rewards of 0, which count. The extremes are buffers: they are saved with the module, and a CUDA
    graph updates them in place.

    Args:
        device: of the buffers.
        dtype: of the buffers.

    Attributes:
        ranks: the processes over whose rewards the extremes are taken.
    """

    ranks: Ranks = ALONE
    least_reward: Tensor
    greatest_reward: Tensor

    def __init__(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        for name, extreme in (("least_reward", math.inf), ("greatest_reward", -math.inf)):
            self.register_buffer(name, torch.tensor(extreme, device=device, dtype=dtype))

    @torch.no_grad()
    def forward(
        self, value_tp1: Tensor, reward_t: Tensor, terminated_t: Tensor, mask: Tensor, gamma: float
    ) -> Tensor:
        """Take rewards into account, and return next values clamped to the interval.

        Args:
            value_tp1: float [B, T, M].
            reward_t: float [B, T, M], scaled as in the targets.
            terminated_t: bool [B, T, 1].
            mask: bool [B, T], the valid steps.
            gamma: the discount per step, below 1.

        Raises:
            ValueError: if gamma is 1: the sums of rewards have no bound.
        """
        if gamma == 1:
            raise ValueError("TargetBound: expected gamma below 1, got 1")
        least = torch.where(terminated_t, reward_t.clamp(max=0), reward_t)
        greatest = torch.where(terminated_t, reward_t.clamp(min=0), reward_t)
        valid = mask.unsqueeze(-1)
        least = torch.where(valid, least, math.inf).amin()
        greatest = torch.where(valid, greatest, -math.inf).amax()
        if self.ranks.size > 1:
            extremes = torch.stack([-least, greatest])
            self.ranks.take_maximum(extremes)
            least, greatest = -extremes[0], extremes[1]
        self.least_reward.copy_(torch.minimum(self.least_reward, least))
        self.greatest_reward.copy_(torch.maximum(self.greatest_reward, greatest))
        factor = sum_of_discounts(gamma)
        return value_tp1.clamp(factor * self.least_reward, factor * self.greatest_reward)
