"""Linear layers as C++ reads them: the structures, and tensors packed into them."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_trl.native.structures import pointer_to

NORM_EPS = 1e-5  # added to the variance of a layer norm, as by ``torch.nn.LayerNorm``
INT = ctypes.c_int64
READ = pointer_to("const Real")  # an input of a kernel; Real is float or double
WRITTEN = pointer_to("Real")  # an output of a kernel


class Linear(ctypes.Structure):
    """A layer in panels of W outputs, W being the numbers of a vector."""

    _fields_ = [
        ("weight", READ),  # [groups, outputs / W, inputs, W]
        ("bias", READ),  # [groups, outputs]
        ("inputs", INT),
        ("outputs", INT),  # padded to a multiple of W
    ]


class Layer(ctypes.Structure):
    """A layer in torch's layout, with the place of its gradients."""

    _fields_ = [
        ("weight", READ),  # [groups, outputs, inputs]
        ("bias", READ),  # [groups, outputs]
        ("inputs", INT),
        ("outputs", INT),
        ("grad_weight", WRITTEN),  # [groups, outputs, inputs], null in forward
        ("grad_bias", WRITTEN),  # [groups, outputs], null in forward
    ]


class Norm(ctypes.Structure):
    """A layer norm of a layer's outputs, with the place of its gradients."""

    _fields_ = [
        ("scale", READ),  # [groups, size]
        ("shift", READ),  # [groups, size]
        ("size", INT),
        ("eps", ctypes.c_double),  # added to the variance
        ("grad_scale", WRITTEN),  # [groups, size], null in forward
        ("grad_shift", WRITTEN),  # [groups, size], null in forward
    ]


class Norms:
    """An array of ``Norm``, and the tensors that it points to.

    Args:
        parameters: scale and shift of the first norm, then of the next: [H], or [N, H] where each
            agent has its own.
        with_gradients: a kernel writes gradients of the parameters.

    Attributes:
        array: the norms, for as long as this object exists; None without any.
        gradients: tensors for the gradients of the parameters, in their order; empty without
            ``with_gradients``.
    """

    def __init__(self, parameters: Sequence[Tensor], *, with_gradients: bool) -> None:
        self._parameters = [x.detach().contiguous() for x in parameters]
        self.gradients = [torch.empty_like(x) for x in self._parameters] if with_gradients else []
        norms = []
        for i in range(0, len(self._parameters), 2):
            scale, shift = self._parameters[i : i + 2]
            norm = Norm(scale.data_ptr(), shift.data_ptr(), scale.shape[-1], NORM_EPS)
            if with_gradients:
                norm.grad_scale = self.gradients[i].data_ptr()
                norm.grad_shift = self.gradients[i + 1].data_ptr()
            norms.append(norm)
        self.array = (Norm * len(norms))(*norms) if norms else None


class Layers:
    """An array of ``Layer``, and the tensors that it points to.

    Args:
        parameters: weight and bias of the first layer, then of the next: [H, D] and [H], or
            [N, H, D] and [N, H] where each agent has its own.
        with_gradients: a kernel writes gradients of the parameters.

    Attributes:
        array: the layers, for as long as this object exists.
        n_groups: the number of weights of each layer: 1 where agents share them, else N.
        dtype: of the parameters.
        gradients: tensors for the gradients of the parameters, in their order; empty without
            ``with_gradients``.
    """

    def __init__(self, parameters: Sequence[Tensor], *, with_gradients: bool) -> None:
        self._parameters = [x.detach().contiguous() for x in parameters]
        self.gradients = [torch.empty_like(x) for x in self._parameters] if with_gradients else []
        layers = []
        for i in range(0, len(self._parameters), 2):
            weight, bias = self._parameters[i : i + 2]
            outputs, inputs = weight.shape[-2:]
            layer = Layer(
                weight=weight.data_ptr(), bias=bias.data_ptr(), inputs=inputs, outputs=outputs
            )
            if with_gradients:
                layer.grad_weight = self.gradients[i].data_ptr()
                layer.grad_bias = self.gradients[i + 1].data_ptr()
            layers.append(layer)
        first = self._parameters[0]
        self.n_groups = 1 if first.dim() == 2 else len(first)
        self.dtype = first.dtype
        self.array = (Layer * len(layers))(*layers)


def pointers(tensors: Sequence[Tensor | None], type_: type[ctypes.c_void_p]) -> ctypes.Array:
    """Return an array of the tensors' addresses, null for None; the caller keeps the tensors."""
    return (type_ * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))
