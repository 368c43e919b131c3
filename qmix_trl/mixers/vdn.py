"""Value decomposition networks: the joint value is the sum of the utilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qmix_trl.keys import CHOSEN_ACTION_VALUE


class VDNMixer(nn.Module):
    """Q_tot = sum over agents of Q_a (Sunehag et al. 2017, arXiv 1706.05296, equation 3).

    Args:
        n_agents: N, the number of utilities; None takes any number.
        state_shape: not used; all mixers are made with the same arguments.
        device: not used.
    """

    in_keys = (CHOSEN_ACTION_VALUE,)

    def __init__(
        self,
        n_agents: int | None = None,
        state_shape: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents

    def __repr__(self) -> str:
        return f"VDNMixer(n_agents={self.n_agents})"

    def forward(self, chosen_action_value: Tensor, state: Tensor | None = None) -> Tensor:
        """Return the joint value.

        Args:
            chosen_action_value: float [*B, N, 1], the utilities.
            state: not used; accepted so that VDN and QMIX are called alike.

        Returns:
            float [*B, 1].

        Raises:
            ValueError: if the utilities have another shape.
        """
        fits = chosen_action_value.dim() >= 2 and chosen_action_value.shape[-1] == 1
        if not fits or self.n_agents not in (None, chosen_action_value.shape[-2]):
            raise ValueError(
                f"VDNMixer: expected chosen_action_value of shape [*B, {self.n_agents or 'N'}, 1], "
                f"got {list(chosen_action_value.shape)}"
            )
        return chosen_action_value.sum(-2)
