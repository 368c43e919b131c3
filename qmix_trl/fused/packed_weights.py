"""An agent network's weights in the order in which ``policy.h`` reads them."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmix_trl.agents import FeedforwardAgent, RecurrentAgent


class Linear(ctypes.Structure):
    """``Linear`` of ``networks.h``."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    ]


class Network:
    """Copies of an agent's weights; their memory lives as long as this does.

    G is 1 where agents share their weights, else N; K is a multiple of the lanes.

    Args:
        agent: float32 on the CPU.
        lanes: how many outputs are computed at a time.

    Attributes:
        layers: those with ReLUs, from the bottom up.
        gates: of a GRU's reset and update gates, of both inputs side by side; None without one.
        new_input: of its candidate, of the input from below; None without one.
        new_recurrent: of its candidate, of the hidden state; None without one.
        head: of the action values.
        shared: agents share their weights.
        width: the most numbers that any of them reads or writes.
    """

    def __init__(self, agent: RecurrentAgent | FeedforwardAgent, lanes: int) -> None:
        self._lanes = lanes
        self._held: list[Tensor] = []
        self.width = agent.inputs.dim
        self.gates = self.new_input = self.new_recurrent = None
        n = agent.inputs.dim
        if isinstance(agent, RecurrentAgent):
            below, head = [agent.fc1], agent.fc2
        else:
            *below, head = agent.layers
        self.layers: list[Linear] = []
        for layer in below:
            self.layers.append(self._linear(self._weight(layer.weight, n), self._bias(layer.bias)))
            n = self.layers[-1].outputs
        if isinstance(agent, RecurrentAgent):
            self._add_gru(agent.rnn)
        self.shared = head.weight.dim() == 2
        self.head = self._linear(self._weight(head.weight, n), self._bias(head.bias))

    def _add_gru(self, cell: nn.Module) -> None:
        n = cell.weight_hh.shape[-1]
        filled = -(-n // self._lanes) * self._lanes
        # Three each, of the reset gate, the update gate and the candidate.
        of_input, of_hidden = (
            [self._weight(part, filled) for part in weight.split(n, -2)]
            for weight in (cell.weight_ih, cell.weight_hh)
        )
        input_bias, hidden_bias = (
            [self._bias(part) for part in bias.split(n, -1)]
            for bias in (cell.bias_ih, cell.bias_hh)
        )
        both = [torch.cat(pair, -1) for pair in zip(of_input, of_hidden, strict=True)]
        bias = [x + h for x, h in zip(input_bias, hidden_bias, strict=True)]
        self.gates = self._linear(torch.cat(both[:2], -2), torch.cat(bias[:2], -1))
        self.new_input = self._linear(of_input[2], input_bias[2])
        self.new_recurrent = self._linear(of_hidden[2], hidden_bias[2])

    def _weight(self, weight: Tensor, n_inputs: int) -> Tensor:
        """Return a weight [H, D] or [N, H, D] as [G, K, n_inputs], filled up with zeros."""
        *_, height, width = weight.shape
        filled = F.pad(weight.detach(), (0, n_inputs - width, 0, -height % self._lanes))
        return filled if filled.dim() == 3 else filled[None]

    def _bias(self, bias: Tensor) -> Tensor:
        """Return a bias [H] or [N, H] as [G, K], filled up with zeros."""
        filled = F.pad(bias.detach(), (0, -bias.shape[-1] % self._lanes))
        return filled if filled.dim() == 2 else filled[None]

    def _linear(self, weight: Tensor, bias: Tensor) -> Linear:
        """Return a layer of a weight [G, K, D] and a bias [G, K]."""
        _, n_outputs, n_inputs = weight.shape
        panels = weight.unflatten(1, (-1, self._lanes)).transpose(2, 3).contiguous()
        bias = bias.contiguous()
        self._held += [panels, bias]
        self.width = max(self.width, n_inputs, n_outputs)
        return Linear(panels.data_ptr(), bias.data_ptr(), n_inputs, n_outputs)


def array(layers: Sequence[Linear]) -> ctypes.Array:
    """Return layers one behind the other."""
    return (Linear * len(layers))(*layers)
