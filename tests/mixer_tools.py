"""A mixer that is not monotone, as a negative control."""

from torch import nn

from qmix_trl import QMixer


class UnconstrainedMixer(QMixer):
    """A QMixer without absolute values: the negative control of the monotonicity test."""

    def forward(self, chosen_action_value, state):
        w1 = self.hyper_w_1(state).unflatten(-1, (self.n_agents, self.mixing_embed_dim))
        hidden = (chosen_action_value * w1).sum(-2) + self.hyper_b_1(state)
        weights = self.hyper_w_final(state)
        return (nn.functional.elu(hidden) * weights).sum(-1, keepdim=True) + self.V(state)
