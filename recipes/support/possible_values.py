"""Overestimated values, told by the values that the rewards seen so far allow."""

import math
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase

from qmix_trl.keys import AGENT_REWARD, DONE, MASK, REWARD, TERMINATED, next_key
from qmix_trl.value_bound import sum_of_discounts

# A value may lie outside by SLACK + SHARE of the end of the interval before it is overestimated.
SLACK, SHARE = 1.0, 0.01


class PossibleValues:
    """The least and the greatest value that the rewards seen so far allow.

    With rewards between r_min and r_max, a discounted sum over at most H steps lies between
    ``min(0, r_min)`` and ``max(0, r_max)``, each times ``1 + gamma + .. + gamma^(H-1)``; 0 takes
    part because an episode may end. H is infinite: a truncated step bootstraps from its next
    observation, so that values count rewards behind the time limit, too. Only where episodes have
    ended and all of them by termination, H is ``max_steps``.

    Learned values are off by an error before anything is learned. ``is_exceeded`` leaves room for
    it; a divergence grows far beyond.

    Args:
        gamma: the discount of the loss.
        max_steps: the time limit of an episode.
        reward_scale: the factor of the loss on rewards.
        of_agents: the values are each agent's from its own reward, as without a mixer.
    """

    def __init__(
        self, *, gamma: float, max_steps: int, reward_scale: float = 1.0, of_agents: bool = False
    ) -> None:
        self._gamma = gamma
        self._max_steps = max_steps
        self._scale = reward_scale
        self._reward: NestedKey = next_key(AGENT_REWARD if of_agents else REWARD)
        self.least_reward = 0.0
        self.greatest_reward = 0.0
        self._terminates = False
        self._truncates = False

    def see(self, batch: TensorDictBase) -> None:
        """Take the rewards and ends of a batch [E, T] into account, but for its padding."""
        valid = batch.get(MASK)  # [E, T]
        reward = batch.get(self._reward).flatten(2)  # [E, T, M]
        reward = torch.where(valid.unsqueeze(-1), reward, 0)
        least, greatest = torch.stack(reward.aminmax()).tolist()
        self.least_reward = min(self.least_reward, least)
        self.greatest_reward = max(self.greatest_reward, greatest)
        done, terminated = (batch.get(next_key(key))[..., 0] & valid for key in (DONE, TERMINATED))
        self._terminates |= bool(terminated.any())
        self._truncates |= bool((done & ~terminated).any())

    @property
    def interval(self) -> tuple[float, float]:
        """The least and the greatest value."""
        n_steps = self._max_steps if self._terminates and not self._truncates else math.inf
        factor = self._scale * sum_of_discounts(self._gamma, n_steps)
        # 0 times infinity, of a discount of 1, is 0 here: without such rewards the sum is 0.
        low, high = (r * factor if r else 0.0 for r in (self.least_reward, self.greatest_reward))
        return low, high

    def excess(self, *values: float) -> float:
        """Return by how much the farthest of some values lies outside; 0 if all lie inside."""
        low, high = self.interval
        return max(0.0, *(max(value - high, low - value) for value in values))

    def is_exceeded(self, *values: float) -> bool:
        """Return whether a value is farther outside than errors of learning explain.

        None is before the first reward other than 0.
        """
        low, high = self.interval
        if low == high:
            return False
        above, below = SLACK + SHARE * abs(high), SLACK + SHARE * abs(low)
        return any(value - high > above or low - value > below for value in values)

    def state_dict(self) -> dict[str, Any]:
        """Return the rewards and ends that were seen."""
        return {
            "rewards": [self.least_reward, self.greatest_reward],
            "ends": [self._terminates, self._truncates],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self.least_reward, self.greatest_reward = state["rewards"]
        self._terminates, self._truncates = state["ends"]
