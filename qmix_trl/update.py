"""One gradient step: loss, backward, clipping, optimiser, targets."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torchrl.objectives.utils import TargetNetUpdater

from qmix_trl.agents import gru_triton
from qmix_trl.chosen import Chosen
from qmix_trl.cuda_graph import captured, warmed_up
from qmix_trl.errors import Refused
from qmix_trl.loss import NETWORKS, QMixLoss
from qmix_trl.native.networks import library as networks
from qmix_trl.ranks import ALONE, Ranks
from qmix_trl.targets import CAPTURABLE_UPDATERS

MEANS = ("td_error", "total_value", "target_value")  # outputs over ``n_values``, as the loss
WARM_UP_STEPS = 3  # eager steps before a capture: optimiser state and cuBLAS set themselves up


class StepGraph:
    """Gradient steps that become one CUDA graph after their first calls.

    Args:
        steps: takes the steps and returns their outputs; it reads tensors that keep their places,
            and never waits for the device.
        size: of the steps, for errors, such as "a step on [32, 100]".
        n_warm_up: the number of calls before the capture.
        generators: that the steps draw from.
    """

    def __init__(
        self,
        steps: Callable[[], TensorDictBase],
        *,
        size: str,
        n_warm_up: int,
        generators: Iterable[torch.Generator] = (),
    ) -> None:
        self._steps = steps
        self._size = size
        self._n_warm_up = n_warm_up
        self._generators = generators
        self._captured: tuple[TensorDictBase, Callable[[], None]] | None = None

    def __call__(self) -> TensorDictBase:
        """Take the steps; return their outputs.

        Raises:
            Refused: if the steps cannot be captured; none is taken then.
            OutOfMemoryError: of torch, if the device has no room for the graph.
        """
        if self._n_warm_up > 0:
            self._n_warm_up -= 1
            return warmed_up(self._steps)
        if self._captured is None:
            self._captured = self._capture()
        outputs, replay = self._captured
        replay()
        return outputs.clone()

    def _capture(self) -> tuple[TensorDictBase, Callable[[], None]]:
        """Capture the steps; return their static outputs and a function to replay them.

        Raises:
            Refused: if they cannot be captured.
            OutOfMemoryError: of torch, if the device has no room.
        """
        try:
            return captured(self._steps, self._generators)
        except torch.OutOfMemoryError as error:
            # Eager steps would need much of the same memory, and be slower without a word.
            raise torch.OutOfMemoryError(
                f"a CUDA graph of {self._size} is out of memory: {error}"
            ) from None
        except RuntimeError as error:
            raise Refused(f"{self._size} cannot be captured: {error}") from error


class Update:
    """The gradient step on a batch, for agent and mixer together.

    On a GPU the whole step is one CUDA graph: the first batches are stepped on eagerly, then a
    step is captured, and the graph is replayed for every batch of the same shape. A graph keeps
    the optimiser's settings of the moment of its capture. A target updater that is neither of
    ``targets.py`` nor TorchRL's ``SoftUpdate`` steps outside of the graph.

    Args:
        loss: the loss whose parameters are trained.
        optimizer: over ``loss.parameters()``; ``capturable`` for a graph.
        target_updater: of the loss; it steps once per gradient step.
        max_grad_norm: the norm at which the gradient of agent and mixer together is clipped.
        compile: compile the loss by ``torch.compile``. On the CPU it gains nothing and takes half
            a minute; next to a graph there is little left to gain.
        cuda_graph: "auto": where the parameters are on a GPU, with eager steps if a step cannot
            be captured; True: a graph or an error; False: no graph.
        ranks: the processes that step together, each on a batch of its own. Their step is that on
            all batches joined, also where valid steps differ in number: gradients of sums are
            added and divided by the number of all values. They begin with the first rank's
            parameters and targets. Several ranks take no graph.

    Raises:
        ValueError: if the target updater is of another loss, a graph is asked for without a GPU,
            with an optimiser that is not capturable or a loss that writes priorities, or
            ``compile`` is not a boolean.
        RuntimeError: at the capture, if it fails and ``cuda_graph`` is True.
        OutOfMemoryError: of torch, at the capture, if the device has no room for the graph.

    Attributes:
        no_graph: the reason why steps are no CUDA graph; None where they are, or will be.
        must_be_graph: whether a failed capture is an error.
        targets_in_graph: whether a graph can hold the target updater's step.
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
        ranks: Ranks = ALONE,
    ) -> None:
        if not isinstance(compile, bool):
            raise ValueError(f"Update: expected compile of True or False, got {compile!r}")
        self.loss = loss
        self.optimizer = optimizer
        self.target_updater = target_updater
        if not max_grad_norm > 0:
            raise ValueError(f"Update: expected max_grad_norm above 0, got {max_grad_norm}")
        self._check_target_updater()
        self.max_grad_norm = max_grad_norm
        self.targets_in_graph = type(target_updater) in CAPTURABLE_UPDATERS
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._is_compiled = compile
        self._compute_loss = torch.compile(loss) if compile else loss
        self.ranks = ranks
        self._join(ranks)
        self.must_be_graph = cuda_graph is True
        self.no_graph = self._reason_against_graph() if cuda_graph else "cuda_graph is False"
        self._graph: tuple[TensorDictBase, StepGraph] | None = None  # with its static input

    def _check_target_updater(self) -> None:
        """Refuse a target updater of another loss, which would leave this one's targets alone.

        Raises:
            ValueError: if it is one.
        """
        updater = self.target_updater
        updated = getattr(updater, "loss_module", self.loss)
        if updated is not self.loss or not hasattr(updater, "step"):
            raise ValueError(
                "Update: expected a target updater of this loss, such as "
                f"make_soft_updater(loss, tau=0.01), got {type(updater).__name__} of another"
            )

    def _join(self, ranks: Ranks) -> None:
        """Begin with the first rank's numbers, and bound targets by the rewards of all ranks."""
        if ranks.size == 1:
            return
        for tensor in _tensors(self.loss):
            ranks.copy_first(tensor)
        if self.loss.bound is not None:
            self.loss.bound.ranks = ranks

    def fingerprint(self) -> str:
        """Return a hash of parameters, targets and reward bounds, which are equal in all ranks."""
        found = hashlib.sha256()
        for tensor in _tensors(self.loss):
            found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    def __repr__(self) -> str:
        parts = self.loss, self.optimizer, self.target_updater
        names = ", ".join(type(part).__name__ for part in parts)
        rate = self.optimizer.param_groups[0]["lr"]
        return f"Update({names}, lr={rate}, max_grad_norm={self.max_grad_norm}; {self.how.name})"

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the loss with its targets, the optimiser and the target updater."""
        return {
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "target_updater": self.target_updater.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``, before the first step: a graph keeps its tensors."""
        self.loss.load_state_dict(state_dict["loss"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.target_updater.load_state_dict(state_dict["target_updater"])

    def _reason_against_graph(self) -> str | None:
        """Return the reason why no step can be captured, or None.

        Raises:
            ValueError: if there is one and the step must be a graph.
        """
        first, optimizer = self._parameters[0], self.optimizer
        if not first.is_cuda:
            if self.must_be_graph:
                raise ValueError(
                    f"Update: expected parameters on a GPU for a graph, got {first.device}; move "
                    "agent and mixer there, or take cuda_graph='auto'"
                )
            return f"the parameters are on {first.device}"
        if self.loss.write_priority is not None:
            reason = "the loss writes priorities to its batch, and a graph has one of its own"
            if self.must_be_graph:
                raise ValueError(
                    f"Update: {reason}; take write_priority=None and the output 'priority', or "
                    "cuda_graph='auto'"
                )
            return reason
        if self.ranks.size > 1:
            reason = f"{self.ranks.size} ranks add their gradients in each step, outside of a graph"
            if self.must_be_graph:
                raise ValueError(f"Update: {reason}; take cuda_graph='auto'")
            return reason
        if all(group.get("capturable", True) for group in optimizer.param_groups):
            return None
        name, remedy = type(optimizer).__name__, "make it with capturable=True"
        if self.must_be_graph:
            raise ValueError(
                f"Update: expected an optimizer that a CUDA graph can hold, got {name} with "
                f"capturable=False; {remedy}, or take cuda_graph=False"
            )
        reason = f"the optimizer is not capturable; {remedy}"
        warnings.warn(f"Update: no CUDA graph: {reason}", stacklevel=3)
        return reason

    @property
    def how(self) -> Chosen:
        """The implementation of the step, and why faster ones do not run.

        The answer is final once the C++ layers are built (it waits for a build under way) and,
        on a GPU, after the capture.
        """
        name = "torch.compile" if self._is_compiled else "torch's operations"
        first = self._parameters[0]
        if first.is_cuda:
            passed_over = self._without_kernel()
            if self.no_graph is None:
                return Chosen(self.graph_name("CUDA graph"), passed_over)
            return Chosen(name, {"CUDA graph": self.no_graph, **passed_over})
        if self._is_compiled:
            reason = "torch.compile traces torch's operations, but for a GRU over sequences"
        else:
            modules = (getattr(self.loss, name) for name in NETWORKS)
            reason = networks.why_not(self._parameters, *modules)
        if reason is None:
            return Chosen("layers in C++")
        return Chosen(name, {"layers in C++": reason})

    def graph_name(self, name: str) -> str:
        """Return the name of a graph of steps, which says whether the loss is compiled."""
        return f"{name}, compiled" if self._is_compiled else name

    def _without_kernel(self) -> dict[str, str]:
        """Return why the agent's GRU has no kernel on a GPU, by its name; empty if it has."""
        layers = getattr(self.loss.agent, "network_layers", None)
        rnn = None if layers is None else layers().rnn
        reason = None if rnn is None else gru_triton.why_not(rnn)
        return {} if reason is None else {"GRU kernel": reason}

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Take one step; return the loss's outputs, detached, and ``grad_norm`` before clipping."""
        if self.no_graph is not None:
            return self.step(batch)
        if self._graph is None:
            self._graph = self._make_graph(batch.clone())
        static_batch, graph = self._graph
        if batch.shape != static_batch.shape:
            return self.step(batch)
        static_batch.update_(batch)
        try:
            outputs = graph()
        except Refused as refused:
            if self.must_be_graph:
                raise RuntimeError(f"Update: {refused}") from refused
            self.no_graph = str(refused)
            return self.step(batch)
        if not self.targets_in_graph:
            self.target_updater.step()
        return outputs

    def _make_graph(self, batch: TensorDictBase) -> tuple[TensorDictBase, StepGraph]:
        """Return a batch and the graph of a step on it, not captured yet."""
        step = self.step if self.targets_in_graph else self._step_networks
        size = f"a step on {list(batch.shape)}"
        return batch, StepGraph(lambda: step(batch), size=size, n_warm_up=WARM_UP_STEPS)

    def step(self, batch: TensorDictBase) -> TensorDictBase:
        """Take one step by single operations, with the outputs of a call."""
        outputs = self._step_networks(batch)
        self.target_updater.step()
        return outputs

    def _step_networks(self, batch: TensorDictBase) -> TensorDictBase:
        """Take one step of agent and mixer, without their targets."""
        outputs = self._compute_loss(batch)
        for parameter in self._parameters:
            parameter.grad = None
        if self.ranks.size == 1:
            outputs.get("loss").backward()
        else:
            self._backward_over_ranks(outputs)
        grad_norm = clip_grad_norm_(self._parameters, self.max_grad_norm)
        self.optimizer.step()
        return outputs.detach().set("grad_norm", grad_norm)

    def _backward_over_ranks(self, outputs: TensorDictBase) -> None:
        """Set the gradient, and the outputs, of the batches of all ranks joined.

        Only ``priority`` stays that of the rank's own rows.
        """
        is_mean = self.loss.reduction == "mean"
        loss, n_values = outputs.get("loss"), outputs.get("n_values")
        loss = loss * n_values if is_mean else loss  # of a sum
        loss.backward()
        means = [outputs.get(key) * n_values for key in MEANS]
        trained = [p for p in self._parameters if p.grad is not None]
        summed = torch.cat(  # one buffer, as each transfer has its latency
            [
                torch.stack([n_values, *means, loss.detach()]).to(loss.dtype),
                *(p.grad.flatten() for p in trained),
            ]
        )
        self.ranks.add(summed)
        found = summed[0].clamp(min=1)
        summed[1 : 1 + len(MEANS)] /= found
        if is_mean:
            summed[1 + len(MEANS) :] /= found
        numbers, *gradients = summed.split([2 + len(MEANS), *(p.numel() for p in trained)])
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        for key, number in zip(("n_values", *MEANS, "loss"), numbers, strict=True):
            outputs.set(key, number.to(outputs.get(key).dtype))


def _tensors(loss: QMixLoss) -> list[Tensor]:
    """Return parameters, targets and other buffers of a loss, which share their memory with it."""
    return [x for x in loss.state_dict().values() if isinstance(x, Tensor)]
