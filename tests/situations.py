"""Decorators that turn a function which makes a model into a test of its conversion, and models to make it of."""

import copy
import functools

import pytest
import torch
from timm.models.byobnet import MobileOneBlock
from timm.models.levit import ConvNorm as LevitConvNorm
from torch import nn

import repmlp
from compare import assert_close, assert_same
from repmlp import RepMLP, reparameterize
from repmlp.layers import ConvNorm


def right(make):
    """A test that the model converts, and computes the same in both forms."""

    @functools.wraps(make)
    def test(**arguments):
        model, x = built(make, **arguments), torch.randn(3, 4, 4, 6, dtype=torch.float64)
        expected = model(x).detach()
        before = pictured(model)
        weights = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
        deployed = reparameterize(model)
        assert_close(deployed(x), expected, 1e-12)
        assert pictured(model) == before
        for t, was in zip((*model.parameters(), *model.buffers()), weights, strict=True):
            assert_same(t, was)
        assert_same(model(x), expected)
        assert repmlp.is_reparameterized(deployed)
        assert_same(reparameterize(deployed)(x), deployed(x))
        assert reparameterize(model, inplace=True) is model
        assert_same(model(x), deployed(x))

    return test


def refused(message):
    """A test that the model is refused with a message that names the module, and is not changed."""

    def decorate(make):
        @functools.wraps(make)
        def test():
            for inplace in (False, True):
                model = built(make)
                model.train()
                before = pictured(model)
                weights = copy.deepcopy(model.state_dict())
                with pytest.raises(ValueError, match=message):
                    reparameterize(model, inplace=inplace)
                assert pictured(model) == before
                for key, t in model.state_dict().items():
                    assert_same(t, weights[key])

        return test

    return decorate


def block(**kwargs):
    return RepMLP(4, 4, (4, 6), (2, 3), ((1, 1), (1, 3)), groups=2, **kwargs)


def net():
    """Our blocks, one of timm's that changes itself and one that is replaced, and a layer that stays."""
    return nn.Sequential(ConvNorm(4, 4, 3), block(), MobileOneBlock(4, 4, 3), LevitConvNorm(4, 4), nn.Conv2d(4, 4, 1))


def changed(change):
    """The network after a change: of a layer in place, or of what is returned instead of the network."""
    model = net()
    return change(model) or model


def branch(model, name="1x3"):
    return model[1].local_perceptron.branches[name]


def pictured(model):
    """All that a conversion could change of a model."""
    modules = [
        (name, type(m), m.training, {key: id(value) for key, value in vars(m).items() if not key.startswith("_")})
        for name, m in model.named_modules()
    ]
    hooks = [[dict(m._forward_hooks), dict(m._forward_pre_hooks)] for m in model.modules()]
    tensors = {name: (id(t), t.requires_grad) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    return modules, hooks, tensors


def built(make, **arguments):
    torch.manual_seed(0)
    model = make(**arguments).double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()
