"""QFIX: a monotone mixer plus advantages weighted by one factor of the joint action."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmix_trl.chosen import named
from qmix_trl.dense import dense
from qmix_trl.keys import ACTION, CHOSEN_ACTION_VALUE, GREEDY_ACTION_VALUE, STATE
from qmix_trl.mixers.advantages import check_entries, with_advantages, with_joint_action
from qmix_trl.mixers.sizes import StateShape, checked_state_shape
from qmix_trl.mixers.vdn import VDNMixer
from qmix_trl.native.networks import dense as kernel


class QFixMixer(nn.Module):
    """QFIX in its additive form Q+FIX (Baisero et al. 2025, arXiv 2505.10484).

    ``Q_tot = base(q, s) + w(s, u) sum over agents of A_a``, with ``w = softplus(f(s, u))``, a
    perceptron f of one hidden layer, and the advantages ``A_a = Q_a(u_a) - max Q_a`` over the
    available actions. No advantage is above 0, and all are 0 at the greedy joint action, where
    Q_tot is the base's value. As that never falls when a utility rises, the agents' greedy actions
    together are the greedy joint action (IGM). As w reads the joint action, Q_tot need not be
    monotone: where utilities differ little and w is large, it represents any table of joint actions
    with one greatest entry.

    No gradient passes through the advantages, as in the authors' code: utilities learn through the
    base, w learns what the base cannot represent.

    Over VDN this is the paper's Q+FIX-sum, with two differences. The paper's w is above -1, which
    keeps IGM over its own bases alone; ours is above 0, and smaller utilities make up for that.
    There is no bias of the state beside the base. Over QMIX the paper's Q+FIX-mono weights
    ``base(q, s) - base(max q, s)``, which is 0 wherever QMIX is flat, so that nothing can be fixed
    there; ours weights the same advantages as over VDN.

    Args:
        n_agents: N, the number of utilities.
        state_shape: the shape of one state; an int is a vector of that size.
        n_actions: A, the number of each agent's actions.
        base: a mixer that is called with chosen action values and state, and whose value never
            falls when a utility rises; None is ``VDNMixer``.
        embed_dim: the width of f's hidden layer.
        device: of the parameters of f.
        dtype: of the parameters of f.

    Raises:
        ValueError: if a size is below 1.
    """

    in_keys = (CHOSEN_ACTION_VALUE, GREEDY_ACTION_VALUE, ACTION, STATE)
    libraries = (kernel.library,)  # of f (``RunsInCpp``)

    def __init__(
        self,
        n_agents: int,
        state_shape: StateShape,
        n_actions: int,
        base: nn.Module | None = None,
        embed_dim: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.state_shape = checked_state_shape(
            "QFixMixer", state_shape, n_agents=n_agents, n_actions=n_actions, embed_dim=embed_dim
        )
        self.n_actions = n_actions
        self.embed_dim = embed_dim
        state_dim = self.state_shape.numel()
        n_inputs = state_dim + n_agents * n_actions
        self.base = VDNMixer(n_agents) if base is None else base
        self.f = nn.Sequential(
            nn.Linear(n_inputs, embed_dim, device=device, dtype=dtype),
            nn.ReLU(),
            nn.Linear(embed_dim, 1, device=device, dtype=dtype),
        )

    def __repr__(self) -> str:
        arguments = {
            "n_agents": self.n_agents,
            "state_shape": tuple(self.state_shape),
            "n_actions": self.n_actions,
            "base": self.base,
            "embed_dim": self.embed_dim,
        }
        return f"QFixMixer({named(arguments)})"

    def forward(
        self,
        chosen_action_value: Tensor,
        greedy_action_value: Tensor,
        action: Tensor,
        state: Tensor,
    ) -> Tensor:
        """Return the joint value.

        Args:
            chosen_action_value: float [*B, N, 1], the utilities of the joint action.
            greedy_action_value: float [*B, N, 1], the greatest utilities of available actions.
            action: int64 [*B, N], the joint action.
            state: float [*B, *state_shape], contiguous or not.

        Returns:
            float [*B, 1].

        Raises:
            ValueError: if a shape differs from these.
        """
        entries = chosen_action_value, greedy_action_value, action, state
        check_entries("QFixMixer", self.n_agents, self.state_shape, entries)
        flat = state.reshape(*action.shape[:-1], -1)  # [*B, S]
        joint = with_joint_action(flat, action, self.n_actions).unsqueeze(-2)  # [*B, 1, S + N A]
        layers = self.f[0], self.f[2]
        factor = F.softplus(dense(joint, [(layer.weight, layer.bias) for layer in layers]))
        base = self.base(chosen_action_value, state)  # [*B, 1]
        return with_advantages(base, factor[..., 0], chosen_action_value, greedy_action_value)
