"""QPLEX: a monotone mixer plus each agent's advantage, weighted by attention."""

import torch
from torch import Tensor, nn

from qmix_trl.chosen import named
from qmix_trl.keys import ACTION, CHOSEN_ACTION_VALUE, GREEDY_ACTION_VALUE, STATE
from qmix_trl.mixers.advantages import check_entries, with_advantages, with_joint_action
from qmix_trl.mixers.sizes import StateShape, checked_state_shape
from qmix_trl.mixers.vdn import VDNMixer


class QPlexMixer(nn.Module):
    """QPLEX's duplex dueling form (Wang et al. 2021, arXiv 2008.01062, section 3).

    ``Q_tot = base(q, s) + sum over agents of w_a(s, u) A_a``: QFIX (``QFixMixer``) with a factor
    for each agent. The factors are those of QPLEX's attention with K heads,
    ``lambda_a = sum over k of |g_k(s)| sigmoid(h_ka(s)) sigmoid(f_ka(s, u))``, with linear g, h and
    f; over VDN ``w_a = lambda_a - 1``, over other bases ``w_a = lambda_a``. So IGM holds, and
    utilities learn through the base alone, as in QFIX.

    Over VDN ``Q_tot = sum of max Q_a + sum of lambda_a A_a``, which is QPLEX without the positive
    linear transformation of utilities by the state, and Q+FIX-lin of the QFIX paper. In the
    authors' code g, h and f have hidden layers.

    Args:
        n_agents: N, the number of utilities.
        state_shape: the shape of one state; an int is a vector of that size.
        n_actions: A, the number of each agent's actions.
        base: as in ``QFixMixer``; None is ``VDNMixer``.
        n_heads: K.
        device: of the parameters of g, h and f.
        dtype: of the parameters of g, h and f.

    Raises:
        ValueError: if a size is below 1.
    """

    in_keys = (CHOSEN_ACTION_VALUE, GREEDY_ACTION_VALUE, ACTION, STATE)

    def __init__(
        self,
        n_agents: int,
        state_shape: StateShape,
        n_actions: int,
        base: nn.Module | None = None,
        n_heads: int = 10,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.state_shape = checked_state_shape(
            "QPlexMixer", state_shape, n_agents=n_agents, n_actions=n_actions, n_heads=n_heads
        )
        self.n_actions = n_actions
        self.n_heads = n_heads
        state_dim = self.state_shape.numel()

        def linear(n_in: int, n_out: int) -> nn.Linear:
            return nn.Linear(n_in, n_out, device=device, dtype=dtype)

        self.base = VDNMixer(n_agents) if base is None else base
        self.g = linear(state_dim, n_heads)
        self.h = linear(state_dim, n_heads * n_agents)
        self.f = linear(state_dim + n_agents * n_actions, n_heads * n_agents)

    def __repr__(self) -> str:
        arguments = {
            "n_agents": self.n_agents,
            "state_shape": tuple(self.state_shape),
            "n_actions": self.n_actions,
            "base": self.base,
            "n_heads": self.n_heads,
        }
        return f"QPlexMixer({named(arguments)})"

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
        check_entries("QPlexMixer", self.n_agents, self.state_shape, entries)
        flat = state.reshape(*action.shape[:-1], -1)  # [*B, S]
        joint = with_joint_action(flat, action, self.n_actions)  # [*B, S + N A]
        gates = self.h(flat).sigmoid() * self.f(joint).sigmoid()  # [*B, K N]
        gates = gates.unflatten(-1, (self.n_heads, self.n_agents))  # [*B, K, N]
        factors = (self.g(flat).abs().unsqueeze(-1) * gates).sum(-2)  # [*B, N]
        if isinstance(self.base, VDNMixer):
            factors = factors - 1
        base = self.base(chosen_action_value, state)  # [*B, 1]
        return with_advantages(base, factors, chosen_action_value, greedy_action_value)
