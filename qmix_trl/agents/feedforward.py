"""An agent network without memory, for tasks in which one observation suffices."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded
from torchrl.envs import TensorDictPrimer

from qmix_trl.agents.layers import (
    AgentInput,
    AgentLayers,
    agent_repr,
    carried,
    dispatched,
    memory_primer,
    norm_of,
    per_agent,
)
from qmix_trl.dense import dense, linear
from qmix_trl.functional import keep_where
from qmix_trl.keys import ACTION_VALUE, IS_INIT, LAST_ACTION, OBSERVATION
from qmix_trl.native.networks import dense as dense_kernel


class FeedforwardAgent(TensorDictModuleBase):
    """A perceptron with ReLUs for each agent, called like ``RecurrentAgent``.

    Args:
        n_agents: N.
        observation_dim: O.
        n_actions: A.
        hidden_dims: the width of each hidden layer.
        layer_norm: normalise the outputs of each hidden linear layer, before its ReLU (PQN,
            section 4).
        share_parameters: agents share one network; if not, each has its own, stacked in
            dimension 0.
        use_last_action: the one-hot last action is part of the input.
        use_agent_id: the one-hot agent id is part of the input.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if a size is below 1.
    """

    out_keys = [ACTION_VALUE]
    libraries = (dense_kernel.library,)  # of unroll (``RunsInCpp``)

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        n_actions: int,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        layer_norm: bool = False,
        share_parameters: bool = True,
        use_last_action: bool = False,
        use_agent_id: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(hidden_dims, default=1) < 1:
            raise ValueError(
                f"FeedforwardAgent: expected hidden_dims of at least 1, got {tuple(hidden_dims)}"
            )
        self.inputs = AgentInput(
            n_agents,
            observation_dim,
            n_actions,
            use_last_action=use_last_action,
            use_agent_id=use_agent_id,
        )
        self.n_actions = n_actions
        self.hidden_dims = tuple(hidden_dims)
        widths = [self.inputs.dim, *hidden_dims, n_actions]
        to = {"device": device, "dtype": dtype}
        copies = None if share_parameters else n_agents
        self.layers = nn.ModuleList(
            per_agent(partial(nn.Linear, n_in, n_out, **to), copies)
            for n_in, n_out in pairwise(widths)
        )
        self.norms = nn.ModuleList(
            per_agent(partial(nn.LayerNorm, width, **to), copies)
            for width in (hidden_dims if layer_norm else ())
        )
        self.layer_norm = layer_norm
        self.memory_spec = Composite()
        self.in_keys = [OBSERVATION]
        if use_last_action:
            last_action = Unbounded((n_agents, n_actions), dtype=dtype)
            self.memory_spec = Composite(
                agents=Composite(last_action=last_action, shape=(n_agents,))
            )
            self.in_keys = [OBSERVATION, LAST_ACTION, IS_INIT]

    def __repr__(self) -> str:
        hidden = {"hidden_dims": self.hidden_dims, "layer_norm": self.layer_norm}
        return agent_repr(self, self.layers[-1], **hidden)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """Return the transform that carries the memory, under the name that TorchRL looks for."""
        return memory_primer(self.memory_spec)

    @dispatched
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action values [*B, N, A] of one step."""
        last_action = None
        if self.inputs.use_last_action:
            continues = ~carried(tensordict, IS_INIT)[..., 0]  # [*B]
            last_action = keep_where(continues, carried(tensordict, LAST_ACTION))
        values, _ = self.step(tensordict[OBSERVATION], last_action, None)
        return tensordict.set(ACTION_VALUE, values)

    def step(
        self, observation: Tensor, last_action: Tensor | None, hidden: None
    ) -> tuple[Tensor, None]:
        """Return the action values of one step, and None for the hidden state.

        Args:
            observation: float [*B, N, O].
            last_action: float [*B, N, A], one-hot; not used without ``use_last_action``.
            hidden: None.

        Returns:
            float [*B, N, A] and None.
        """
        x = self.inputs(observation, last_action)
        *below, head = self.layers
        norms = map(norm_of, self.norms) if self.layer_norm else [None] * len(below)
        for layer, norm in zip(below, norms, strict=True):
            x = linear(x, layer.weight, layer.bias, relu=True, norm=norm)
        return linear(x, head.weight, head.bias), None

    def unroll(
        self, observation: Tensor, last_action: Tensor | None, is_init: Tensor, hidden: None
    ) -> tuple[Tensor, None]:
        """Return the action values of a sequence, and None for the hidden states.

        Each step is computed by itself.

        Args:
            observation: float [B, T, N, O].
            last_action: float [B, T, N, A], one-hot, zeros after a reset; not used without
                ``use_last_action``.
            is_init: bool [B, T, 1]; not used.
            hidden: None.

        Returns:
            float [B, T, N, A] and None.
        """
        x = self.inputs(observation, last_action)
        layers = [(layer.weight, layer.bias) for layer in self.layers]
        return dense(x, layers, [norm_of(norm) for norm in self.norms]), None

    def network_layers(self) -> AgentLayers:
        """Return the layers in their order."""
        *below, head = self.layers
        return AgentLayers(below, None, head, self.norms)
