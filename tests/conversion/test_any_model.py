"""Unusual models: ``verify`` finds what hides behind randomness, caches, attributes, or outputs of any kind."""

import copy
import types
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import repmlp
from repmlp.layers import ConvNorm
from weights import randomize, scramble

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    """A model whose forward is a function of its layers and the input."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x):
        return self.function(self.layers, x)


def into_a_list(layers, x):
    outputs = []
    layers[0](x, outputs)
    return outputs[0]


class Appends(nn.Module):
    """Returns nothing: the result goes into an argument."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, outputs):
        outputs.append(self.bn(self.conv(x)))


def subtracts_from_its_input(layers, x):
    x -= 1
    return layers[0](x)


MODELS = {
    "random": lambda layers, x: F.dropout(layers[0](x), 0.5, training=True),
    "complex": lambda layers, x: torch.complex(x, layers[0](x)),
    "an object": lambda layers, x: SimpleNamespace(maps=layers[0](x), nothing=None),
    "an empty tensor too": lambda layers, x: (x[:0], layers[0](x)),
    "integers": lambda layers, x: layers[0](x).mul(1000).round().long(),
    "its input too": lambda layers, x: (x, layers[0](x)),
    "writes into its input": subtracts_from_its_input,
    "uses a weight": lambda layers, x: F.conv2d(x, layers[0].weight),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_of_any_kind(name):
    torch.manual_seed(0)
    a = Calls(MODELS[name], nn.Conv2d(4, 4, 1))
    b = copy.deepcopy(a)
    assert repmlp.verify(a, b, X)
    with torch.no_grad():
        b.layers[0].weight[1, 2] *= 1.01
    report = repmlp.verify(a, b, X)
    assert not report


def test_a_module_that_writes_into_an_argument_is_compared_with_what_is_around_it():
    a = randomize(Calls(into_a_list, Appends()))
    b = repmlp.fold_norms(a, X)
    assert repmlp.verify(a, b, X)
    with torch.no_grad():
        b.layers[0].conv.weight[1] *= 1.001
    assert not repmlp.verify(a, b, X)


@pytest.mark.parametrize("function", [lambda layers, x: None, lambda layers, x: x[:0]])
def test_a_model_that_returns_no_numbers_is_refused(function):
    with pytest.raises(ValueError, match="Calls returns no numbers to compare"):
        repmlp.verify(*[Calls(function, nn.Conv2d(4, 4, 1)) for _ in "ab"], X)
    with pytest.raises(ValueError, match="Calls returns no numbers to compare"):
        repmlp.verify(Calls(function, nn.Conv2d(4, 4, 1)), lambda x: function(None, x), X)


def test_an_unused_layer_hides_no_other():
    a = Calls(lambda layers, x: layers[0](x), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.layers[1].weight *= 2
        assert repmlp.verify(a, b, X)
        b.layers[0].weight[0] *= 1.001
    assert not repmlp.verify(a, b, X)


class Attributes(nn.Module):
    """A layer with a function and a tensor as attributes."""

    def __init__(self):
        super().__init__()
        self.conv, self.end = nn.Conv2d(4, 4, 1), nn.Sequential(nn.Identity())
        self.function, self.gain = F.relu, torch.full((4, 1, 1), 2.0)

    def forward(self, x):
        return self.end(self.function(self.gain * self.conv(x)))


def another_function(model):
    model.function = F.gelu


def another_tensor(model):
    model.gain = 3 * model.gain


def another_method(model):
    model.conv.forward = types.MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), model.conv)


def another_layer(model):
    model.end.append(nn.Tanh())


@pytest.mark.parametrize("change", [another_function, another_tensor, another_method, another_layer])
def test_what_is_no_weight_is_compared_too(change):
    torch.manual_seed(0)
    a = Calls(lambda layers, x: F.relu(layers[0](x).mean() - 1000), Attributes())  # the network gives zeros
    b = copy.deepcopy(a)
    assert repmlp.verify(a, b, X)
    change(b.layers[0])
    report = repmlp.verify(a, b, X)
    assert report.network.float64.relative == 0
    assert not report


def test_weights_behind_a_cache_are_compared():
    """LeViT caches its attention biases in eval mode."""
    a = scramble(timm.create_model("levit_128s", img_size=64, num_classes=5, depth=(1, 1, 1)))
    x = torch.randn(2, 3, 64, 64)
    a(x)  # with a gradient: PyTorch cannot copy the cache
    b = repmlp.reparameterize(a)
    assert repmlp.verify(a, b, x)
    with torch.no_grad():
        b.stages[0].blocks[0].attn.attention_biases[0, 3] += 1
    assert repmlp.verify(a, b, x).first_difference.name == "stages.0.blocks.0.attn"


def test_a_small_bias_beside_large_weights_is_compared():
    """In outputs, the rounding of the weights hides it."""
    block = randomize(nn.Sequential(ConvNorm(4, 4, 3)))
    deployed = repmlp.reparameterize(block)
    with torch.no_grad():
        for bias in (block[0].bn.bias, block[0].bn.running_mean):
            bias.mul_(1e-3)
        again = repmlp.reparameterize(block)
        assert repmlp.verify(block, again, X)
        again[0].conv.bias *= 1 + 1e-5
    assert not repmlp.verify(block, again, X)
    assert not repmlp.verify(block, deployed, X)


def test_a_root_whose_train_returns_nothing():
    class Forgets(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

    model = randomize(nn.Sequential(Forgets(ConvNorm(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))))[0]
    deployed = repmlp.fold_norms(repmlp.reparameterize(model), X)
    assert type(deployed) is Forgets
    assert repmlp.verify(model, deployed, X)


def test_what_cannot_be_compared_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match=r"0 \(LazyConv2d\) has weights without a shape: call the model once"):
        repmlp.verify(nn.Sequential(nn.LazyConv2d(4, 1)), model, X)
    with pytest.raises(ValueError, match="Sequential is on the meta device"):
        repmlp.verify(copy.deepcopy(model).to("meta"), model, X)
    with pytest.raises(ValueError, match="names maps '0' to 'stem', but b has no module 'stem'"):
        repmlp.verify(model, model, X, names={"0": "stem"})
    fixed = Calls(lambda layers, x: layers[0](x.float()), model)
    with pytest.raises(ValueError, match="Calls cannot compute in float64"):
        repmlp.verify(model, fixed, X)
    assert repmlp.verify(model, lambda x: model(x.float()), X)
