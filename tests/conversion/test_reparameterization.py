"""Training form to deploy form, for any model."""

import copy

import pytest
import timm
import torch
from torch import nn

from compare import assert_close, assert_same
from repmlp import RepMLP, is_reparameterized, reparameterize
from repmlp.conversion import iter_reparameterizable
from repmlp.layers import ConvNorm
from weights import randomize


def small_block():
    return RepMLP(4, 4, (4, 6), (2, 3), (1,), groups=2)


class Wrapper(nn.Module):
    """What DistributedDataParallel is to a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


MODELS = {
    "the root is a block": small_block,
    "a sequence": lambda: nn.Sequential(ConvNorm(4, 4, 3), nn.ReLU(), small_block()),
    "nested": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ModuleDict({"a": nn.Sequential(small_block())})["a"]),
    "wrapped": lambda: Wrapper(nn.Sequential(small_block(), ConvNorm(4, 4))),
    "the same block twice": lambda: nn.Sequential(*[small_block()] * 2),
}
TIMM = ["mobileone_s0", "repvgg_a0", "repvit_m0_9", "efficientvim_m1", "levit_conv_128s"]
TIMM_SIZE = {"efficientvim_m1": 224, "levit_conv_128s": 224}


@pytest.fixture(params=MODELS)
def model(request):
    return randomize(MODELS[request.param]().double())


@pytest.fixture
def x():
    return torch.randn(2, 4, 4, 6, dtype=torch.float64)


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_a_copy_is_converted_and_the_model_stays(model, x):
    before, y = copy.deepcopy(model.state_dict()), model(x)
    deployed = reparameterize(model.train())
    assert deployed is not model
    assert not norms(deployed)
    assert_close(deployed(x), y.detach(), 1e-10)
    assert all(m.training for m in model.modules())
    assert not is_reparameterized(model)
    assert before.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert_same(tensor, before[name])


def test_in_place(model, x):
    y = model(x)
    assert reparameterize(model, inplace=True) is model
    assert not norms(model)
    assert_close(model(x), y.detach(), 1e-10)


def test_the_deploy_form_is_in_eval_mode(model):
    assert not any(m.training for m in reparameterize(model.train()).modules())


def test_is_reparameterized(model):
    assert not is_reparameterized(model)
    assert is_reparameterized(reparameterize(model))


def test_a_second_conversion_changes_nothing(model):
    once = reparameterize(model)
    twice = reparameterize(once)
    for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True):
        assert_same(a, b)


def test_half_converted_is_not_converted():
    model = nn.Sequential(small_block(), small_block())
    model[0].reparameterize()
    assert not is_reparameterized(model)
    assert is_reparameterized(reparameterize(model))


def test_timms_own_function_does_the_same_to_our_blocks(x):
    model = randomize(nn.Sequential(ConvNorm(4, 4, 3), small_block()).double())
    ours, theirs = reparameterize(model), timm.utils.reparameterize_model(model)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert_same(a, b)
    assert_same(ours(x), theirs(x))


def test_blocks_are_found_by_name_and_not_their_parts():
    model = Wrapper(nn.Sequential(ConvNorm(4, 4), nn.ReLU(), small_block()))
    assert [name for name, _ in iter_reparameterizable(model)] == ["module.0", "module.2"]
    block = small_block()
    assert list(iter_reparameterizable(block)) == [("", block)]


@pytest.mark.parametrize("name", TIMM)
def test_blocks_of_timm_are_converted_too(name):
    model = randomize(timm.create_model(name, num_classes=5)).train()
    size = TIMM_SIZE.get(name, 32)
    x = torch.randn(1, 3, size, size)
    deployed = reparameterize(model)
    assert not norms(deployed)
    assert not any(m.training for m in deployed.modules())
    assert_close(deployed(x), model.eval()(x).detach(), 1e-4)
    assert not is_reparameterized(model)


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "repvit_m0_9", "efficientvim_m1"])
def test_is_reparameterized_knows_blocks_of_timm(name):
    assert is_reparameterized(reparameterize(timm.create_model(name)))


def test_frozen_norms_are_folded_too(x):
    model = randomize(nn.Sequential(ConvNorm(4, 4, 3), small_block()).double())
    y = model(x)
    timm.utils.freeze(model)
    deployed = reparameterize(model)
    assert not [m for m in deployed.modules() if "BatchNorm" in type(m).__name__]
    assert_close(deployed(x), y.detach(), 1e-10)


def test_a_model_of_timms_blocks_and_ours(x):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.theirs = timm.models.byobnet.MobileOneBlock(4, 4)
            self.ours = small_block()

        def forward(self, x):
            return self.ours(self.theirs(x))

    model = randomize(Mixed().double())
    deployed = reparameterize(model)
    assert is_reparameterized(deployed)
    assert_close(deployed(x), model(x).detach(), 1e-10)


@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_to_convert_is_an_error(inplace):
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert not is_reparameterized(plain)
    with pytest.raises(ValueError, match=r"nothing to convert: no module of this Sequential has a deploy form"):
        reparameterize(plain, inplace=inplace)
    assert plain.training
