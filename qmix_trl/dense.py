"""Linear layers with ReLUs between them: a call into C++ each way on the CPU, else torch's."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qmix_trl.native import dense as kernel
from qmix_trl.native import networks


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
    weights, biases = zip(*layers, strict=True)
    if not networks.serves(kernel.library, x, *weights, *biases):
        return dense_by_layers(x, weights, biases)
    if torch.is_grad_enabled() and any(y.requires_grad for y in (x, *weights, *biases)):
        return Dense.apply(x, len(weights), *weights, *biases)
    (y,) = kernel.forward(_rows(x), weights, biases, keep=False)
    return y.view(*x.shape[:-1], y.shape[-1])


def dense_by_layers(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return what ``dense`` returns, by torch's own layers."""
    *below, head = zip(weights, biases, strict=True)
    for weight, bias in below:
        x = linear(x, weight, bias, relu=True)
    return linear(x, *head)


class Dense(torch.autograd.Function):
    """``dense`` by the kernel."""

    @staticmethod
    def forward(ctx, x, n_layers, *parameters):
        """Keep each layer's input."""
        weights, biases = parameters[:n_layers], parameters[n_layers:]
        *hidden, y = kernel.forward(_rows(x), weights, biases, keep=True)
        ctx.n_layers = n_layers
        ctx.save_for_backward(x, *parameters, *hidden)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad_output):
        """Return the gradients; by torch's own operations where they have gradients, too."""
        n = ctx.n_layers
        x, *others = ctx.saved_tensors
        parameters, hidden = others[: 2 * n], others[2 * n :]
        if torch.is_grad_enabled():
            again = dense_by_layers(x, parameters[:n], parameters[n:])
            of_x, *rest = gradients_again(again, [x, *parameters], grad_output)
            return of_x, None, *rest
        of_x, of_weights, of_biases = kernel.backward(
            [_rows(x), *hidden],
            parameters[:n],
            _rows(grad_output),
            of_input=ctx.needs_input_grad[0],
        )
        return None if of_x is None else of_x.view(x.shape), None, *of_weights, *of_biases


def gradients_again(
    output: Tensor, inputs: Sequence[Tensor | None], grad_output: Tensor
) -> list[Tensor | None]:
    """Return gradients of an output, computed again by torch, that have gradients themselves."""
    learns = [x is not None and x.requires_grad for x in inputs]
    wanted = [x for x, yes in zip(inputs, learns, strict=True) if yes]
    found = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=True))
    return [next(found) if yes else None for yes in learns]


def _rows(x: Tensor) -> Tensor:
    """Return [*B, N, D] as contiguous rows [R, D]."""
    return x.reshape(-1, x.shape[-1]).contiguous()
