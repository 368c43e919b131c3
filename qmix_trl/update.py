"""One gradient step: loss, backward, clipping, optimiser, targets."""

import torch
from tensordict import TensorDictBase
from torch.nn.utils import clip_grad_norm_
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater

from qmix_trl.loss import QMixLoss


def make_hard_updater(loss: QMixLoss, *, period_updates: int) -> HardUpdate:
    """Return an updater that copies agent and mixer to their targets at every n-th step.

    Args:
        loss: whose targets are updated.
        period_updates: n.

    Raises:
        ValueError: if the period is below 1.
    """
    if period_updates < 1:
        raise ValueError(f"expected period_updates of at least 1, got {period_updates}")
    # HardUpdate copies at every (interval + 1)-th call.
    return HardUpdate(loss, value_network_update_interval=period_updates - 1)


def make_soft_updater(loss: QMixLoss, *, tau: float) -> SoftUpdate:
    """Return an updater that moves targets by ``tau`` of the way to agent and mixer at each step.

    Raises:
        ValueError: if tau is not in (0, 1].
    """
    if not 0 < tau <= 1:
        raise ValueError(f"expected tau in (0, 1], got {tau}")
    return SoftUpdate(loss, tau=tau)


class Update:
    """The gradient step on a batch, agent and mixer together.

    Args:
        loss: whose parameters are trained.
        optimizer: over ``loss.parameters()``.
        target_updater: of the loss; called once a step.
        max_grad_norm: the norm that the gradient of agent and mixer together is clipped at.
    """

    def __init__(
        self,
        loss: QMixLoss,
        optimizer: torch.optim.Optimizer,
        target_updater: TargetNetUpdater,
        *,
        max_grad_norm: float,
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.target_updater = target_updater
        self.max_grad_norm = max_grad_norm
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Take one step; return the loss's outputs, detached, and ``grad_norm`` before clipping."""
        outputs = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        outputs.get("loss").backward()
        grad_norm = clip_grad_norm_(self._parameters, self.max_grad_norm)
        self.optimizer.step()
        self.target_updater.step()
        return outputs.detach().set("grad_norm", grad_norm)
