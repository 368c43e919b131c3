"""Linear layers with ReLUs between them: a call into C++ each way on the CPU, else torch's."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qmix_trl.native.networks import dense as kernel
from qmix_trl.native.networks import library as networks


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """Apply one linear layer to all agents, or each agent's own to it.

    Args:
        x: float [*B, N, D].
        weight: float [H, D], shared, or [N, H, D], each agent's own.
        bias: float [H] or [N, H].
        relu: negative outputs are zero.

    Returns:
        float [*B, N, H].
    """
    if weight.dim() == 3:
        y = torch.einsum("...nd,nhd->...nh", x, weight) + bias
        return F.relu(y) if relu else y
    # In rows, as what is changed in place must be no view: its gradient would be copied, too.
    y = F.linear(x.flatten(0, -2), weight, bias)
    return (F.relu(y, inplace=True) if relu else y).unflatten(0, x.shape[:-1])


def dense(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Apply linear layers with ReLUs between them to many rows.

    Where the kernel serves, its numbers are those of ``dense_by_layers`` but for roundings.

    Args:
        x: float [*B, N, D].
        layers: the weight and the bias of each, as in ``linear``.

    Returns:
        float [*B, N, H] of the last layer.
    """
    parameters = [x for layer in layers for x in layer]
    if not (_fits(x, parameters[0]) and networks.serves(kernel.library, x, *parameters)):
        return dense_by_layers(x, parameters)
    if torch.is_grad_enabled() and any(y.requires_grad for y in (x, *parameters)):
        return Dense.apply(x, *parameters)
    (y,) = kernel.forward(_rows(x), parameters, keep=False)
    return y.view(*x.shape[:-1], y.shape[-1])


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Say whether a layer takes rows of this shape; where it does not, torch says why."""
    *of_agents, _, n_inputs = weight.shape
    return x.shape[-1] == n_inputs and (not of_agents or list(x.shape[-2:-1]) == of_agents)


def dense_by_layers(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return what ``dense`` returns, by torch's own layers: weights and biases in turn."""
    *below, head = zip(parameters[::2], parameters[1::2], strict=True)
    for weight, bias in below:
        x = linear(x, weight, bias, relu=True)
    return linear(x, *head)


class Dense(torch.autograd.Function):
    """``dense`` by the kernel."""

    @staticmethod
    def forward(ctx, x, *parameters):
        """Keep each layer's input."""
        *hidden, y = kernel.forward(_rows(x), parameters, keep=True)
        ctx.save_for_backward(x, *parameters, *hidden)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad_output):
        """Return the gradients; by torch's own operations where they have gradients, too."""
        n = len(ctx.needs_input_grad)
        (x, *parameters), hidden = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        if torch.is_grad_enabled():
            again = dense_by_layers(x, parameters)
            return gradients_again(again, [x, *parameters], grad_output)
        rows, of_input = _rows(grad_output), ctx.needs_input_grad[0]
        of_x, rest = kernel.backward([_rows(x), *hidden], parameters, rows, of_input=of_input)
        return None if of_x is None else of_x.view(x.shape), *rest


def gradients_again(
    output: Tensor, inputs: Sequence[Tensor | None], grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    """Return gradients of an output, computed again by torch, that have gradients themselves."""
    learns = [x is not None and x.requires_grad for x in inputs]
    wanted = [x for x, yes in zip(inputs, learns, strict=True) if yes]
    found = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=True))
    return tuple(next(found) if yes else None for yes in learns)


def _rows(x: Tensor) -> Tensor:
    """Return [*B, N, D] as contiguous rows [R, D]."""
    return x.reshape(-1, x.shape[-1]).contiguous()
