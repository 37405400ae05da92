"""The block: its training form against loops, its deploy form against its training form, and what is left of it."""

import copy
import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import reference
from compare import assert_close, assert_same
from repmlp import RepMLP
from repmlp.layers.partitioned import padded_size
from tiny import BLOCK as EXAMPLE
from weights import randomize

VARIANTS = {
    "example": {},
    "no local": {"kernel_sizes": ()},
    "no global": {"global_perceptron": False},
    "one partition": {"feature_size": (3, 4), "global_reduction": 1},
    "padded": {"feature_size": (5, 10), "pad": True},
}


@st.composite
def configs(draw):
    """Arguments of any block that is allowed, with small sizes."""

    def one_of(*choices):
        return draw(st.sampled_from(choices))

    h, w, groups = one_of(1, 2, 3, 4, 5), one_of(1, 2, 3, 4, 5), one_of(1, 2, 3)
    rows, cols = one_of((1, 2), (2, 1), (2, 3), (3, 1), (2, 2), (1, 1))
    C, O = groups * one_of(1, 2), groups * one_of(1, 2)
    kernels = [(kh, kw) for kh in range(1, h + 1, 2) for kw in range(1, w + 1, 2)]
    pad = one_of(False, True)
    features = C * rows * cols
    return {
        "in_channels": C,
        "out_channels": O,
        "feature_size": (rows * h - pad * one_of(*range(h)), cols * w - pad * one_of(*range(w))),
        "partition_size": (h, w),
        "kernel_sizes": one_of(*itertools.chain(*(itertools.combinations(kernels, n) for n in range(4)))),
        "groups": groups,
        "global_reduction": one_of(*(r for r in range(1, features + 1) if features % r == 0)),
        "pad": pad,
        "global_perceptron": one_of(True, True, False),
    }


def block_and_input(config, N=2, dtype=torch.float64):
    """A block in eval mode whose BNs are far from fresh, and an input for it."""
    block = randomize(RepMLP(**config, dtype=dtype))
    return block, torch.randn(N, block.in_channels, *block.feature_size, dtype=dtype)


def converted(block):
    block = copy.deepcopy(block)
    block.reparameterize()
    return block


@pytest.fixture(params=VARIANTS)
def config(request):
    return {**EXAMPLE, **VARIANTS[request.param]}


# What it computes


@given(configs())
@example(EXAMPLE)
def test_the_training_form_equals_loops(config):
    block, x = block_and_input(config)
    expected = reference.repmlp(x.numpy(), reference.numpy_state(block), config["partition_size"], config["groups"])
    assert_close(block(x), expected, 1e-11)


@given(configs())
@example(EXAMPLE)
def test_the_deploy_form_equals_the_training_form_and_loops(config):
    block, x = block_and_input(config)
    y = converted(block)(x)
    assert_close(y, block(x).detach(), 1e-10)
    expected = reference.repmlp(x.numpy(), reference.numpy_state(block), config["partition_size"], config["groups"])
    assert_close(y, expected, 1e-10)


@given(configs())
@example(EXAMPLE)
def test_the_deploy_form_equals_the_training_form_in_float32(config):
    block, x = block_and_input(config, dtype=torch.float32)
    assert_close(converted(block)(x), block(x).detach(), 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_both_forms_in_half_precision(config, dtype, tolerance):
    block, x = block_and_input(config)
    expected = block(x).detach()
    block, x = block.to(dtype), x.to(dtype)
    deployed = converted(block)
    assert {p.dtype for p in deployed.parameters()} == {dtype}
    for form in (block, deployed):
        y = form(x)
        assert y.dtype == dtype
        assert_close(y, expected, tolerance)


@given(configs())
@example(EXAMPLE)
def test_a_training_step_uses_and_keeps_the_statistics_of_the_batch(config):
    block, x = block_and_input(config, N=3)
    state = reference.numpy_state(block)
    expected = reference.repmlp(x.numpy(), state, config["partition_size"], config["groups"], training=True)
    assert_close(block.train()(x), expected, 1e-9)
    for name, tensor in block.state_dict().items():
        if "running" in name:
            assert_close(tensor, state[name], 1e-11)


def test_a_training_step_gives_every_parameter_a_gradient(config):
    block, x = block_and_input(config)
    block.train()(x).square().sum().backward()
    assert not [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_partition_sees_all_others_through_the_global_perceptron_only():
    for has_global in (True, False):
        block, x = block_and_input({**EXAMPLE, "global_perceptron": has_global})
        nearer = x.clone()
        nearer[:, :, :3, :4] += 1  # the first partition
        elsewhere = (block(nearer) - block(x))[:, :, 3:, 4:]
        assert bool(elsewhere.abs().max() > 1e-3) == has_global


def test_an_input_in_channels_last(config):
    block, x = block_and_input(config)
    for form in (block, converted(block)):
        assert_close(form(x.to(memory_format=torch.channels_last)), form(x).detach(), 1e-12)


@pytest.mark.parametrize(
    ("feature", "partition", "padded"),
    [((8, 8), (4, 4), (8, 8)), ((9, 9), (4, 4), (12, 12)), ((5, 9), (4, 5), (8, 10)), ((1, 7), (3, 8), (3, 8))],
)
def test_a_map_is_padded_to_the_next_multiples_of_a_partition(feature, partition, padded):
    assert padded_size(feature, partition) == padded


def test_the_defaults_are_the_papers():
    shapes = {name: tensor.shape for name, tensor in RepMLP(4, 4, 16, 8).state_dict().items()}
    block = RepMLP(4, 4, 16, 8, kernel_sizes=[1, 3, 5], groups=1, global_reduction=1, pad=False)
    assert shapes == {name: tensor.shape for name, tensor in block.state_dict().items()}


def test_an_empty_batch(config):
    block, x = block_and_input(config)
    for form in (block, converted(block)):
        assert form(x[:0]).shape == (0, 6, *block.feature_size)


# What the conversion leaves


def test_three_fully_connected_layers_are_left(config):
    layers = [m for m in converted(RepMLP(**config)).modules() if not list(m.children()) and list(m.parameters())]
    has_global = config.get("global_perceptron", True) and config["feature_size"] != config["partition_size"]
    assert sorted(type(m).__name__ for m in layers) == ["GroupedLinear", *["Linear"] * (2 * has_global)]
    assert all(m.bias is not None for m in layers)


def test_no_conv_and_no_norm_is_left(config):
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    assert not [m for m in converted(RepMLP(**config)).modules() if isinstance(m, kinds)]
    assert not list(converted(RepMLP(**config)).buffers())


def test_a_second_conversion_changes_nothing(config):
    block, _ = block_and_input(config)
    once = converted(block)
    twice = converted(once)
    assert list(once.state_dict()) == list(twice.state_dict())
    for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True):
        assert_same(a, b)
    assert str(once) == str(twice)


def test_conversion_is_in_place_and_keeps_the_mode(config):
    block = RepMLP(**config).train()
    weight = block.partition_perceptron.fc3.weight
    assert block.reparameterize() is None
    assert block.deploy
    assert block.training
    assert block.partition_perceptron.fc3.weight is weight


def test_a_block_built_in_deploy_form_loads_a_converted_one_strictly(config):
    block, x = block_and_input(config)
    deployed = converted(block)
    built = RepMLP(**config, deploy=True, dtype=torch.float64)
    assert list(built.state_dict()) == list(deployed.state_dict())
    built.load_state_dict(deployed.state_dict(), strict=True)
    assert_same(built.eval()(x), deployed(x))
    assert built.deploy
    built.reparameterize()
    assert_same(built(x), deployed(x))


def test_weights_of_one_form_do_not_load_into_the_other(config):
    trained, deployed = RepMLP(**config), RepMLP(**config, deploy=True)
    for a, b in ((trained, deployed), (deployed, trained)):
        with pytest.raises(RuntimeError, match="key"):
            a.load_state_dict(b.state_dict())


# FC3 as it will be


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equivalent_fc3_is_the_converted_fc3_bit_for_bit(config, dtype):
    block = randomize(RepMLP(**config, dtype=dtype))
    weight, bias = block.equivalent_fc3()
    fc3 = converted(block).partition_perceptron.fc3
    assert_same(weight, fc3.weight)
    assert_same(bias, fc3.bias)


def test_equivalent_fc3_of_a_deployed_block_is_its_fc3(config):
    block = RepMLP(**config, deploy=True)
    weight, bias = block.equivalent_fc3()
    assert weight is block.partition_perceptron.fc3.weight
    assert bias is block.partition_perceptron.fc3.bias


def test_equivalent_fc3_gives_a_gradient_to_all_that_goes_into_it(config):
    block = randomize(RepMLP(**config))
    weight, bias = block.equivalent_fc3()
    (weight.square().sum() + bias.square().sum()).backward()
    for name, p in block.named_parameters():
        has_gradient = p.grad is not None and bool(p.grad.any())
        assert has_gradient == (not name.startswith("global_perceptron")), name


def test_the_gradient_of_equivalent_fc3_is_right():
    block = randomize(RepMLP(2, 2, (2, 3), (2, 3), (1, (1, 3)), groups=2, dtype=torch.float64))
    names, parameters = zip(*block.named_parameters(), strict=True)

    def fc3(*tensors):
        return torch.func.functional_call(
            Equivalent(block), {f"block.{n}": t for n, t in zip(names, tensors, strict=True)}
        )

    assert torch.autograd.gradcheck(fc3, parameters)


class Equivalent(nn.Module):
    """``equivalent_fc3`` as a forward, for ``functional_call``."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self):
        return self.block.equivalent_fc3()


# Input that is wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"feature_size": (7, 12)},
            r"feature size 7x12 is not a multiple of partition 3x4: pass pad=True.* of 1, 7 and w",
        ),
        ({"feature_size": (6, 10)}, r"feature size 6x10 is not a multiple of partition 3x4.*w of 1, 2, 5, 10"),
        ({"feature_size": (6, 2**31 - 1)}, r"6x2147483647 is not .* of 1, 2, 3, 6 and w of 1, 2147483647"),
        ({"feature_size": 0}, r"feature size 0x0 and partition 3x4 must be positive"),
        ({"partition_size": (3, 0)}, r"feature size 6x12 and partition 3x0 must be positive"),
        ({"kernel_sizes": (2,)}, r"kernel 2x2 is even: only odd kernels"),
        ({"kernel_sizes": (-1,)}, r"kernel -1x-1 is negative"),
        ({"kernel_sizes": ((3, 2),)}, r"kernel 3x2 is even"),
        ({"kernel_sizes": (5,)}, r"kernel 5x5 is larger than the 3x4 map"),
        ({"kernel_sizes": ((1, 5),)}, r"kernel 1x5 is larger than the 3x4 map"),
        ({"kernel_sizes": (3, (3, 3))}, r"must name one or more kernels, each of them once"),
        ({"groups": 4}, r"4 groups do not divide 4 input and 6 output channels"),
        ({"in_channels": 3}, r"2 groups do not divide 3 input and 6 output channels"),
        ({"groups": 0}, r"0 groups do not divide 4 input and 6 output channels"),
        ({"groups": -2}, r"-2 groups do not divide 4 input and 6 output channels"),
        ({"global_reduction": 5}, r"global_reduction 5 does not divide the 24 features of FC1"),
        ({"global_reduction": 0}, r"global_reduction 0 does not divide the 24 features of FC1"),
    ],
)
@pytest.mark.parametrize("deploy", [False, True])
def test_arguments_that_do_not_fit_are_an_error_in_both_forms(change, message, deploy):
    with pytest.raises(ValueError, match=message):
        RepMLP(**{**EXAMPLE, **change}, deploy=deploy)


@pytest.mark.parametrize("shape", [(2, 4, 6, 11), (2, 4, 12, 6), (2, 5, 6, 12), (4, 6, 12), (2, 4, 6, 12, 1)])
@pytest.mark.parametrize("pad", [False, True])
def test_an_input_of_another_shape_is_an_error(shape, pad):
    message = rf"got an input of shape {list(shape)}, but was built for \(N, 4, 6, 12\)".replace("[", r"\[")
    with pytest.raises(ValueError, match=message):
        RepMLP(**EXAMPLE, pad=pad)(torch.zeros(shape))
