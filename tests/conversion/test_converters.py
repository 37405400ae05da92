"""Calling the converters of blocks, and the copies on which a conversion is tried first."""

import copy

import pytest
import torch
from torch import nn

import repmlp
from repmlp.conversion.converters import Twin, call_converters
from repmlp.conversion.differences import is_leaf


class Fuses(nn.Module):
    """A block whose ``fuse`` returns what takes its place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def fuse(self) -> nn.Module:
        return self.inner


class Returns(nn.Module):
    """A block that converts itself in place, and returns one of its layers from that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def reparameterize(self) -> nn.Module:
        self.norm = nn.Identity()
        return self.conv


class Nothing(Returns):
    """The same by a ``fuse`` that returns nothing."""

    def fuse(self) -> None:
        self.reparameterize()


@pytest.mark.parametrize("cls", [Returns, Nothing])
def test_only_what_fuse_returns_takes_the_place_of_a_block(cls):
    block = cls()
    assert call_converters(block) is block
    assert isinstance(block.norm, nn.Identity)


def test_blocks_in_blocks_are_converted_and_put_in_their_places():
    conv = nn.Conv2d(2, 2, 1)
    block = nn.Sequential(nn.ReLU(), Fuses(conv))
    block.add_module("again", block[1])
    outer = Fuses(block)
    assert call_converters(outer) is block
    assert block[1] is block.again is conv  # the child has two names


class Wraps(Fuses):
    """A block of another class, whose ``fuse`` returns a block."""


class Deployed(nn.Module):
    """A block that says that it is in deploy form, and cannot be converted again."""

    deploy = True

    def fuse(self) -> nn.Module:
        raise AssertionError


class Rebuilt(nn.Module):
    """A block whose ``fuse`` returns one like it, in deploy form, without saying so."""

    def fuse(self) -> nn.Module:
        return Rebuilt()


def test_a_block_that_fuse_returns_is_converted_too():
    conv = nn.Conv2d(2, 2, 1)
    assert call_converters(Wraps(Fuses(conv))) is conv
    assert call_converters(Fuses(Fuses(Fuses(conv)))) is conv  # of its own class, but a part of it
    assert call_converters(Wraps(nn.Sequential(Fuses(Wraps(conv)))))[0] is conv
    assert isinstance(call_converters(Wraps(Nothing())).norm, nn.Identity)
    network = nn.Sequential(Wraps(Fuses(conv)))
    assert type(repmlp.reparameterize(network)[0]) is nn.Conv2d


def test_a_block_in_deploy_form_that_fuse_returns_stays():
    deployed = Deployed()
    assert call_converters(Wraps(deployed)) is deployed
    assert isinstance(call_converters(Wraps(Rebuilt())), Rebuilt)


class There(nn.Conv2d):
    """A block whose ``fuse`` returns one of another class, whose ``fuse`` returns one of this class, and so on."""

    def fuse(self) -> nn.Module:
        return Back(2, 2, 1)


class Back(nn.Conv2d):
    def fuse(self) -> nn.Module:
        return There(2, 2, 1)


def test_blocks_that_return_each_other_without_end_are_refused():
    with pytest.raises(ValueError, match=r"cannot convert 0 \(There\): RecursionError"):
        repmlp.reparameterize(nn.Sequential(There(2, 2, 1)))


def doubled(t: torch.Tensor) -> torch.Tensor:
    return t.detach() * 2


def test_a_twin_knows_the_original_of_each_module_and_tensor():
    block = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    twin = Twin(block, doubled)
    assert not twin.block.training
    for copied, original in zip(twin.block.modules(), block.modules(), strict=True):
        assert twin.modules[id(copied)] is original
    for copied, original in zip(twin.block.parameters(), block.parameters(), strict=True):
        assert twin.tensors[id(copied)] is original
        assert torch.equal(copied, 2 * original)


def shared() -> nn.ModuleDict:
    """The same conv at two places, and a third one with its weight."""
    conv, other = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    other.weight = conv.weight
    return nn.ModuleDict({"first": nn.Sequential(conv), "second": nn.Sequential(conv), "third": other})


def test_what_a_conversion_touches_is_separated_at_each_place_and_keeps_its_original():
    block = shared()
    twin = Twin(block, torch.clone)
    twin.separate({block["first"][0]})
    first, second, third = twin.block["first"][0], twin.block["second"][0], twin.block["third"]
    assert first is not second
    assert len({first.weight.data_ptr(), second.weight.data_ptr(), third.weight.data_ptr()}) == 3
    assert twin.repeated == {block["first"][0]}
    for conv in (first, second):
        assert twin.modules[id(conv)] is block["first"][0]
        assert twin.tensors[id(conv.bias)] is block["first"][0].bias
    for conv in (first, second, third):
        assert twin.tensors[id(conv.weight)] is block["third"].weight


def test_what_no_conversion_touches_stays_one():
    block = shared()
    twin = Twin(block, torch.clone)
    twin.separate({block["third"]})
    assert twin.block["first"][0] is twin.block["second"][0]
    assert twin.repeated == set()


def test_a_leaf_has_no_weights_in_its_children():
    conv = nn.Conv2d(2, 2, 1)
    activated = copy.deepcopy(conv)
    activated.act = nn.ReLU()
    assert is_leaf(conv)
    assert is_leaf(activated)
    assert is_leaf(nn.Sequential(nn.ReLU()))
    assert not is_leaf(nn.Sequential(conv))
    assert not is_leaf(nn.Sequential(nn.Sequential(conv)))
    assert not is_leaf(nn.Sequential(nn.BatchNorm2d(2, affine=False)))  # statistics count
