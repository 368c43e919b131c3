"""Parameters put in their places for a call, beside ``to_module`` of tensordict."""

import copy

import pytest
import torch
from tensordict import TensorDict, TensorDictParams
from torch import nn

from qmix_trl.parameter_places import ParameterPlaces


class Shared(nn.Module):
    """A layer under two names, a buffer, and a layer without a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.plain = nn.Linear(3, 2, bias=False)
        self.register_buffer("offset", torch.ones(2))

    def forward(self, x):
        return self.plain(self.again(self.first(x)).relu()) + self.offset


class Recurrent(nn.Module):
    """A GRU of torch, which keeps its weights in a list, too."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 2)

    def forward(self, x):
        return self.gru(x)[0]


@pytest.mark.parametrize("make", [Shared, Recurrent, nn.ReLU])
def test_a_call_equals_one_by_to_module_and_leaves_the_module_as_it_was(make):
    torch.manual_seed(0)
    module, x = make(), torch.randn(5, 3)
    before, own = copy.deepcopy(module.state_dict()), module(x)
    others = TensorDict.from_module(module, as_module=True)
    if isinstance(others, TensorDictParams):
        others = others.data.clone().apply_(lambda p: p.add_(0.5))
        others = TensorDictParams(others, no_convert=True)
    places = ParameterPlaces(module)
    with places.filled(others):
        found = module(x)
    with others.to_module(module):
        expected = module(x)
    assert torch.equal(found, expected)
    assert (make is nn.ReLU) == torch.equal(found, own)
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(module(x), own)


def test_an_error_leaves_the_module_as_it_was():
    module = Shared()
    own = module.first.weight
    others = TensorDictParams(TensorDict.from_module(module).data.clone(), no_convert=True)
    with pytest.raises(RuntimeError, match="shapes"), ParameterPlaces(module).filled(others):
        module(torch.zeros(5, 4))
    assert module.first.weight is own
