"""Quantization-aware training rounds the merged FC3, and its gradients reach every branch."""

import copy

import pytest
import torch
from torch import nn

import repmlp
from compare import assert_close
from repmlp.functional import fake_quantize, grouped_linear, pad_to_multiple, partition_map, unpartition_map
from repmlp.layers import RepMLP, RepMLPv2, add_fake_quant_hooks, set_bn_eval
from weights import randomize

BITS = 3  # coarse, so that rounding is not mistaken for an error of arithmetic


def v1(**changes):
    arguments = {"kernel_sizes": (1, 3), "groups": 2, "dtype": torch.float64, **changes}
    return randomize(RepMLP(4, 6, (4, 6), (2, 3) if "kernel_sizes" in changes else (4, 3), **arguments))


def v2(**changes):
    return randomize(RepMLPv2(4, (4, 3), (1, 3), share_sets=2, global_reduction=2, dtype=torch.float64, **changes))


def rounded_explicitly(block, x):
    """The block with its merge written out, FC3 rounded, and autograd through all of it."""
    weight, bias = block.equivalent_fc3()
    weight = fake_quantize(weight, BITS)
    (h, w), (H, W) = block.partition_size, x.shape[2:]
    gate = block.global_perceptron(x) if isinstance(block, RepMLPv2) else 1.0
    if isinstance(block, RepMLP):
        x = pad_to_multiple(x, (h, w))
        x = block.global_perceptron(x)
    m = partition_map(x, (h, w))
    rows = m.reshape(-1, weight.shape[0] * weight.shape[2])
    y = grouped_linear(rows, weight, bias).reshape(m.shape[0], -1, h, w)
    return unpartition_map(y, (H, W)) * gate


def backward(block, output, x):
    gradient = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    named = dict(block.named_parameters())
    return dict(zip(["x", *named], torch.autograd.grad(output, [x, *named.values()], gradient), strict=True))


@pytest.mark.parametrize("make", [v1, lambda: v1(kernel_sizes=()), v2], ids=["v1", "v1 without convs", "v2"])
def test_outputs_and_all_gradients_are_those_of_the_rounded_merged_kernel(make):
    block = make()
    x = torch.randn(3, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = rounded_explicitly(block, x)
    gradients = backward(block, expected, x)
    plain = block(x)
    handles = add_fake_quant_hooks(block, BITS)
    block.train()
    set_bn_eval(block)
    output = block(x)
    assert_close(output, expected.detach(), 1e-12)
    assert (output - plain).norm() > 0.01 * plain.norm()
    for name, gradient in backward(block, output, x).items():
        assert gradient.abs().max() > 0, name
        assert_close(gradient, gradients[name], 1e-10)
    for handle in handles:
        handle.remove()
    assert torch.equal(block.eval()(x), plain)


@pytest.mark.parametrize("make", [v1, v2])
def test_the_converted_block_computes_the_same(make):
    block = make()
    add_fake_quant_hooks(block, BITS)
    x = torch.randn(3, 4, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        assert_close(repmlp.reparameterize(block)(x), block(x), 1e-10)


def test_state_and_copies():
    block = v1()
    keys = list(block.state_dict())
    add_fake_quant_hooks(block, BITS)
    assert list(block.state_dict()) == keys
    twin, x = copy.deepcopy(block), torch.randn(1, 4, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        before = block(x)
        assert torch.equal(twin(x), before)
        twin.partition_perceptron.fc3.weight.mul_(2)
        assert torch.equal(block(x), before)  # the copy's hook looks at the copy
        assert_close(twin(x), rounded_explicitly(twin, x), 1e-12)


def test_frozen_norms_keep_their_statistics_and_learn_their_weights():
    block = v1()
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    block.train()
    set_bn_eval(block)
    block(torch.randn(3, 4, 4, 6, dtype=torch.float64)).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in block.named_buffers())
    assert block.training
    assert block.partition_perceptron.bn.weight.grad is not None


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="this Linear has no RepMLP block"):
        add_fake_quant_hooks(nn.Linear(2, 2))
