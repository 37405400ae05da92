"""Blocks written the way other projects write them convert right, or are refused with what to change."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.byobnet import RepVggBlock
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import repmlp
from compare import assert_close
from repmlp.conversion.converters import converter
from repmlp.layers import ConvNorm
from weights import randomize


class Fused(nn.Module):
    """Conv and BN, of which ``fuse`` makes one conv without asking whether it has been done; the rest stays."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.post = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.factor = nn.Parameter(torch.full((4, 1, 1), 3.0))

    def forward(self, x):
        return self.post(self.bn(self.conv(x)) * self.factor)

    def fused(self, x):
        return self.post(self.conv(x) * self.factor)

    def fuse(self):
        self.conv = fuse_conv_bn_eval(self.conv, self.bn)
        del self.bn
        self.assign()

    def assign(self):
        self.forward = self.fused  # as YOLO's blocks do


class Lambda(Fused):
    def assign(self):
        self.forward = lambda x: self.fused(x)


class Outer(nn.Module):
    """A block whose ``fuse`` calls that of its parts, however deep they are."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(Fused(), nn.Sequential(Fused()))

    def forward(self, x):
        return self.parts(x)

    def fuse(self):
        for part in self.parts.modules():
            if isinstance(part, Fused):
                part.fuse()


class Kept(nn.Module):
    """A block that keeps its merged weights in a container."""

    def __init__(self, container):
        super().__init__()
        self.conv, self.bn, self.container, self.merged = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), container, None

    def forward(self, x):
        if self.merged is None:
            return self.bn(self.conv(x))
        return F.conv2d(x, *(self.merged.values() if isinstance(self.merged, dict) else self.merged))

    def reparameterize(self):
        if self.merged is None:
            conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.merged = self.container({"weight": conv.weight.detach(), "bias": conv.bias.detach()})
            self.conv = self.bn = None


@pytest.mark.parametrize("inplace", [False, True])
def test_a_forward_that_a_block_assigns_to_itself_is_its_own_afterwards(inplace):
    model, x = nn.Sequential(randomize(Fused())), torch.randn(2, 4, 5, 5)
    original = copy.deepcopy(model)
    fast = repmlp.reparameterize(model, inplace=inplace)
    assert fast[0].forward.__self__ is fast[0]
    assert_close(fast(x), original(x), 1e-5)
    assert repmlp.verify(original, fast, x)
    nn.init.zeros_(fast[0].factor)  # its forward sees what happens to its weights
    assert torch.equal(fast(x), fast[0].post.bias.view(-1, 1, 1).expand(2, 4, 3, 3))
    assert not repmlp.verify(original, fast, x)


def test_a_forward_that_is_no_method_of_the_block_is_refused_before_anything_changes():
    model = nn.Sequential(randomize(ConvNorm(4, 4)), Lambda())
    with pytest.raises(ValueError, match=r"cannot convert 1 \(Lambda\): it is given a forward .* not a method"):
        repmlp.reparameterize(model, inplace=True)
    assert not model[0].deploy


def test_parts_that_the_converter_of_a_block_converts_are_not_converted_again():
    model, x = randomize(Outer()), torch.randn(2, 4, 9, 9)
    assert_close(repmlp.reparameterize(model)(x), model(x), 1e-5)
    assert_close(repmlp.reparameterize(model.parts)(x), model(x), 1e-5)  # and without it, each once
    beside = randomize(nn.Sequential(Outer(), ConvNorm(4, 4)))
    assert repmlp.reparameterize(beside)[1].deploy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("container", [dict, lambda d: tuple(d.values()), lambda d: list(d.values())])
def test_merged_weights_in_a_container_get_the_dtype_of_the_model(container, dtype):
    block, x = randomize(Kept(container)).to(dtype), torch.randn(2, 4, 3, 3, dtype=dtype)
    y = repmlp.reparameterize(block)(x)
    assert y.dtype == dtype
    assert_close(y, block(x).double(), 8 * torch.finfo(dtype).eps)


class Takes(nn.Module):
    def fuse(self, *maps):
        return torch.stack(maps).sum(0)

    def forward(self, x):
        return self.fuse(x, x)


def test_a_method_that_fuses_its_arguments_is_no_converter():
    assert converter(Takes()) is None
    model = nn.Sequential(randomize(ConvNorm(3, 4)), Takes())
    assert repmlp.verify(model, repmlp.reparameterize(model), torch.randn(2, 3, 4, 4))


def frozen(model):
    timm.utils.freeze(model)
    return model


@pytest.mark.parametrize("change", [nn.SyncBatchNorm.convert_sync_batchnorm, frozen])
def test_timms_blocks_convert_with_synchronized_and_frozen_norms(change):
    plain = randomize(RepVggBlock(4, 4))
    model = nn.Sequential(change(copy.deepcopy(plain)), change(nn.Sequential(BatchNormAct2d(4)))).eval()
    kept = type(model[1][0])
    fast, x = repmlp.reparameterize(model), torch.randn(2, 4, 5, 5)
    assert_close(fast[0](x), plain(x), 1e-5)
    assert type(fast[1][0]) is type(model[1][0]) is kept
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())


def tiny_variance(model):
    """In eval mode each BN multiplies by more than float16 can hold."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1e-10)
            module.eps = 1e-12
    return model.eval().half()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("block", [RepVggBlock(4, 4), ConvNorm(4, 4, 3)])
def test_merged_weights_that_float16_cannot_hold_are_refused(block, inplace):
    model = tiny_variance(nn.Sequential(randomize(ConvNorm(4, 4)), block))
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"65504 in float16\): convert the model in float32"):
        repmlp.reparameterize(model, inplace=inplace)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    assert repmlp.verify(model.float(), repmlp.reparameterize(model), torch.randn(2, 4, 5, 5))


def test_norms_are_not_folded_if_float16_cannot_hold_the_result():
    x = torch.randn(2, 4, 5, 5)
    model = tiny_variance(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(ValueError, match="65504 in float16"):
        repmlp.fold_norms(model, x.half(), inplace=True)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert repmlp.verify(model.float(), repmlp.fold_norms(model, x), x)


def test_a_weight_that_is_infinite_before_is_left_for_verify_to_find():
    block = randomize(ConvNorm(4, 4)).half()
    nn.init.constant_(block.conv.weight, torch.inf)
    assert not repmlp.reparameterize(block).conv.weight.isfinite().any()
