"""What agent networks share: their input, and layers whose weights agents share or own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class AgentInput(nn.Module):
    """``[observation, one-hot last action, one-hot agent id]``, the latter two if asked for.

    Args:
        n_agents: N.
        observation_dim: O.
        n_actions: A.
        use_last_action: append the one-hot last action.
        use_agent_id: append the one-hot agent id.

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
        """Return the input of every agent.

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
    """Return the layer, or one with ``n_copies`` independent draws of every parameter stacked.

    Args:
        make_layer: makes the layer, newly initialised at each call.
        n_copies: None for one set of weights that agents share, else N; a parameter of shape
            ``[..]`` then has shape ``[N, ..]`` under the same name.
    """
    layer = make_layer()
    if n_copies is not None:
        draws = [make_layer() for _ in range(n_copies)]
        for name, _ in list(layer.named_parameters()):
            stacked = torch.stack([draw.get_parameter(name).detach() for draw in draws])
            setattr(layer, name, nn.Parameter(stacked))
    return layer
