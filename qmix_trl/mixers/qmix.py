"""QMIX: a monotonic mixing network whose weights come from hypernetworks of the state."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmix_trl.chosen import named
from qmix_trl.dense import dense_by_layers, gradients_again
from qmix_trl.keys import CHOSEN_ACTION_VALUE, STATE
from qmix_trl.mixers.sizes import StateShape, check_shapes, checked_state_shape
from qmix_trl.native.networks import library as networks
from qmix_trl.native.networks import mixer as kernel


class QMixer(nn.Module):
    """The mixing network of QMIX (Rashid et al. 2018, arXiv 1803.11485, section 4 and figure 2).

    ``Q_tot = ELU(q |W1(s)| + b1(s)) |w2(s)| + V(s)``. No weight is negative, so raising a utility
    never lowers Q_tot, and the agents' greedy actions together are the greedy joint action
    (equations 4 and 5).

    ELU is convex, so Q_tot also has increasing differences: raising one utility gains no less
    where another utility is higher. The mixer fits only monotone tables of joint actions that have
    this property; it fits ``u_1 or u_2`` no better than a sum does.

    Keywords, call and parameter names equal those of TorchRL's ``QMixer`` and the authors' code.

    Args:
        n_agents: N, the number of utilities.
        state_shape: the shape of one state; an int is a vector of that size.
        mixing_embed_dim: the width of the mixing network's hidden layer.
        hypernet_layers: 1 for one linear layer (the paper), 2 for a hidden layer with ReLUs before
            it (the authors' code for StarCraft).
        hypernet_embed_dim: the width of that hidden layer; not used with one layer.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if a size is below 1, or ``hypernet_layers`` is neither 1 nor 2.
    """

    in_keys = (CHOSEN_ACTION_VALUE, STATE)
    libraries = (kernel.library,)  # of forward (``RunsInCpp``)

    def __init__(
        self,
        n_agents: int,
        state_shape: StateShape,
        mixing_embed_dim: int = 32,
        hypernet_layers: int = 1,
        hypernet_embed_dim: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.state_shape = checked_state_shape(
            "QMixer",
            state_shape,
            n_agents=n_agents,
            mixing_embed_dim=mixing_embed_dim,
            hypernet_embed_dim=hypernet_embed_dim,
        )
        self.mixing_embed_dim = mixing_embed_dim
        self.hypernet_layers = hypernet_layers
        state_dim = self.state_shape.numel()
        if hypernet_layers not in (1, 2):
            raise ValueError(f"QMixer: expected hypernet_layers 1 or 2, got {hypernet_layers}")

        def linear(n_in: int, n_out: int) -> nn.Linear:
            return nn.Linear(n_in, n_out, device=device, dtype=dtype)

        def hypernet(n_out: int) -> nn.Module:
            if hypernet_layers == 1:
                return linear(state_dim, n_out)
            hidden = linear(state_dim, hypernet_embed_dim)
            return nn.Sequential(hidden, nn.ReLU(), linear(hypernet_embed_dim, n_out))

        self.hyper_w_1 = hypernet(n_agents * mixing_embed_dim)
        self.hyper_w_final = hypernet(mixing_embed_dim)
        self.hyper_b_1 = linear(state_dim, mixing_embed_dim)
        self.V = nn.Sequential(
            linear(state_dim, mixing_embed_dim), nn.ReLU(), linear(mixing_embed_dim, 1)
        )

    def __repr__(self) -> str:
        arguments = {
            "n_agents": self.n_agents,
            "state_shape": tuple(self.state_shape),
            "mixing_embed_dim": self.mixing_embed_dim,
            "hypernet_layers": self.hypernet_layers,
        }
        if self.hypernet_layers == 2:
            arguments["hypernet_embed_dim"] = self.hyper_w_1[0].out_features
        return f"QMixer({named(arguments)})"

    def forward(self, chosen_action_value: Tensor, state: Tensor) -> Tensor:
        """Return the joint value.

        Args:
            chosen_action_value: float [*B, N, 1], the utilities.
            state: float [*B, *state_shape], contiguous or not.

        Returns:
            float [*B, 1].

        Raises:
            ValueError: if a shape differs from these.
        """
        batch = chosen_action_value.shape[:-2]
        check_shapes(
            "QMixer",
            chosen_action_value=(chosen_action_value, (*batch, self.n_agents, 1)),
            state=(state, (*batch, *self.state_shape)),
        )
        chosen = chosen_action_value.reshape(batch.numel(), self.n_agents)  # [samples, N]
        state = state.reshape(batch.numel(), self.state_shape.numel())  # [samples, S]
        nets = (self.hyper_w_1, self.hyper_b_1, self.hyper_w_final, self.V)
        layers = [_layers(net) for net in nets]
        parameters = [x for net in layers for layer in net for x in (layer.weight, layer.bias)]
        return _mix(chosen, state, [len(net) for net in layers], parameters).reshape(*batch, 1)


def _layers(net: nn.Module) -> list[nn.Module]:
    """Return the linear layers of a hypernetwork, one or two."""
    return [net] if isinstance(net, nn.Linear) else [net[0], net[2]]


def _mix(
    chosen: Tensor, state: Tensor, n_layers: Sequence[int], parameters: Sequence[Tensor]
) -> Tensor:
    """Return joint values as ``mix_by_layers`` does, in C++ where the kernel serves."""
    if state.requires_grad or not networks.serves(kernel.library, chosen, state, *parameters):
        return mix_by_layers(chosen, state, n_layers, parameters)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (chosen, *parameters)):
        return Mix.apply(chosen, state, n_layers, *parameters)
    inputs = chosen.contiguous(), state.contiguous()
    return kernel.forward(*inputs, n_layers, parameters, keep=False)[0]


def mix_by_layers(
    chosen: Tensor, state: Tensor, n_layers: Sequence[int], parameters: Sequence[Tensor]
) -> Tensor:
    """Return joint values by torch's operations.

    Args:
        chosen: float [samples, N].
        state: float [samples, S].
        n_layers: of the hypernetworks of w1, b1, w2 and V.
        parameters: weight and bias of the first layer, then of the next, of all hypernetworks.

    Returns:
        float [samples, 1].
    """
    rest = iter(parameters)
    nets = [list(islice(rest, 2 * n)) for n in n_layers]
    w1, b1, w2, v = (dense_by_layers(state, net) for net in nets)
    w1 = w1.abs().unflatten(-1, (chosen.shape[-1], -1))  # [samples, N, E]
    # Multiply and sum: faster than one small matrix product for each sample.
    hidden = F.elu((chosen.unsqueeze(-1) * w1).sum(-2) + b1)  # [samples, E]
    return (hidden * w2.abs()).sum(-1, keepdim=True) + v  # [samples, 1]


class Mix(torch.autograd.Function):
    """``mix_by_layers`` computed by the C++ kernel, without a gradient of the state."""

    @staticmethod
    def forward(ctx, chosen, state, n_layers, *parameters):
        """Return joint values; keep inputs and the outputs of the hypernetworks' layers.

        Args:
            ctx: torch's, for the backward pass.
            chosen: float [samples, N], the utilities.
            state: float [samples, S].
            n_layers: the number of layers of each hypernetwork.
            *parameters: weight and bias of every layer.
        """
        ctx.n_layers = n_layers
        chosen, state = chosen.contiguous(), state.contiguous()
        total, kept = kernel.forward(chosen, state, n_layers, parameters, keep=True)
        ctx.save_for_backward(chosen, state, *parameters, *kept)
        return total

    @staticmethod
    def backward(ctx, grad_total):
        """Return the gradients; by torch's operations where second derivatives are wanted."""
        n = len(ctx.needs_input_grad) - 1  # all inputs but n_layers are tensors
        (chosen, state, *parameters), kept = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        if torch.is_grad_enabled():
            total = mix_by_layers(chosen, state, ctx.n_layers, parameters)
            grad_chosen, *grads = gradients_again(total, [chosen, *parameters], grad_total)
        else:
            arguments = chosen, state, ctx.n_layers, parameters, kept
            grad_chosen, grads = kernel.backward(*arguments, grad_total.contiguous())
        return grad_chosen, None, None, *grads
