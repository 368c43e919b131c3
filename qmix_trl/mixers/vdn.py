"""Value decomposition networks: the joint value is the sum of the utilities."""

from torch import Tensor, nn

from qmix_trl.keys import CHOSEN_ACTION_VALUE


class VDNMixer(nn.Module):
    """Q_tot = sum over agents of Q_a (Sunehag et al. 2017, arXiv 1706.05296, equation 3)."""

    in_keys = (CHOSEN_ACTION_VALUE,)

    def forward(self, chosen_action_value: Tensor, state: Tensor | None = None) -> Tensor:
        """Return the joint value.

        Args:
            chosen_action_value: float [*B, N, 1], the utilities.
            state: not used; there, so that every mixer is called alike.

        Returns:
            float [*B, 1].
        """
        return chosen_action_value.sum(-2)
