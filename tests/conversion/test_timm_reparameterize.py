"""Does timm's reparameterize_model keep what a network computes? Needs only timm: ready to move to timm's tests.

A strict xfail marks what fails in timm 1.0.31, so a fixed fault shows up as a failure here.
"""

import copy

import pytest
import torch
from timm import create_model
from timm.utils import reparameterize_model
from torch import nn

#: The smallest member of each family; arguments that make it smaller still.
MODELS = {
    "lcnetv2_small": {},
    "levit_128s": {"img_size": 64, "depth": (1, 1, 1)},
    "fastvit_t8": {"layers": (1, 1, 1, 1)},
    "efficientvim_m1": {"depths": (1, 1, 1)},
    "efficientvit_m0": {"img_size": 64, "depth": (1, 1, 1)},
    "ghostnetv3_050": {},
    "iformer_t": {},
    "mobileone_s0": {},
    "nextvit_small": {"depths": (1, 1, 5, 1)},
    "repghostnet_050": {},
    "repvgg_a0": {},
    "repvit_m0_9": {"depth": (1, 1, 1, 1)},
    "shvit_s1": {"depth": (1, 1, 1)},
    "tiny_vit_5m_224": {"depths": (1, 1, 1, 1)},
}
FAST = ("lcnetv2_small", "levit_128s", "fastvit_t8")
FLOAT32_LAYERS = ("levit_128s", "efficientvit_m0", "repvit_m0_9", "tiny_vit_5m_224")
CONVERTERS = ("fuse", "reparameterize", "switch_to_deploy")


def cases(fails=(), reason=""):
    """Each family, those that fail marked, all but a few slow."""
    fault = pytest.mark.xfail(strict=True, reason=reason)
    marks = {name: [pytest.mark.slow] * (name not in FAST) + [fault] * (name in fails) for name in MODELS}
    return [pytest.param(name, marks=marks[name]) for name in MODELS]


def build(name, dtype):
    """A network in eval mode, its batch norms far from the identity, and an input for it."""
    generator = torch.Generator().manual_seed(0)
    model = create_model(name, num_classes=5, **MODELS[name]).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.to(dtype), torch.randn(2, 3, 64, 64, generator=generator).to(dtype)


def difference(a, b):
    if not isinstance(a, torch.Tensor):
        return max(difference(x, y) for x, y in zip(a, b, strict=True))
    return ((a - b).norm() / a.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", cases())
def test_outputs_stay_the_same(name):
    model, x = build(name, torch.float32)
    assert difference(model(x), reparameterize_model(model)(x)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", cases(FLOAT32_LAYERS, "fuse() makes float32 layers"))
def test_the_dtype_stays_the_same(name):
    model, x = build(name, torch.float64)
    converted = reparameterize_model(model)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.float64}
    assert difference(model(x), converted(x)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("name", cases(["fastvit_t8"], "blocks cannot be converted twice"))
def test_a_second_conversion_changes_nothing(name):
    model, x = build(name, torch.float32)
    once = reparameterize_model(model)
    assert difference(once(x), reparameterize_model(once)(x)) == 0


@torch.no_grad()
@pytest.mark.xfail(strict=True, reason="timm 1.0.31 converts only the children of the model that it is given")
@pytest.mark.parametrize("name", ["levit_128s", "fastvit_t8"])  # others have roots whose children hold all there is
def test_the_root_is_converted(name):
    model, _ = build(name, torch.float32)
    block = next(m for m in model.modules() if m is not model and any(hasattr(m, c) for c in CONVERTERS))
    converted = reparameterize_model(nn.Sequential(copy.deepcopy(block)))[0]
    assert reparameterize_model(block).state_dict().keys() == converted.state_dict().keys()
