"""One gradient step: loss, backward, clipping, optimiser, targets."""

import torch
from tensordict import TensorDictBase
from torch.nn.utils import clip_grad_norm_
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater

from qmix_trl.cuda_graph import captured, warmed_up
from qmix_trl.errors import one_line
from qmix_trl.loss import QMixLoss

WARM_UP_STEPS = 3  # in which what is set up once, is


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

    On a GPU all of it, but for the period of a hard updater, is one CUDA graph: the first batches
    are stepped on as elsewhere, then a step is captured, and replayed for every batch of the same
    shape. A graph holds the optimiser's settings of that time.

    Args:
        loss: whose parameters are trained.
        optimizer: over ``loss.parameters()``; ``capturable`` for a graph.
        target_updater: of the loss; called once a step.
        max_grad_norm: the norm that the gradient of agent and mixer together is clipped at.
        compile: the loss by ``torch.compile``; "auto" is no, as on the CPU it gains nothing and
            takes minutes, and a graph leaves little to gain.
        cuda_graph: "auto" where the parameters are on a GPU, and by operation where a step cannot
            be captured; True, or an error; False, never.

    Attributes:
        no_graph: why steps are no graph, in one line; None where they are, or will be.

    Raises:
        ValueError: if a graph is asked for without a GPU.
        RuntimeError: when a step is to be captured, if it cannot be and ``cuda_graph`` is True.
    """

    def __init__(
        self,
        loss: QMixLoss,
        optimizer: torch.optim.Optimizer,
        target_updater: TargetNetUpdater,
        *,
        max_grad_norm: float,
        compile: bool | str = "auto",
        cuda_graph: bool | str = "auto",
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.target_updater = target_updater
        self.max_grad_norm = max_grad_norm
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._compute_loss = torch.compile(loss) if compile is True else loss
        self._must_be_graph = cuda_graph is True
        self.no_graph = None if cuda_graph else "as asked for"
        device = self._parameters[0].device
        if device.type != "cuda" and cuda_graph:
            self.no_graph = f"the parameters are on {device}"
            if self._must_be_graph:
                raise ValueError(f"Update: no CUDA graph: {self.no_graph}")
        self._n_warm_up = 0
        self._batch: TensorDictBase | None = None  # of the graph

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Take one step; return the loss's outputs, detached, and ``grad_norm`` before clipping."""
        step = self._step if self.no_graph else self._step_by_graph
        outputs = step(batch)
        if not self._updates_in_step:
            self.target_updater.step()
        return outputs

    @property
    def _updates_in_step(self) -> bool:
        return isinstance(self.target_updater, SoftUpdate)  # the other counts calls in Python

    def _step(self, batch: TensorDictBase) -> TensorDictBase:
        outputs = self._compute_loss(batch)
        for parameter in self._parameters:
            parameter.grad = None
        outputs.get("loss").backward()
        grad_norm = clip_grad_norm_(self._parameters, self.max_grad_norm)
        self.optimizer.step()
        if self._updates_in_step:
            self.target_updater.step()
        return outputs.detach().set("grad_norm", grad_norm)

    def _step_by_graph(self, batch: TensorDictBase) -> TensorDictBase:
        if self._n_warm_up < WARM_UP_STEPS:
            self._n_warm_up += 1
            return warmed_up(lambda: self._step(batch))
        if self._batch is None:
            static = batch.clone()
            try:
                self._outputs, self._replay = captured(lambda: self._step(static))
            except RuntimeError as error:
                if self._must_be_graph:
                    raise
                self.no_graph = f"a step cannot be captured: {one_line(error)}"
                return self._step(batch)
            self._batch = static
        if batch.shape != self._batch.shape:
            return self._step(batch)
        self._batch.update_(batch)
        self._replay()
        return self._outputs.clone()
