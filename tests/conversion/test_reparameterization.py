"""Training form to deploy form, for any model."""

import copy

import pytest
import timm
import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.levit import Levit
from timm.models.repvit import RepVit
from torch import nn

from compare import assert_close, assert_same
from repmlp import RepMLP, is_reparameterized, reparameterize
from repmlp.conversion import iter_reparameterizable, needs_reparameterize
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


def byob(kind):
    blocks = [ByoBlockCfg(type=kind, d=2, c=8, s=2), ByoBlockCfg(type=kind, d=1, c=12, s=2, gs=4)]
    return ByobNet(ByoModelCfg(blocks=blocks, stem_type=kind, stem_chs=8), num_classes=5)


#: Tiny networks of timm's families. (The fuse of levit and RepViT makes float32 layers, whatever the model's dtype.)
TIMM = {
    "mobileone": lambda: byob("one"),
    "repvgg": lambda: byob("rep"),
    "repvit": lambda: RepVit(embed_dim=(8, 16), depth=(1, 2), num_classes=5),
    "levit": lambda: Levit(64, embed_dim=(16, 32), key_dim=8, num_heads=(2, 3), depth=(1, 1), num_classes=5),
}


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


@pytest.fixture(params=TIMM)
def network(request):
    return randomize(TIMM[request.param]().double())


def test_blocks_of_timm_are_converted_in_float64(network):
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    deployed = reparameterize(network)
    assert not norms(deployed)
    assert not any(m.training for m in deployed.modules())
    assert {t.dtype for t in deployed.parameters()} == {torch.float64}
    assert_close(deployed(x), network(x).detach(), 1e-12)
    assert needs_reparameterize(network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_timm_are_rounded_once_to_the_dtype_of_the_model(network, dtype):
    exact = copy.deepcopy(network.to(dtype)).double()  # the same numbers
    deployed, expected = reparameterize(network), reparameterize(exact)
    for a, b in zip(deployed.state_dict().values(), expected.state_dict().values(), strict=True):
        assert_same(a, b.to(dtype))


def test_a_network_of_timm_is_known_to_be_converted_and_is_not_converted_twice(network):
    once = reparameterize(network)
    assert is_reparameterized(once)
    twice = reparameterize(once)
    assert is_reparameterized(twice)
    for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True):
        assert_same(a, b)


def test_what_timm_converted_is_known_to_be_converted_if_a_block_is_left():
    network = timm.utils.reparameterize_model(byob("one"))
    assert is_reparameterized(network)
    assert_same(reparameterize(network).head.fc.weight, network.head.fc.weight)


def test_in_place_a_block_of_timm_stays_the_same_object_and_so_do_its_other_parts():
    network = byob("one")
    block = network.stages[0][1]
    act, weight = block.act, network.head.fc.weight
    assert reparameterize(network, inplace=True) is network
    assert network.stages[0][1] is block
    assert block.act is act
    assert network.head.fc.weight is weight
    assert all(parameter.requires_grad for parameter in network.parameters())  # timm's code detaches them


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


def test_a_conversion_in_inference_mode_is_as_right_and_its_result_can_be_trained():
    model = randomize(
        timm.create_model("repmlp_cifar", img_size=8, channels=(4, 8), partition_size=4, kernel_sizes=(1, 3))
    )
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        fast = reparameterize(model)
        assert is_reparameterized(fast)
        assert_close(fast(x), model.eval()(x), 1e-5)
    fast(x).sum().backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())
