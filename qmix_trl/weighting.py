"""The weights of Weighted QMIX, and the central value that they and its targets need."""

from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Weighted QMIX for ``QMixLoss`` (Rashid et al. 2020, arXiv 2006.10800).

    The central value Q* is that of ``mixer`` over the utilities of ``agent``. Both learn the same
    targets as Q_tot, unweighted; no agent acts by them.

    Attributes:
        kind: "central" (CW-QMIX, equation 8) or "optimistic" (OW-QMIX, equation 7).
        alpha: the weight of the other joint actions, in (0, 1]; 1 weights all alike.
        agent: another agent of the same sizes as the one that acts.
        mixer: an unrestricted mixer, such as ``mixers.central.CentralMixer``.

    Raises:
        ValueError: if ``kind`` or ``alpha`` is out of its range.
    """

    kind: str
    alpha: float
    agent: TensorDictModuleBase
    mixer: nn.Module

    def __post_init__(self) -> None:
        if self.kind not in ("central", "optimistic"):
            raise ValueError(f"Weighting: expected kind of central, optimistic, got {self.kind!r}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"Weighting: expected alpha in (0, 1], got {self.alpha}")


def optimistic_weights(error: Tensor, alpha: float) -> Tensor:
    """Return 1 where Q_tot is below its target, else alpha: OW-QMIX, equation 7.

    Args:
        error: float [B, T, 1], Q_tot less its target.
        alpha: in (0, 1].
    """
    return torch.where(error < 0, torch.ones_like(error), alpha)


def central_weights(
    is_greedy: Tensor, target: Tensor, greedy_value: Tensor, alpha: float
) -> Tensor:
    """Return 1 for joint actions that may be the best ones, else alpha: CW-QMIX, equation 8.

    They are the greedy joint action, and any whose target is above the central value of that.

    Args:
        is_greedy: bool [B, T, 1], whether all agents took their greedy actions.
        target: float [B, T, 1].
        greedy_value: float [B, T, 1], the central value of the greedy joint action.
        alpha: in (0, 1].
    """
    return torch.where(is_greedy | (target > greedy_value), torch.ones_like(target), alpha)
