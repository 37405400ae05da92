"""The parts of a block by themselves."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reference
from compare import assert_close, assert_same
from repmlp.layers import ConvNorm, GlobalPerceptron, GroupedLinear, LocalPerceptron, PartitionPerceptron
from weights import randomize


def converted(module):
    module = copy.deepcopy(module)
    module.reparameterize()
    return module


PARTS = {
    "ConvNorm": (lambda **kw: ConvNorm(4, 6, (3, 1), 2, groups=2, **kw), (2, 4, 5, 7)),
    "GlobalPerceptron": (lambda **kw: GlobalPerceptron(4, (6, 8), (3, 2), 4, **kw), (2, 4, 6, 8)),
    "LocalPerceptron": (lambda **kw: LocalPerceptron(4, 6, (1, (3, 1), (1, 5)), 2, **kw), (3, 4, 5, 6)),
    "one conv": (lambda **kw: LocalPerceptron(4, 6, (3,), 2, **kw), (3, 4, 5, 6)),
    "PartitionPerceptron": (lambda **kw: PartitionPerceptron(4, 6, (3, 2), 2, **kw), (3, 4, 3, 2)),
}


@pytest.fixture(params=PARTS)
def part(request):
    """How to build a part, and an input for it in float64."""
    build, shape = PARTS[request.param]
    return build, torch.randn(shape, dtype=torch.float64)


def test_both_forms_of_each_part_compute_the_same(part):
    build, x = part
    module = randomize(build(dtype=torch.float64))
    deployed = converted(module)
    assert_close(deployed(x), module(x).detach(), 1e-12)
    assert not [m for m in deployed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_each_part_built_in_deploy_form_loads_a_converted_one(part):
    build, x = part
    deployed = converted(randomize(build(dtype=torch.float64)))
    built = build(dtype=torch.float64, deploy=True)
    built.load_state_dict(deployed.state_dict(), strict=True)
    assert_same(built(x), deployed(x))


def test_each_part_converts_once(part):
    build, x = part
    once = converted(randomize(build(dtype=torch.float64)))
    assert_same(converted(once)(x), once(x))


def test_each_part_keeps_its_dtype_and_device(part):
    build, _ = part
    deployed = converted(build(dtype=torch.bfloat16, device="meta"))
    assert {(p.dtype, p.device.type) for p in deployed.parameters()} == {(torch.bfloat16, "meta")}


@given(st.lists(st.sampled_from([(1, 1), (1, 3), (3, 1), (3, 3), (5, 3)]), min_size=1, unique=True))
def test_parallel_convs_are_one_conv_of_the_largest_kernel(kernel_sizes):
    local = randomize(LocalPerceptron(2, 4, kernel_sizes, 2, dtype=torch.float64))
    kernel, bias = local.equivalent_conv()
    assert kernel.shape[2:] == (max(kh for kh, _ in kernel_sizes), max(kw for _, kw in kernel_sizes))
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    expected = reference.conv(x.numpy(), kernel.detach().numpy(), 2) + bias.detach().numpy()[:, None, None]
    assert_close(local(x), expected, 1e-11)
    assert_same(*(m.equivalent_conv()[0].detach() for m in (local, converted(local))))


def test_equivalent_conv_gives_every_parameter_a_gradient():
    local = randomize(LocalPerceptron(2, 4, (1, 3), 2))
    kernel, bias = local.equivalent_conv()
    (kernel.square().sum() + bias.square().sum()).backward()
    assert not [name for name, p in local.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("kernel_sizes", [(), (3, 3)])
def test_a_local_perceptron_needs_kernels_that_differ(kernel_sizes):
    with pytest.raises(ValueError, match="must name one or more kernels, each of them once"):
        LocalPerceptron(2, 2, kernel_sizes)


def test_a_conv_norm_may_follow_frozen_or_channels_last_weights():
    module = randomize(ConvNorm(4, 6, 3, dtype=torch.float64)).to(memory_format=torch.channels_last)
    deployed = converted(module)
    assert deployed.conv.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert_close(deployed(x), module(x).detach(), 1e-12)


def test_a_norm_without_running_statistics_cannot_be_folded_and_nothing_changes():
    module = ConvNorm(4, 6)
    module.bn = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(ValueError, match="keeps no running statistics"):
        module.reparameterize()
    assert not module.deploy
    assert module.conv.bias is None


def test_a_grouped_linear_is_one_linear_per_group():
    layer = GroupedLinear(6, 8, groups=2, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = [nn.functional.linear(x[:, 3 * k :][:, :3], layer.weight[k], layer.bias[4 * k :][:4]) for k in range(2)]
    assert_close(layer(x), torch.cat(expected, 1).detach(), 1e-12)
    assert repr(layer) == "GroupedLinear(6, 8, groups=2, bias=True)"
    assert GroupedLinear(6, 8, groups=2, bias=False).bias is None


def test_a_grouped_linear_starts_as_linear_layers_do():
    weight = GroupedLinear(32, 64, groups=2).weight  # 16 inputs: uniform in +-1/4
    assert weight.abs().max() <= 0.25
    assert weight.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("groups", [0, -2, 3, 4])
def test_groups_that_do_not_divide_are_an_error(groups):
    message = rf"{groups} groups do not divide 6 input and 8 output"
    with pytest.raises(ValueError, match=message):
        GroupedLinear(6, 8, groups)
    with pytest.raises(ValueError, match=message):
        LocalPerceptron(6, 8, (1,), groups)
    with pytest.raises(ValueError, match=message):
        PartitionPerceptron(6, 8, (2, 2), groups)


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("gradient_format", FORMATS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["LocalPerceptron", "one conv", "PartitionPerceptron"])
def test_a_part_in_training_has_the_gradients_of_explicit_loops_over_its_groups_in_every_memory_format(
    name, format, gradient_format
):
    build, shape = PARTS[name]
    part = randomize(build(dtype=torch.float64)).train()
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=FORMATS[format]).requires_grad_()
    plain = copy.deepcopy(part)
    x_plain = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()

    y, expected = part(x), in_training_by_definition(plain, x_plain)
    gradient = torch.randn(y.shape, dtype=torch.float64)
    y.backward(gradient.to(memory_format=FORMATS[gradient_format]))
    expected.backward(gradient)
    assert_close(y.detach(), expected.detach(), 1e-12)
    assert_close(x.grad, x_plain.grad, 1e-12)
    for (key, got), wanted in zip(part.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-10, atol=1e-12, msg=key)


def in_training_by_definition(part, x):
    """Conv or FC, then the normalization of each channel by its own mean and variance, written out."""
    if isinstance(part, PartitionPerceptron):
        rows = x.flatten(1).split(part.fc3.weight.shape[2], dim=1)
        y = torch.cat([row @ weight.T for row, weight in zip(rows, part.fc3.weight, strict=True)], 1)
        return normalized(y, part.bn).view(len(x), -1, *part.partition_size)
    return sum(normalized(branch.conv(x), branch.bn) for branch in part.branches.values())


def normalized(y, bn):
    over = [d for d in range(y.dim()) if d != 1]
    shape = [1, -1, *[1] * (y.dim() - 2)]
    centered = y - y.mean(over, keepdim=True)
    scale = bn.weight / (centered.square().mean(over) + bn.eps).sqrt()
    return centered * scale.view(shape) + bn.bias.view(shape)


def test_few_groups_train_as_one_product_each_and_give_bn_a_contiguous_tensor():
    few, many = GroupedLinear(8, 16, 8, bias=False), GroupedLinear(9, 18, 9, bias=False)
    assert few.train()(torch.randn(5, 8)).is_contiguous()
    for layer, x in ((few, torch.randn(5, 8)), (many, torch.randn(5, 9))):
        assert_close(layer.train()(x).detach(), layer.eval()(x).detach(), 1e-6)


def test_the_local_perceptron_trains_in_channels_last_and_hands_on_contiguous_values_and_gradients():
    build, shape = PARTS["LocalPerceptron"]
    part, inside = build().train(), []

    def record(conv, args, y):
        inside.append(args[0])
        y.register_hook(inside.append)

    for branch in part.branches.values():
        branch.conv.register_forward_hook(record)
    x = torch.randn(shape, requires_grad=True)
    y = part(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert len(inside) == 2 * len(part.branches)
    assert all(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in inside)
    assert y.is_contiguous()
    assert gradient.is_contiguous()
