"""DRQN: an agent network with a recurrent memory."""

from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded
from torchrl.envs import TensorDictPrimer

from qmix_trl.agents import gru
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
from qmix_trl.keys import ACTION_VALUE, HIDDEN, IS_INIT, LAST_ACTION, OBSERVATION, next_key
from qmix_trl.native.networks import dense as dense_kernel
from qmix_trl.native.networks import gru as gru_kernel


class RecurrentAgent(TensorDictModuleBase):
    """``Linear -> ReLU -> GRU cell -> Linear`` for each agent.

    Source: Hausknecht and Stone 2015; QMIX, section 6 and appendix C.

    Called on a TensorDict it takes one step, for acting: it reads the observation, the hidden
    state, ``is_init`` and, if it is part of the input, the last action, and writes the action
    values and the next hidden state. ``unroll`` computes a whole sequence, for training, with the
    same results. Parameters have the names of the authors' code: ``fc1``, ``rnn`` and ``fc2``.

    Args:
        n_agents: N.
        observation_dim: O.
        n_actions: A.
        hidden_dim: H.
        layer_norm: normalise the outputs of the first layer, before its ReLU (PQN, section 4).
        share_parameters: agents share one network; if not, each has its own, stacked in
            dimension 0.
        use_last_action: the one-hot last action is part of the input.
        use_agent_id: the one-hot agent id is part of the input.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if a size is below 1.
    """

    out_keys = [ACTION_VALUE, next_key(HIDDEN)]
    libraries = (dense_kernel.library, gru_kernel.library)  # of unroll (``RunsInCpp``)

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        n_actions: int,
        *,
        hidden_dim: int = 64,
        layer_norm: bool = False,
        share_parameters: bool = True,
        use_last_action: bool = True,
        use_agent_id: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"RecurrentAgent: expected hidden_dim of at least 1, got {hidden_dim}")
        self.inputs = AgentInput(
            n_agents,
            observation_dim,
            n_actions,
            use_last_action=use_last_action,
            use_agent_id=use_agent_id,
        )
        self.n_actions = n_actions
        self.hidden_dim = hidden_dim
        to = {"device": device, "dtype": dtype}
        copies = None if share_parameters else n_agents
        self.fc1 = per_agent(partial(nn.Linear, self.inputs.dim, hidden_dim, **to), copies)
        self.layer_norm = layer_norm
        self.norm = None
        if layer_norm:
            self.norm = per_agent(partial(nn.LayerNorm, hidden_dim, **to), copies)
        self.rnn = per_agent(partial(nn.GRUCell, hidden_dim, hidden_dim, **to), copies)
        self.fc2 = per_agent(partial(nn.Linear, hidden_dim, n_actions, **to), copies)
        memory = {"hidden": Unbounded((n_agents, hidden_dim), dtype=dtype)}
        self.in_keys = [OBSERVATION, HIDDEN, IS_INIT]
        if use_last_action:
            memory["last_action"] = Unbounded((n_agents, n_actions), dtype=dtype)
            self.in_keys = [OBSERVATION, LAST_ACTION, HIDDEN, IS_INIT]
        self.memory_spec = Composite(agents=Composite(memory, shape=(n_agents,)))

    def __repr__(self) -> str:
        hidden = {"hidden_dim": self.hidden_dim, "layer_norm": self.layer_norm}
        return agent_repr(self, self.fc2, **hidden)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """Return the transform that carries the memory, under the name that TorchRL looks for."""
        return memory_primer(self.memory_spec)

    @dispatched
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Take one step: write action values [*B, N, A] and the next hidden state [*B, N, H]."""
        continues = ~carried(tensordict, IS_INIT)[..., 0]  # [*B]
        last_action = None
        if self.inputs.use_last_action:
            last_action = keep_where(continues, carried(tensordict, LAST_ACTION))
        values, hidden = self.step(
            tensordict[OBSERVATION],
            last_action,
            keep_where(continues, carried(tensordict, HIDDEN)),
        )
        tensordict.set(ACTION_VALUE, values)
        return tensordict.set(next_key(HIDDEN), hidden)

    def step(
        self, observation: Tensor, last_action: Tensor | None, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the action values and the next hidden state of one step.

        Args:
            observation: float [*B, N, O].
            last_action: float [*B, N, A], one-hot; not used without ``use_last_action``.
            hidden: float [*B, N, H].

        Returns:
            float [*B, N, A] and float [*B, N, H].
        """
        x, rnn = self.inputs(observation, last_action), self.rnn
        norm = None if self.norm is None else norm_of(self.norm)
        x = linear(x, self.fc1.weight, self.fc1.bias, relu=True, norm=norm)
        gates = linear(x, rnn.weight_ih, rnn.bias_ih)
        hidden = gru.cell(gates, hidden, rnn.weight_hh, rnn.bias_hh)
        return linear(hidden, self.fc2.weight, self.fc2.bias), hidden

    def unroll(
        self,
        observation: Tensor,
        last_action: Tensor | None,
        is_init: Tensor,
        hidden: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the action values and hidden states of a sequence.

        The hidden state is zero after a reset.

        Args:
            observation: float [B, T, N, O].
            last_action: float [B, T, N, A], one-hot, zeros after a reset; not used without
                ``use_last_action``.
            is_init: bool [B, T, 1], the observations that follow a reset.
            hidden: float [B, N, H], the hidden state before the first observation; None for zeros.

        Returns:
            float [B, T, N, A] and float [B, T, N, H], the hidden state after each step.
        """
        # Only the recurrent part depends on the step before; the rest needs no loop over T.
        x = self.inputs(observation, last_action)
        hiddens = gru.unroll(x, is_init, hidden, self.fc1, self.rnn, self.norm)
        return dense(hiddens, [(self.fc2.weight, self.fc2.bias)]), hiddens

    def network_layers(self) -> AgentLayers:
        """Return the layers in their order."""
        norms = [] if self.norm is None else [self.norm]
        return AgentLayers([self.fc1], self.rnn, self.fc2, norms)
