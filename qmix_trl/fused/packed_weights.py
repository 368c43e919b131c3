"""An agent network's weights, packed into the panels that ``policy.h`` reads."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmix_trl.agents.layers import AgentLayers
from qmix_trl.native.networks.layers import Linear, Norms


class PackedWeights:
    """Packed copies of an agent's weights; their memory lives as long as this object.

    Shapes: G is 1 where agents share their weights, else N; K is a multiple of the lanes.

    Args:
        network: layers in float32 on the CPU.
        n_inputs: the size of an agent's input.
        lanes: the number of outputs in a panel.

    Attributes:
        layers: those with ReLUs, from the input on.
        norms: the layer norms of these.
        gates: a GRU's reset and update gates, from both its inputs side by side; None without one.
        new_input: the part of a GRU's candidate from the layer below; None without one.
        new_recurrent: the part of a GRU's candidate from the hidden state; None without one.
        head: to the action values.
        shared: agents share their weights.
        hidden_dim: H; 0 without a GRU.
        stride: the most numbers that any layer reads or writes for a sample.
    """

    def __init__(self, network: AgentLayers, n_inputs: int, lanes: int) -> None:
        self._lanes = lanes
        self._held: list[Tensor] = []
        self.stride = n_inputs
        self.layers: list[Linear] = []
        for layer in network.below:
            packed = self._linear(self._weight(layer.weight, n_inputs), self._bias(layer.bias))
            self.layers.append(packed)
            n_inputs = packed.outputs
        of_norms = [p for norm in network.norms for p in (norm.weight, norm.bias)]
        self.norms = Norms(of_norms, with_gradients=False)
        self.hidden_dim = 0
        self.gates = self.new_input = self.new_recurrent = None
        if network.rnn is not None:
            self._add_gru(network.rnn)
        head = network.head
        self.shared = head.weight.dim() == 2
        self.head = self._linear(self._weight(head.weight, n_inputs), self._bias(head.bias))

    def _add_gru(self, cell: nn.Module) -> None:
        n = self.hidden_dim = cell.weight_hh.shape[-1]
        padded = -(-n // self._lanes) * self._lanes
        # Three parts each: reset gate, update gate, candidate.
        input_weights = [self._weight(part, padded) for part in cell.weight_ih.split(n, -2)]
        hidden_weights = [self._weight(part, padded) for part in cell.weight_hh.split(n, -2)]
        input_biases = [self._bias(part) for part in cell.bias_ih.split(n, -1)]
        hidden_biases = [self._bias(part) for part in cell.bias_hh.split(n, -1)]
        gate_weights = [
            torch.cat([input_weights[gate], hidden_weights[gate]], -1) for gate in (0, 1)
        ]
        gate_biases = [input_biases[gate] + hidden_biases[gate] for gate in (0, 1)]
        self.gates = self._linear(torch.cat(gate_weights, -2), torch.cat(gate_biases, -1))
        self.new_input = self._linear(input_weights[2], input_biases[2])
        self.new_recurrent = self._linear(hidden_weights[2], hidden_biases[2])

    def _weight(self, weight: Tensor, n_inputs: int) -> Tensor:
        """Return a weight [H, D] or [N, H, D] as [G, K, n_inputs], padded with zeros."""
        *_, height, width = weight.shape
        padded = F.pad(weight.detach(), (0, n_inputs - width, 0, -height % self._lanes))
        return padded if padded.dim() == 3 else padded[None]

    def _bias(self, bias: Tensor) -> Tensor:
        """Return a bias [H] or [N, H] as [G, K], padded with zeros."""
        padded = F.pad(bias.detach(), (0, -bias.shape[-1] % self._lanes))
        return padded if padded.dim() == 2 else padded[None]

    def _linear(self, weight: Tensor, bias: Tensor) -> Linear:
        """Return the packed layer of a weight [G, K, D] and a bias [G, K]."""
        _, n_outputs, n_inputs = weight.shape
        panels = weight.unflatten(1, (-1, self._lanes)).transpose(2, 3).contiguous()
        bias = bias.contiguous()
        self._held += [panels, bias]
        self.stride = max(self.stride, n_inputs, n_outputs)
        return Linear(
            weight=panels.data_ptr(), bias=bias.data_ptr(), inputs=n_inputs, outputs=n_outputs
        )


def array(layers: Sequence[Linear]) -> ctypes.Array:
    """Return a C array of layers."""
    return (Linear * len(layers))(*layers)
