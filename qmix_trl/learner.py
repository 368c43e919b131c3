"""Gradient steps on samples of a replay buffer: on a GPU, sampling and steps in one CUDA graph."""

import math
import operator

import torch
from tensordict import TensorDictBase
from torchrl.data import PrioritizedSampler, TensorDictReplayBuffer

from qmix_trl.chosen import Chosen
from qmix_trl.errors import Refused
from qmix_trl.sampling import GraphSampler, samples
from qmix_trl.update import WARM_UP_STEPS, StepGraph, Update


class Learner:
    """K gradient steps, each on a fresh sample: ``update(replay.sample())`` K times.

    On a GPU all K samples and steps are one CUDA graph: the first ceil(``WARM_UP_STEPS`` / K) calls
    are eager, the next is captured, and later calls replay the graph, also while the buffer fills.
    It keeps the optimiser's settings of the moment of its capture; a learning rate that changes
    needs an update with ``cuda_graph=False``.

    Where the update is no graph, or the buffer is not as ``make_replay`` returns it, the steps
    are taken one by one. A buffer with a ``PrioritizedSampler`` gets the new priorities after each
    step; its loss has to write them.

    Args:
        update: takes a gradient step.
        replay: holds rows from the first call on.
        n_steps: K.

    Raises:
        ValueError: if K is below 1, or the buffer samples by priorities that the loss does not
            write.
    """

    def __init__(self, update: Update, replay: TensorDictReplayBuffer, *, n_steps: int) -> None:
        if n_steps < 1:
            raise ValueError(f"Learner: expected n_steps of at least 1, got {n_steps}")
        if isinstance(replay.sampler, PrioritizedSampler) and update.loss.write_priority is None:
            raise ValueError(
                "Learner: expected a loss that writes the priorities by which the buffer samples, "
                "got write_priority=None; make QMixLoss with write_priority='rows'"
            )
        self.update = update
        self.replay = replay
        self.n_steps = n_steps
        self._n_warm_up = math.ceil(WARM_UP_STEPS / n_steps)
        self._no_graph = update.no_graph
        if self._no_graph is None:
            try:
                self._sampler = self._graph_sampler()
            except Refused as refused:
                self._no_graph = str(refused)
        self._sources: tuple[object, object] = (None, None)  # that the graph reads

    def __repr__(self) -> str:
        return f"Learner({self.update!r},\n  {self.replay!r}, n_steps={self.n_steps})"

    def _graph_sampler(self) -> GraphSampler:
        """Return the sampler of the graph.

        Raises:
            Refused: if the graph cannot hold the target updater's step, or the sampling.
        """
        if not self.update.targets_in_graph:
            name = type(self.update.target_updater).__name__
            raise Refused(f"the target updater {name} may count its steps in Python")
        sampler = GraphSampler(self.replay)
        device = next(self.update.loss.parameters()).device
        if sampler.device.type != device.type:
            raise Refused(f"the replay buffer is on {sampler.device}, the parameters on {device}")
        return sampler

    @property
    def how(self) -> Chosen:
        """The implementation of the steps, and why faster ones do not run; see ``Update.how``."""
        name = self.update.graph_name(f"CUDA graph of {self.n_steps} x sample and step")
        how = self.update.how
        if self._no_graph is None:
            return Chosen(name, how.passed_over)
        if self.update.no_graph is not None:  # with the reason why there is no graph at all
            return how
        return Chosen(how.name, {name: self._no_graph, **how.passed_over})

    def __call__(self) -> TensorDictBase:
        """Take K steps; return their outputs as ``Update`` returns them, stacked to [K].

        Raises:
            RuntimeError: if the buffer is empty, or a capture fails and the update must be a graph.
            OutOfMemoryError: of torch, at the capture, if the device has no room for the graph.
        """
        if self._no_graph is None:
            try:
                return self._steps_by_graph()
            except Refused as refused:
                if self.update.must_be_graph:
                    raise RuntimeError(f"Learner: {refused}") from refused
                self._no_graph = str(refused)
        if self.update.loss.write_priority is not None:
            return torch.stack([self._step_by_priority() for _ in range(self.n_steps)])
        return torch.stack([self.update(batch) for batch in samples(self.replay, self.n_steps)])

    def _step_by_priority(self) -> TensorDictBase:
        """Take one step on a sample, and give the buffer the priorities that the loss writes."""
        batch = self.replay.sample()
        outputs = self.update(batch)
        self.replay.update_tensordict_priority(batch)
        return outputs

    def _steps_by_graph(self) -> TensorDictBase:
        """Take K steps by the graph, or before it is captured.

        Raises:
            Refused: if they cannot be captured.
        """
        self._sampler.count_rows()
        generator = self._sampler.generator
        sources = self._sampler.rows, generator
        if not all(map(operator.is_, sources, self._sources)):  # new ones, or the first ones
            self._sources = sources
            self._graph = StepGraph(
                self._sampled_steps,
                size=f"{self.n_steps} steps on samples of {self.replay.batch_size} rows",
                n_warm_up=self._n_warm_up,
                generators=[] if generator is None else [generator],
            )
        return self._graph()

    def _sampled_steps(self) -> TensorDictBase:
        """Take K steps by single operations, on samples that a graph can draw; return [K]."""
        sampler, step = self._sampler, self.update.step
        return torch.stack([step(sampler.sample()) for _ in range(self.n_steps)])
