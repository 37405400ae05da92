"""What counts as a block, and which form a model is in."""

import pytest
import timm
import torch
from torch import nn

import repmlp
from repmlp.conversion import (
    Reparameterizable,
    deploy_arguments,
    is_reparameterized,
    iter_reparameterizable,
    needs_reparameterize,
    reparameterize,
)
from repmlp.conversion.converters import converter
from repmlp.layers import ConvNorm


class Block(nn.Module):
    """The smallest block of a user: two branches in training form, one in deploy form."""

    def __init__(self, deploy=False):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = None if deploy else nn.Linear(3, 3)
        self.deploy = deploy

    def forward(self, x):
        return self.a(x) if self.b is None else self.a(x) + self.b(x)

    @torch.no_grad()
    def reparameterize(self):
        if not self.deploy:
            self.a.weight += self.b.weight
            self.a.bias += self.b.bias
            self.b, self.deploy = None, True


def small():
    return timm.create_model("repmlp_cifar", img_size=16, channels=(4, 8), partition_size=4, kernel_sizes=(1,))


def test_our_blocks_and_a_users_fulfil_the_contract():
    assert isinstance(ConvNorm(2, 2), Reparameterizable)
    assert isinstance(Block(), Reparameterizable)
    assert not isinstance(nn.Conv2d(2, 2, 1), Reparameterizable)
    assert not isinstance(timm.models.byobnet.MobileOneBlock(4, 4), Reparameterizable)  # has no deploy


@pytest.mark.parametrize("make", [Block, small, lambda: timm.models.byobnet.MobileOneBlock(4, 4)])
def test_each_form_is_known(make):
    model = make().eval()
    assert needs_reparameterize(model)
    assert not is_reparameterized(model)
    converted = reparameterize(model)
    assert not needs_reparameterize(converted)
    assert is_reparameterized(converted)


def test_a_model_without_blocks_is_in_neither_form():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert list(iter_reparameterizable(model)) == []
    assert not needs_reparameterize(model)
    assert not is_reparameterized(model)


def test_half_converted_is_not_converted():
    model = nn.Sequential(Block(), Block())
    model[0].reparameterize()
    assert needs_reparameterize(model)
    assert not is_reparameterized(model)


def test_a_fuse_that_is_no_converter_is_left_alone():
    class NeedsArguments(nn.Module):
        def fuse(self, other):
            raise AssertionError

    class NoMethod(nn.Module):
        fuse = True

    class Optional(nn.Module):
        def fuse(self, verbose=False):
            return nn.Identity()

    model = nn.Sequential(NeedsArguments(), NoMethod(), Optional(), Block())
    assert [name for name, _ in iter_reparameterizable(model)] == ["2", "3"]
    converted = reparameterize(model)
    assert [type(m) for m in converted] == [NeedsArguments, NoMethod, nn.Identity, Block]


def test_the_first_method_that_needs_no_arguments_converts_a_block():
    class Several(nn.Module):
        def fuse(self, x):
            pass

        def reparameterize(self):
            pass

        def switch_to_deploy(self):
            pass

    assert converter(Several()) == "reparameterize"


def test_a_network_of_timm_is_no_block_but_its_modules_are():
    model = timm.create_model("repvit_m0_9", num_classes=2)
    assert callable(model.fuse)
    names = [name for name, _ in iter_reparameterizable(model)]
    assert names[0] == "stem.conv1"
    assert "" not in names


def test_the_constructor_is_given_deploy_if_it_takes_it():
    assert deploy_arguments(small()) == {}
    assert deploy_arguments(reparameterize(small())) == {"deploy": True}
    injected = repmlp.inject_locality(timm.create_model("resmlp_6_32"))
    assert deploy_arguments(reparameterize(injected)) == {}
