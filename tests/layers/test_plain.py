"""Which modules compute what their class and their parameters say."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from repmlp import RepMLP
from repmlp.layers.moments import should_use_moments
from repmlp.layers.plain import computes_like, why_not_plain


class Named(nn.Conv2d):
    name = "mine"


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.std(), bias)


class Constant(nn.Conv2d):
    @property
    def weight(self):
        return torch.ones(2, 2, 1, 1)


def conv(change=lambda module: None):
    module = nn.Conv2d(2, 2, 1)
    change(module)
    return module


def test_a_layer_and_a_subclass_without_code_of_its_own_are_plain():
    for module in (conv(), Named(2, 2, 1)):
        assert why_not_plain(module, [nn.Linear, nn.Conv2d], stride=(1, 1)) is None


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(2, 2), "is a Linear, which is not known"),
        (Doubled(2, 2, 1), "is a Doubled, which is not known"),
        (Standardized(2, 2, 1), "is a Standardized, which is not known"),
        (conv(lambda m: setattr(m, "forward", lambda x: x)), "has a forward of its own"),
        (conv(lambda m: m.register_forward_hook(print)), "has a forward hook"),
        (conv(lambda m: m.register_forward_pre_hook(print)), "has a forward hook"),
        (conv(parametrizations.weight_norm), "has a parametrization"),
        (conv(lambda m: prune.identity(m, "weight")), "has a forward hook"),
        (conv(lambda m: setattr(m, "stride", (2, 2))), r"has stride=(2, 2), but was built with (1, 1)"),
    ],
)
def test_anything_else_is_not(module, reason):
    assert reason in why_not_plain(module, [nn.Conv2d], stride=(1, 1))


def test_a_hook_can_be_let_pass():
    module = conv(lambda m: m.register_forward_hook(print))
    assert why_not_plain(module, [nn.Conv2d], lambda hook: hook is print) is None


def test_a_class_that_computes_its_weight_does_not_compute_like_its_base():
    assert computes_like(Named, nn.Conv2d)
    assert not computes_like(Constant, nn.Conv2d)


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: setattr(conv, "padding_mode", "circular"),
        lambda conv: [setattr(conv, "dilation", (1, 2)), setattr(conv, "padding", (0, 2))],
        lambda conv: setattr(conv, "forward", lambda x: x),
        lambda conv: setattr(conv, "stride", (2, 1)),
    ],
)
def test_a_training_step_runs_the_branches_of_a_block_with_a_changed_conv(change):
    block = RepMLP(4, 4, (4, 6), (2, 3), ((1, 1), (1, 3)), groups=2, batch_statistics="moments").train()
    local = block.local_perceptron
    arguments = ("moments", torch.randn(8, 4, 2, 3), block.partition_perceptron, local)
    assert should_use_moments(*arguments)
    change(local.branches["1x3"].conv)
    assert not should_use_moments(*arguments)
