"""Parameters and multiply-adds."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations

import repmlp


def test_a_model_of_torchscript_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    expected = repmlp.complexity(model, (3, 4, 4))
    assert (expected.params, expected.macs) == (8, 96)
    for compiled in (torch.jit.script(model), nn.Sequential(torch.jit.script(model))):
        with pytest.raises(ValueError, match=r"compiled by TorchScript.*pass the model that it was made from"):
            repmlp.complexity(compiled, (3, 4, 4))


class Attribute(nn.Module):
    """A layer with a tensor that is neither a parameter nor a buffer."""

    def __init__(self):
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 2, 1), torch.ones(2, 1, 1)

    def forward(self, x):
        return self.conv(x) * self.factor


@pytest.mark.parametrize(
    ("model", "params", "macs"),
    [
        (Attribute(), 8, 96),
        (nn.Sequential(nn.ReLU()), 0, 0),
        (parametrizations.weight_norm(nn.Conv2d(3, 2, 1)), 10, 96),  # two norms more
    ],
)
def test_any_module_is_counted(model, params, macs):
    model(torch.ones(1, 3, 4, 4))
    counted = repmlp.complexity(model, (3, 4, 4))
    assert (counted.params, counted.macs) == (params, macs)


def test_what_a_model_cached_while_it_ran_does_not_count():
    model = timm.create_model("levit_128s").eval()
    before = repmlp.complexity(model)
    model(torch.ones(1, 3, 224, 224))  # keeps biases that are computed from weights
    assert repmlp.complexity(model) == before


def test_a_layer_without_a_shape_is_refused_with_what_to_do():
    model = nn.Sequential(nn.LazyConv2d(2, 1))
    with pytest.raises(ValueError, match=r"0 \(LazyConv2d\) has weights without a shape: call the model once"):
        repmlp.complexity(model, (3, 4, 4))
    model(torch.ones(1, 3, 4, 4))
    assert repmlp.complexity(model, (3, 4, 4)).macs == 96
