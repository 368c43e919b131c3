"""The unrestricted mixer of Weighted QMIX, for values that no agent acts by."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from qmix_trl.chosen import named
from qmix_trl.dense import dense
from qmix_trl.keys import CHOSEN_ACTION_VALUE, STATE
from qmix_trl.mixers.sizes import StateShape, check_shapes, checked_state_shape
from qmix_trl.native.networks import dense as kernel


class CentralMixer(nn.Module):
    """The value Q* of Weighted QMIX (Rashid et al. 2020, arXiv 2006.10800, section 5).

    ``Q* = f(q, s) + V(s)``: f is a perceptron of two hidden layers, of three in the authors' code;
    V has one hidden layer.
    Nothing keeps it monotone, so it cannot be the mixer of ``QMixLoss``: the greedy joint action is
    not that of the agents. ``QMixLoss(weighting=...)`` learns it beside Q_tot.

    Args:
        n_agents: N, the number of utilities.
        state_shape: the shape of one state; an int is a vector of that size.
        embed_dim: the width of all hidden layers.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if a size is below 1.
    """

    in_keys = (CHOSEN_ACTION_VALUE, STATE)
    libraries = (kernel.library,)  # of forward (``RunsInCpp``)

    def __init__(
        self,
        n_agents: int,
        state_shape: StateShape,
        embed_dim: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.state_shape = checked_state_shape(
            "CentralMixer", state_shape, n_agents=n_agents, embed_dim=embed_dim
        )
        self.embed_dim = embed_dim
        state_dim = self.state_shape.numel()

        def perceptron(*widths: int) -> nn.ModuleList:
            sizes = pairwise(widths)
            return nn.ModuleList(nn.Linear(*size, device=device, dtype=dtype) for size in sizes)

        self.f = perceptron(state_dim + n_agents, embed_dim, embed_dim, 1)
        self.V = perceptron(state_dim, embed_dim, 1)

    def __repr__(self) -> str:
        arguments = {
            "n_agents": self.n_agents,
            "state_shape": tuple(self.state_shape),
            "embed_dim": self.embed_dim,
        }
        return f"CentralMixer({named(arguments)})"

    def forward(self, chosen_action_value: Tensor, state: Tensor) -> Tensor:
        """Return the joint value.

        Args:
            chosen_action_value: float [*B, N, 1], the central utilities of the joint action.
            state: float [*B, *state_shape].

        Returns:
            float [*B, 1].

        Raises:
            ValueError: if a shape differs from these.
        """
        batch = chosen_action_value.shape[:-2]
        check_shapes(
            "CentralMixer",
            chosen_action_value=(chosen_action_value, (*batch, self.n_agents, 1)),
            state=(state, (*batch, *self.state_shape)),
        )
        state = state.reshape(*batch, 1, -1)  # [*B, 1, S]
        joint = torch.cat([state, chosen_action_value.mT], -1)  # [*B, 1, S + N]
        of_both, of_state = (
            dense(x, [(layer.weight, layer.bias) for layer in layers])
            for x, layers in ((joint, self.f), (state, self.V))
        )
        return (of_both + of_state)[..., 0, :]
