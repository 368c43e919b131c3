"""Parts of agent networks: their input, and layers whose weights agents share or own."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class AgentLayers(NamedTuple):
    """The layers of an agent network, for kernels that compute it without torch.

    Attributes:
        below: linear layers, each followed by a ReLU, from the input on.
        rnn: a GRU cell after these; None for none.
        head: the linear layer to the action values.
    """

    below: Sequence[nn.Module]
    rnn: nn.Module | None
    head: nn.Module


class AgentInput(nn.Module):
    """The input of an agent network: observation, last action and agent id side by side.

    Last action and agent id are one-hot, and optional.

    Args:
        n_agents: N.
        observation_dim: O.
        n_actions: A.
        use_last_action: append the one-hot last action.
        use_agent_id: append the one-hot agent id.

    Attributes:
        dim: the size of one agent's input.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        n_actions: int,
        *,
        use_last_action: bool,
        use_agent_id: bool,
    ) -> None:
        super().__init__()
        if min(n_agents, observation_dim, n_actions) < 1:
            raise ValueError(
                "expected n_agents, observation_dim and n_actions of at least 1, got "
                f"{n_agents}, {observation_dim} and {n_actions}"
            )
        self.use_last_action = use_last_action
        self.use_agent_id = use_agent_id
        self.n_agents = n_agents
        self.observation_dim = observation_dim
        self.dim = observation_dim + use_last_action * n_actions + use_agent_id * n_agents

    def forward(self, observation: Tensor, last_action: Tensor | None) -> Tensor:
        """Return the inputs of all agents.

        Args:
            observation: float [*B, N, O].
            last_action: float [*B, N, A], one-hot; not used without ``use_last_action``.

        Returns:
            float [*B, N, dim].
        """
        parts = [observation]
        if self.use_last_action:
            parts.append(last_action)
        if self.use_agent_id:
            identity = torch.eye(self.n_agents, device=observation.device, dtype=observation.dtype)
            parts.append(identity.expand(*observation.shape[:-1], -1))
        return torch.cat(parts, -1)


def per_agent(make_layer: Callable[[], nn.Module], n_copies: int | None) -> nn.Module:
    """Return a layer that agents share, or one with the parameters of N layers stacked.

    Args:
        make_layer: returns a layer with new random parameters at each call.
        n_copies: None for one set of weights that agents share, else N: a parameter of shape
            ``[..]`` then has shape ``[N, ..]`` under the same name, drawn for each agent.
    """
    layer = make_layer()
    if n_copies is not None:
        draws = [make_layer() for _ in range(n_copies)]
        for name, _ in list(layer.named_parameters()):
            stacked = torch.stack([draw.get_parameter(name).detach() for draw in draws])
            setattr(layer, name, nn.Parameter(stacked))
    return layer
