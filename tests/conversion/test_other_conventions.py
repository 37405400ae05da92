"""Blocks written the way other projects write them convert right, or are refused with what to change."""

import copy
import threading

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.byobnet import RepVggBlock
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

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


class Filled(Fused):
    """A block that fills a list or dict of its own, and keeps one of the tensors under a second name too."""

    def __init__(self, container):
        super().__init__()
        self.container = container

    def forward(self, x):
        held = self.container if isinstance(self.container, list) else [*self.container.values()]
        return F.conv2d(x, *held) if held else self.bn(self.conv(x))

    def fuse(self):
        if self.container:
            return
        conv = fuse_conv_bn_eval(self.conv, self.bn)
        self.weight = conv.weight
        if isinstance(self.container, list):
            self.container.extend([self.weight, conv.bias])
        else:
            self.container.update(weight=self.weight, bias=conv.bias)
        del self.conv, self.bn, self.post, self.factor


@pytest.mark.parametrize("container", [[], {}])
def test_containers_that_a_conversion_fills_in_place_are_kept_and_verified(container):
    block, x = nn.Sequential(randomize(Filled(container))), torch.randn(2, 4, 5, 5)
    fast = repmlp.reparameterize(block)
    assert_close(fast(x), block(x), 1e-5)
    assert repmlp.verify(block, fast, x)
    assert not container
    held = fast[0].container
    assert (held["weight"] if isinstance(held, dict) else held[0]) is fast[0].weight  # one tensor, as before
    nn.init.zeros_(fast[0].weight)
    assert not repmlp.verify(block, fast, x)


class ConvBN(nn.Module):
    """Conv and BN, of which ``fuse`` makes one conv; it reads what the BN computes, or its numbers."""

    def __init__(self, norm=nn.BatchNorm2d, calls=False):
        super().__init__()
        self.conv, self.bn, self.calls = nn.Conv2d(4, 4, 1, bias=False), norm(4), calls

    def forward(self, x):
        return self.bn(self.conv(x))

    def fuse(self):
        if not self.calls:
            assert isinstance(self.bn, nn.BatchNorm2d)
            return fuse_conv_bn_eval(self.conv, self.bn)
        fused = nn.Conv2d(4, 4, 1)
        shift, one = (self.bn(torch.full((1, 4, 1, 1), v, dtype=self.conv.weight.dtype)).flatten() for v in (0.0, 1.0))
        fused.weight = nn.Parameter(self.conv.weight * (one - shift).view(-1, 1, 1, 1))
        fused.bias = nn.Parameter(shift)
        return fused


class Marks(nn.Module):
    """A network that marks its parts, and merges a factor into the BN of one, before they convert themselves."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.factor = ConvBN(), ConvBN(), nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        y = self.last(self.first(x))
        return y if self.factor is None else y * self.factor.view(-1, 1, 1)

    def fuse(self):
        for part in self.children():
            part.marked = True
        if self.factor is not None:
            self.last.bn.weight.data.mul_(self.factor)
            self.last.bn.bias.data.mul_(self.factor)
            self.factor = None
        return self


def test_parts_that_a_converter_only_touches_convert_themselves():
    model, x = randomize(Marks()), torch.randn(2, 4, 5, 5)
    fast = repmlp.reparameterize(model)
    assert type(fast.first) is type(fast.last) is nn.Conv2d
    assert_close(fast(x), model(x), 1e-5)


@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d, nn.SyncBatchNorm])
def test_a_converter_may_check_the_class_of_a_norm_or_call_it(norm, calls):
    model, x = nn.Sequential(randomize(ConvBN(norm, calls))), torch.randn(2, 4, 5, 5)
    plain = nn.Sequential(ConvBN()).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    fast = repmlp.reparameterize(model)
    assert type(fast[0]) is nn.Conv2d
    assert type(model[0].bn) is norm
    assert_close(fast(x), plain(x), 1e-4)


class Copies(ConvBN):
    def __init__(self, norm):
        super().__init__()
        self.pre = norm(4)

    def forward(self, x):
        return super().forward(self.pre(x))

    def fuse(self):
        return nn.Sequential(copy.deepcopy(self.pre), super().fuse())


def test_a_norm_that_a_converter_copies_keeps_its_class():
    fast = repmlp.reparameterize(nn.Sequential(Copies(FrozenBatchNorm2d)))
    assert type(fast[0][0]) is FrozenBatchNorm2d
    assert "FrozenBatchNorm2d(4" in repr(fast)


def logged(method):
    def call(*args, **kwargs):
        return method(*args, **kwargs)

    return call


class Decorated(ConvBN):
    fuse = logged(ConvBN.fuse)


def test_a_decorated_converter_counts():
    model = nn.Sequential(ConvBN(), Decorated())
    assert [type(layer) for layer in repmlp.reparameterize(model)] == [nn.Conv2d, nn.Conv2d]


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


class Masked(ConvBN):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))

    def fuse(self):
        if hasattr(self, "bn"):
            self.conv, self.bn = super().fuse(), nn.Identity()


def test_a_buffer_that_is_infinite_on_purpose_does_not_hide_weights_that_float16_cannot_hold():
    with pytest.raises(ValueError, match="65504 in float16"):
        repmlp.reparameterize(tiny_variance(nn.Sequential(Masked())))
    assert repmlp.reparameterize(nn.Sequential(Masked()).half())[0].mask.isinf().any()


def test_in_place_a_model_in_float16_need_not_be_copied():
    model = nn.Sequential(randomize(ConvNorm(4, 4))).half()
    model.lock = threading.Lock()  # cannot be copied
    assert repmlp.reparameterize(model, inplace=True)[0].deploy


def test_a_buffer_of_an_unusual_dtype_stays():
    block = randomize(ConvNorm(4, 4))
    block.register_buffer("scales", torch.ones(2, dtype=torch.float8_e4m3fn))
    assert repmlp.reparameterize(block).scales.dtype == torch.float8_e4m3fn


def test_nothing_is_folded_if_float16_cannot_hold_one_of_the_results():
    good = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval().half()
    model = nn.Sequential(*good, *tiny_variance(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))))
    with pytest.raises(ValueError, match=r"cannot fold 3 into 2: .*65504 in float16"):
        repmlp.fold_norms(model, torch.randn(2, 4, 7, 7).half(), inplace=True)
    assert isinstance(model[1], nn.BatchNorm2d)


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
