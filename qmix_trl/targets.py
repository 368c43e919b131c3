"""Target networks: copied at every n-th gradient step, or moved a little at each."""

import torch
from tensordict import TensorDictBase
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater

from qmix_trl.loss import QMixLoss


class HardTargets(HardUpdate):
    """TorchRL's ``HardUpdate`` with its count in a tensor, so that a CUDA graph can hold its step.

    On a GPU the device itself chooses between copying and keeping; the CPU reads the count.
    """

    def __init__(self, loss: QMixLoss, *, value_network_update_interval: int) -> None:
        self._first = next(loss.parameters())  # tells where the networks are, also when they move
        self._count = torch.zeros((), dtype=torch.int64, device=self._first.device)
        super().__init__(loss, value_network_update_interval=value_network_update_interval)

    @property
    def counter(self) -> int:
        """The number of steps since the last copy; reading it waits for the device."""
        return int(self._count)

    @counter.setter
    def counter(self, value: int) -> None:
        self._count.fill_(value)  # in place: a graph counts on in this tensor

    def step(self) -> None:
        """Count a gradient step; copy the networks to their targets at every n-th."""
        self._count = self._count.to(self._first.device)
        if not self._first.is_cuda:
            super().step()
            return
        TargetNetUpdater.step(self)
        self._count.add_(1).remainder_(self.value_network_update_interval + 1)

    def _step(self, p_source: TensorDictBase, p_target: TensorDictBase) -> None:
        if not self._first.is_cuda:
            super()._step(p_source, p_target)
            return
        is_due = self._count == self.value_network_update_interval
        # Three launches for all parameters together; ``where`` would be one for each of them. Where
        # a network holds NaN, the product makes its target NaN at once, also when no copy is due.
        copied, kept = is_due.to(self._first.dtype), (~is_due).to(self._first.dtype)
        p_target.data.mul_(kept).add_(p_source.data.mul(copied))


class SoftTargets(SoftUpdate):
    """TorchRL's ``SoftUpdate``, all parameters by one operation."""

    def step(self) -> None:
        """Move the targets towards the networks."""
        targets, sources = (list(x.values(True, True)) for x in (self._targets, self._sources))
        get_ema_multi_avg_fn(self.eps)(targets, sources, 0)


# Updaters whose step a graph can hold. Others, as TorchRL's HardUpdate, may count in Python.
CAPTURABLE_UPDATERS = (HardTargets, SoftTargets, SoftUpdate)


def make_hard_updater(loss: QMixLoss, *, period_updates: int) -> HardTargets:
    """Return an updater that copies agent and mixer to their targets at every n-th gradient step.

    Args:
        loss: the loss whose targets are updated.
        period_updates: n.

    Raises:
        ValueError: if the period is below 1.
    """
    if period_updates < 1:
        raise ValueError(f"expected period_updates of at least 1, got {period_updates}")
    # HardUpdate copies at every (interval + 1)-th call.
    return HardTargets(loss, value_network_update_interval=period_updates - 1)


def make_soft_updater(loss: QMixLoss, *, tau: float) -> SoftTargets:
    """Return an updater that moves targets by ``tau`` of the way to agent and mixer at each step.

    Raises:
        ValueError: if tau is not in (0, 1].
    """
    if not 0 < tau <= 1:
        raise ValueError(f"expected tau in (0, 1], got {tau}")
    return SoftTargets(loss, tau=tau)
