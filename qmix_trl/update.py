"""One gradient step: loss, backward, clipping, optimiser, targets."""

import torch
from tensordict import TensorDictBase
from torch.nn.utils import clip_grad_norm_
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater

from qmix_trl.chosen import Chosen
from qmix_trl.cuda_graph import captured, warmed_up
from qmix_trl.errors import one_line
from qmix_trl.loss import QMixLoss
from qmix_trl.native.networks import library as networks

WARM_UP_STEPS = 3  # eager steps before a capture: optimiser state and cuBLAS set themselves up


class HardTargets(HardUpdate):
    """TorchRL's ``HardUpdate``; it counts its calls in Python: a CUDA graph cannot repeat
    that, so it steps outside."""

    steps_in_graph = False


class SoftTargets(SoftUpdate):
    """TorchRL's ``SoftUpdate``; a CUDA graph can hold its step."""

    steps_in_graph = True


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


class Update:
    """The gradient step on a batch, for agent and mixer together.

    On a GPU the whole step, except the period of a hard updater, is one CUDA graph: the first
    batches are stepped on eagerly, then a step is captured, and the graph is replayed for every
    batch of the same shape. A graph keeps the optimiser's settings of the moment of its capture.

    Args:
        loss: the loss whose parameters are trained.
        optimizer: over ``loss.parameters()``; ``capturable`` for a graph.
        target_updater: of the loss; it steps once per gradient step.
        max_grad_norm: the norm at which the gradient of agent and mixer together is clipped.
        compile: compile the loss by ``torch.compile``. On the CPU it gains nothing and takes half
            a minute; next to a graph there is little left to gain.
        cuda_graph: "auto": where the parameters are on a GPU, with eager steps if a step cannot
            be captured; True: a graph or an error; False: no graph.

    Raises:
        ValueError: if a graph is asked for without a GPU, or ``compile`` is not a boolean.
        RuntimeError: at the capture, if it fails and ``cuda_graph`` is True.
    """

    def __init__(
        self,
        loss: QMixLoss,
        optimizer: torch.optim.Optimizer,
        target_updater: TargetNetUpdater,
        *,
        max_grad_norm: float,
        compile: bool = False,
        cuda_graph: bool | str = "auto",
    ) -> None:
        if not isinstance(compile, bool):
            raise ValueError(f"Update: expected compile of True or False, got {compile!r}")
        self.loss = loss
        self.optimizer = optimizer
        self.target_updater = target_updater
        self.max_grad_norm = max_grad_norm
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._is_compiled = compile
        self._compute_loss = torch.compile(loss) if compile else loss
        self._must_be_graph = cuda_graph is True
        self._no_graph = None if cuda_graph else "cuda_graph is False"
        # TorchRL's own updaters do not say whether they can be captured.
        self._targets_in_graph = getattr(target_updater, "steps_in_graph", False)
        device = self._parameters[0].device
        if device.type != "cuda" and cuda_graph:
            self._no_graph = f"the parameters are on {device}"
            if self._must_be_graph:
                raise ValueError(f"Update: expected parameters on a GPU for a graph, got {device}")
        self._n_warm_up = 0
        self._static_batch: TensorDictBase | None = None  # the input of the graph

    @property
    def how(self) -> Chosen:
        """The implementation of the step, and why faster ones do not run.

        The answer is final once the C++ layers are built (it waits for a build under way) and,
        on a GPU, after the capture.
        """
        name = "torch.compile" if self._is_compiled else "torch's operations"
        first = self._parameters[0]
        if first.is_cuda:
            if self._no_graph is None:
                return Chosen("CUDA graph")
            return Chosen(name, {"CUDA graph": self._no_graph})
        if self._is_compiled:
            reason = "torch.compile traces torch's operations, but for a GRU over sequences"
        else:
            modules = (self.loss.agent, self.loss.mixer)
            reason = networks.why_not(self._parameters, *modules)
        if reason is None:
            return Chosen("layers in C++")
        return Chosen(name, {"layers in C++": reason})

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Take one step; return the loss's outputs, detached, and ``grad_norm`` before clipping."""
        outputs = self._step(batch) if self._no_graph else self._step_by_graph(batch)
        if not self._targets_in_graph:
            self.target_updater.step()
        return outputs

    def _step(self, batch: TensorDictBase) -> TensorDictBase:
        outputs = self._compute_loss(batch)
        for parameter in self._parameters:
            parameter.grad = None
        outputs.get("loss").backward()
        grad_norm = clip_grad_norm_(self._parameters, self.max_grad_norm)
        self.optimizer.step()
        if self._targets_in_graph:
            self.target_updater.step()
        return outputs.detach().set("grad_norm", grad_norm)

    def _step_by_graph(self, batch: TensorDictBase) -> TensorDictBase:
        if self._n_warm_up < WARM_UP_STEPS:
            self._n_warm_up += 1
            return warmed_up(lambda: self._step(batch))
        if self._static_batch is None:
            static = batch.clone()
            try:
                self._outputs, self._replay = captured(lambda: self._step(static))
            except RuntimeError as error:
                if self._must_be_graph:
                    raise
                self._no_graph = f"a step cannot be captured: {one_line(error)}"
                return self._step(batch)
            self._static_batch = static
        if batch.shape != self._static_batch.shape:
            return self._step(batch)
        self._static_batch.update_(batch)
        self._replay()
        return self._outputs.clone()
