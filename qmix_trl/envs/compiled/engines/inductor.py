"""The traced step compiled by torch's inductor: for steps that have no form for one environment."""

from collections.abc import Callable

import torch
from torch import Tensor

from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import all_numbers, as_bits, from_bits
from qmix_trl.envs.compiled.engines.pool import FreshStates, shares_draws
from qmix_trl.envs.compiled.trace.draws import draw
from qmix_trl.envs.compiled.trace.graph import N_RESULTS, TRACE_ENVS, StepGraph, variants
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.vmas_simulation import Seen, VmasSimulation

MOST_NODES = 8000  # inductor takes minutes for more


class InductorEngine:
    """Steps environments by the traced graph of a step of so many environments.

    Args:
        simulation: of E environments; it is traced.
        layout: of what is seen.
        max_steps: the time limit.
        seed: of the random streams.

    Raises:
        Untraceable: if the step is no pure function of tensors.
    """

    name = "inductor"

    def __init__(
        self, simulation: VmasSimulation, layout: SeenLayout, max_steps: int, seed: int
    ) -> None:
        self.graph = traced(simulation)
        self.layout = layout
        self.max_steps = max_steps
        rows = all_numbers(self.graph)
        shared = shares_draws(VmasSimulation(simulation.task, TRACE_ENVS, 0, simulation.device))
        step = CompiledStep(None, rows, layout, [], [], shared, {})
        self.fresh = FreshStates(simulation.task, simulation.n_envs, seed, step)
        for k, row in enumerate(rows):
            if not row.batched and (self.fresh.pool[:, k] != self.fresh.pool[0, k]).any():
                raise Untraceable(f"its resets change {row.path}, one for all environments")
        n_envs = simulation.n_envs
        self._state = self.fresh.pool[:n_envs, : len(rows)].clone()
        self._steps = torch.zeros(n_envs, dtype=torch.int32)
        self._resets = torch.zeros(n_envs, dtype=torch.int64)
        self._key = torch.tensor([seed % 2**32, 0])
        self._step = torch.compile(of_matrix(self.graph, layout), fullgraph=True, dynamic=False)

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Begin environments of a mask [E] anew; write what they see to seen [E, R]."""
        self.renew()
        rows = self.fresh.states_for(self._resets)  # [E, K + R]
        n = self._state.shape[1]
        self._state = torch.where(mask[:, None], rows[:, :n], self._state)
        seen.copy_(torch.where(mask[:, None], rows[:, n:], seen))
        self._steps.masked_fill_(mask, 0)
        self._resets += mask
        self.fresh.taken += int(mask.sum())

    def renew(self) -> None:
        """Draw the pool anew if it is through."""
        if self.fresh.is_due():
            self.fresh.renew()
            self._resets.zero_()

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of rows, by the actions that stand there."""
        for i in range(t, t + n_steps):
            numbers = self._numbers()
            out = self._step(self._state, buffers.action[:, i].clone(), numbers, self._key)
            seen, agent_reward, reward, terminated, self._state = out
            self._key[1] += 1
            self._steps += 1
            truncated = self._steps >= self.max_steps
            buffers.write(i, seen, agent_reward, reward, terminated, truncated)
            if reset_when_done and buffers.done[:, i].any():
                self.reset(buffers.done[:, i], buffers.seen[:, i + 1])

    def _numbers(self) -> list[Tensor]:
        first, numbers = 0, []
        for d in self.graph.draws:
            numbers.append(draw(d.kind, self._key, self.fresh.n_envs, first, d.shape))
            first += numbers[-1][0].numel()
        return numbers

    def jump(self, state: Tensor, key: Tensor) -> None:
        """Go on from a state [E, K], with the random numbers of a key [2] (``draws.py``)."""
        self._state, self._key = state.clone(), key.clone()

    def packed_state(self) -> Tensor:
        """Return the state, float32 [E, K]."""
        return self._state

    def seed(self, seed: int) -> None:
        """Begin other random streams."""
        self._key = torch.tensor([seed % 2**32, 0])
        self.fresh.reseed(seed)
        self._resets.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return all that the next steps depend on."""
        own = {"state": self._state, "steps": self._steps, "resets": self._resets}
        own = {name: tensor.clone() for name, tensor in own.items()}
        return {**own, "key": self._key.clone(), **self.fresh.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        self._state, self._key = state["state"].clone(), state["key"].clone()
        self._steps.copy_(state["steps"])
        self._resets.copy_(state["resets"])
        self.fresh.load_state(state)


def traced(simulation: VmasSimulation) -> StepGraph:
    """Return the graph of a step of as many environments as the simulation has.

    Raises:
        Untraceable: if there is none, or one for each choice of resets.
    """
    graphs = variants(simulation)
    if len(graphs) > 1:
        raise Untraceable("its resets make choices in Python")
    return graphs[0]


def of_matrix(graph: StepGraph, layout: SeenLayout) -> Callable[..., list[Tensor]]:
    """Return a step on the state as one matrix of bits, float32 [E, K]."""
    n_envs = graph.n_envs
    batched = [like.shape[:1] == (n_envs,) for like in graph.state]
    sizes = [
        like.numel() // (n_envs if b else 1) for like, b in zip(graph.state, batched, strict=True)
    ]

    def step(state: Tensor, action: Tensor, numbers: list[Tensor], key: Tensor) -> list[Tensor]:
        columns = state.split(sizes, 1)
        values = [
            from_bits(part, like, batched=b)
            for part, like, b in zip(columns, graph.state, batched, strict=True)
        ]
        out = graph.graph(*values, action, *numbers, key)
        observation, world, agent_reward, reward, terminated = out[:N_RESULTS]
        then = [
            as_bits(value.reshape(n_envs if b else 1, size), like.dtype).expand(n_envs, size)
            for value, like, b, size in zip(
                out[N_RESULTS:], graph.state, batched, sizes, strict=True
            )
        ]
        seen = layout.pack(Seen(observation, world))
        flat = [agent_reward[..., 0], reward[:, 0], terminated[:, 0]]
        return [seen, *flat, torch.cat(then, 1)]

    return step
