"""A conv's kernel as an FC's kernel: against the definition, the paper's identity trick, and the conv itself."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import reference
from compare import assert_close, assert_same
from repmlp.functional import add_conv_to_linear_, conv_to_linear, grouped_linear

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def odd(n):
    return range(1, n + 1, 2)


@st.composite
def convs(draw):
    """A kernel (O, C/g, kh, kw), the size (h, w) of a map that holds it, and g."""
    h, w, g, O_g, C_g = (
        draw(st.sampled_from(numbers)) for numbers in ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5), *[(1, 2, 3)] * 3)
    )
    kh, kw = draw(st.sampled_from([(kh, kw) for kh in odd(h) for kw in odd(w)]))
    return torch.randn(g * O_g, C_g, kh, kw, dtype=torch.float64), (h, w), g


def identity_trick(kernel, size, groups):
    """The paper's way (section 3.4): every pixel of an identity matrix through the conv, group by group."""
    (h, w), (_, C_g, kh, kw) = size, kernel.shape
    pixels = torch.eye(C_g * h * w, dtype=kernel.dtype).reshape(-1, C_g, h, w)
    columns = (F.conv2d(pixels, k, padding=(kh // 2, kw // 2)).flatten(1) for k in kernel.chunk(groups))
    return torch.stack([c.T for c in columns])


@given(convs())
def test_equals_the_definition_and_the_identity_trick(conv):
    kernel, (h, w), groups = conv
    weight = conv_to_linear(*conv)
    assert_same(weight, torch.from_numpy(reference.conv_as_linear(kernel.numpy(), h, w, groups)))
    assert_close(weight, identity_trick(*conv), 1e-15)


@given(convs())
def test_the_fc_computes_what_the_conv_does(conv):
    kernel, (h, w), groups = conv
    x = torch.randn(2, groups * kernel.shape[1], h, w, dtype=torch.float64)
    y = grouped_linear(x.flatten(1), conv_to_linear(*conv)).view(2, -1, h, w)
    assert_close(y, reference.conv(x.numpy(), kernel.numpy(), groups), 1e-12)
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    assert_close(y, F.conv2d(x, kernel, padding=padding, groups=groups), 1e-12)


@given(convs())
def test_in_place_on_zeros_is_the_same_bit_for_bit(conv):
    expected = conv_to_linear(*conv)
    weight = torch.zeros_like(expected)
    assert add_conv_to_linear_(weight, *conv) is weight
    assert_same(weight, expected)


@given(convs())
def test_in_place_adds_to_what_was_there(conv):
    wanted = conv_to_linear(*conv)
    before = torch.randn_like(wanted)
    assert_same(add_conv_to_linear_(before.clone(), *conv), before + wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_holds_the_kernels_own_numbers(dtype):
    kernel = torch.randn(4, 3, 3, 5, dtype=dtype)
    weight = conv_to_linear(kernel, (4, 6), 2)
    assert_same(weight, conv_to_linear(kernel.double(), (4, 6), 2).to(dtype))
    assert_same(add_conv_to_linear_(torch.zeros_like(weight), kernel, (4, 6), 2), weight)


def test_kernels_and_weights_that_are_not_contiguous():
    kernel = torch.randn(4, 3, 3, 5, dtype=torch.float64)
    expected = conv_to_linear(kernel, (4, 6), 2)
    for same in (kernel.to(memory_format=torch.channels_last), kernel.mT.contiguous().mT, kernel.flip(0).flip(0)):
        assert_same(conv_to_linear(same, (4, 6), 2), expected)
        assert_same(add_conv_to_linear_(torch.zeros_like(expected), same, (4, 6), 2), expected)
    every_other_row = torch.zeros(2, 2 * expected.shape[1], expected.shape[2], dtype=torch.float64)[:, ::2]
    assert_same(add_conv_to_linear_(every_other_row, kernel, (4, 6), 2), expected)


def test_shapes_on_the_meta_device():
    kernel = torch.empty(4, 3, 3, 5, device="meta")
    weight = conv_to_linear(kernel, (4, 6), 2)
    assert (weight.shape, weight.device.type) == ((2, 2 * 24, 3 * 24), "meta")
    assert add_conv_to_linear_(weight, kernel, (4, 6), 2) is weight


def test_first_and_second_derivatives():
    kernel = torch.randn(4, 2, 3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: conv_to_linear(k, (3, 2), 2), kernel)
    assert torch.autograd.gradgradcheck(lambda k: conv_to_linear(k, (3, 2), 2).square(), kernel)


def test_the_gradient_of_the_kernel_is_that_of_the_conv():
    kernel = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    x, gradient = torch.randn(2, 4, 3, 4, dtype=torch.float64), torch.randn(2, 4, 3, 4, dtype=torch.float64)
    F.conv2d(x, kernel, padding=1, groups=2).backward(gradient)
    expected, kernel.grad = kernel.grad, None
    grouped_linear(x.flatten(1), conv_to_linear(kernel, (3, 4), 2)).backward(gradient.flatten(1))
    assert_close(kernel.grad, expected, 1e-12)


def largest_allocation(function, *args) -> int:
    """Bytes of the largest piece of memory that a call asks the allocator for."""
    function(*args)  # whatever is set up once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function(*args)
    return max(
        (event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"), default=0
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_place_needs_no_scratch(layout):
    kernel, size, groups = torch.randn(16, 8, 5, 5).to(memory_format=layout), (8, 8), 2
    weight = torch.zeros(groups, 8 * 64, 8 * 64)
    assert largest_allocation(add_conv_to_linear_, weight, kernel, size, groups) <= kernel.nbytes
    # the measure sees what it should: the other way makes the whole FC kernel
    assert largest_allocation(conv_to_linear, kernel, size, groups) >= weight.nbytes


@pytest.mark.parametrize("shape", [(2, 2, 2, 3), (2, 2, 3, 4)])
def test_an_even_kernel_is_an_error(shape):
    for call in calls(shape, (5, 5), 1):
        with pytest.raises(ValueError, match=rf"kernel {shape[2]}x{shape[3]} is even: only odd kernels"):
            call()


@pytest.mark.parametrize("size", [(2, 5), (5, 2)])
def test_a_kernel_larger_than_the_map_is_an_error(size):
    for call in calls((2, 2, 3, 3), size, 1):
        with pytest.raises(ValueError, match=rf"kernel 3x3 is larger than the {size[0]}x{size[1]} map"):
            call()


@pytest.mark.parametrize("groups", [3, 0, -2])
def test_groups_that_do_not_divide_are_an_error(groups):
    for call in calls((4, 2, 3, 3), (3, 3), groups):
        with pytest.raises(ValueError, match=rf"{groups} groups do not divide the kernel's 4 output channels"):
            call()


def test_a_weight_of_another_shape_is_an_error_and_stays_as_it_is():
    weight = torch.zeros(1, 4 * 9, 4 * 9)
    with pytest.raises(ValueError, match=r"weight is \(1, 36, 36\).*2 groups needs \(2, 18, 18\)"):
        add_conv_to_linear_(weight, torch.ones(4, 2, 3, 3), (3, 3), 2)
    assert not weight.any()


def calls(shape, size, groups):
    kernel = torch.ones(shape)
    yield lambda: conv_to_linear(kernel, size, groups)
    yield lambda: add_conv_to_linear_(torch.zeros(1), kernel, size, groups)
