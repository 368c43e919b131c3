"""Linear layers with ReLUs between them, in C++ on the CPU and by torch elsewhere."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qmix_trl.native.networks import dense as kernel
from qmix_trl.native.networks import library as networks
from qmix_trl.native.networks.layers import NORM_EPS

Norm = tuple[Tensor, Tensor]  # scale and shift of a layer norm, float [H] or [N, H] each


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False, norm: Norm | None = None
) -> Tensor:
    """Return the outputs of a linear layer that agents share, or of each agent's own.

    Args:
        x: float [*B, N, D].
        weight: float [H, D], shared, or [N, H, D], each agent's own.
        bias: float [H] or [N, H].
        relu: apply a ReLU to the outputs.
        norm: normalise the outputs of each sample, before the ReLU.

    Returns:
        float [*B, N, H].
    """
    if norm is not None:
        y = layer_norm(linear(x, weight, bias), *norm)
        return F.relu(y) if relu else y
    if weight.dim() == 3:
        y = torch.einsum("...nd,nhd->...nh", x, weight) + bias
        return F.relu(y) if relu else y
    # Flat, so that the ReLU in place changes no view: a view's gradient would be copied.
    y = F.linear(x.flatten(0, -2), weight, bias)
    return (F.relu(y, inplace=True) if relu else y).unflatten(0, x.shape[:-1])


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the layer norm [*B, N, H] of each sample, with a scale and a shift.

    Source: Ba et al. 2016, arXiv 1607.06450.

    Args:
        x: float [*B, N, H].
        scale: float [H], shared, or [N, H], each agent's own.
        shift: as ``scale``.
    """
    if scale.dim() == 1:
        return F.layer_norm(x, x.shape[-1:], scale, shift, NORM_EPS)
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * scale + shift


def dense(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], norms: Sequence[Norm] = ()) -> Tensor:
    """Return the outputs of linear layers with ReLUs between them.

    Where the C++ kernel serves, it equals ``dense_by_layers`` to float rounding.

    Args:
        x: float [*B, N, D].
        layers: weight and bias of each layer, as in ``linear``.
        norms: of each layer but the last, before its ReLU; empty for none.

    Returns:
        float [*B, N, H] of the last layer.
    """
    parameters = [x for layer in layers for x in layer]
    of_norms = [x for norm in norms for x in norm]
    tensors = x, *parameters, *of_norms
    if not (_fits(x, parameters[0]) and networks.serves(kernel.library, *tensors)):
        return dense_by_layers(x, parameters, of_norms)
    if torch.is_grad_enabled() and any(y.requires_grad for y in tensors):
        return Dense.apply(len(parameters), *tensors)
    (y,), _ = kernel.forward(_samples(x), parameters, of_norms, keep=False)
    return y.view(*x.shape[:-1], y.shape[-1])


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Return whether a layer takes inputs of this shape; torch raises the error if not."""
    if x.shape[-1] != weight.shape[-1]:
        return False
    is_shared = weight.dim() == 2
    return is_shared or (x.dim() > 1 and x.shape[-2] == len(weight))


def dense_by_layers(
    x: Tensor, parameters: Sequence[Tensor], norms: Sequence[Tensor] = ()
) -> Tensor:
    """Return the outputs [*B, N, H] of linear layers with ReLUs between them, by torch.

    Args:
        x: float [*B, N, D].
        parameters: weight and bias of the first layer, then of the next, as in ``linear``.
        norms: scale and shift of the first layer norm, then of the next; empty for none.
    """
    *below, head = zip(parameters[::2], parameters[1::2], strict=True)
    pairs = zip(norms[::2], norms[1::2], strict=True) if norms else [None] * len(below)
    for (weight, bias), norm in zip(below, pairs, strict=True):
        x = linear(x, weight, bias, relu=True, norm=norm)
    return linear(x, *head)


class Dense(torch.autograd.Function):
    """``dense_by_layers`` computed by the C++ kernel."""

    @staticmethod
    def forward(ctx, n_parameters, x, *tensors):
        """Return the outputs; keep each layer's and each norm's input for backward.

        Args:
            ctx: of the function.
            n_parameters: the number of parameters of layers.
            x: float [*B, N, D].
            *tensors: the parameters of layers, then those of norms.
        """
        parameters, norms = tensors[:n_parameters], tensors[n_parameters:]
        (*hidden, y), sums = kernel.forward(_samples(x), parameters, norms, keep=True)
        ctx.save_for_backward(x, *tensors, *hidden, *sums)
        ctx.n_parameters, ctx.n_hidden = n_parameters, len(hidden)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad_output):
        """Return the gradients; by torch's operations where second derivatives are wanted."""
        n = len(ctx.needs_input_grad) - 1
        (x, *tensors), kept = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        parameters, norms = tensors[: ctx.n_parameters], tensors[ctx.n_parameters :]
        if torch.is_grad_enabled():
            output = dense_by_layers(x, parameters, norms)
            return None, *gradients_again(output, [x, *tensors], grad_output)
        hidden, sums = kept[: ctx.n_hidden], kept[ctx.n_hidden :]
        grad_x, gradients = kernel.backward(
            [_samples(x), *hidden],
            parameters,
            norms,
            sums,
            _samples(grad_output),
            of_input=ctx.needs_input_grad[1],
        )
        return None, None if grad_x is None else grad_x.view(x.shape), *gradients


def gradients_again(
    output: Tensor, inputs: Sequence[Tensor | None], grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated again; None for inputs without a gradient.

    Args:
        output: computed by torch's operations.
        inputs: of that computation.
        grad_output: of the shape of ``output``.
    """
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=True))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)


def _samples(x: Tensor) -> Tensor:
    """Return [*B, N, D] as contiguous samples [*B N, D]."""
    return x.reshape(-1, x.shape[-1]).contiguous()
