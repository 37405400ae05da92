"""The grouped FC: one FC per group, in one batched product."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import reference
from compare import assert_close
from repmlp.functional import grouped_linear


def inputs(M, g, Q, I, bias, dtype=torch.float64):
    tensors = [torch.randn(M, g * I), torch.randn(g, Q, I), torch.randn(g * Q) if bias else None]
    return [t if t is None else t.to(dtype).requires_grad_() for t in tensors]


sizes = {"M": st.integers(1, 4), "g": st.integers(1, 4), "Q": st.integers(1, 5), "I": st.integers(1, 5)}


@given(**sizes, bias=st.booleans())
def test_equals_loops(M, g, Q, I, bias):
    x, weight, b = inputs(M, g, Q, I, bias)
    expected = reference.grouped_linear(*(None if t is None else t.detach().numpy() for t in (x, weight, b)))
    assert_close(grouped_linear(x, weight, b), expected, 1e-12)


@given(**sizes, bias=st.booleans())
def test_equals_a_grouped_1x1_conv_forward_and_backward(M, g, Q, I, bias):
    ours = inputs(M, g, Q, I, bias)
    theirs = [t if t is None else t.detach().clone().requires_grad_() for t in ours]
    x, weight, b = theirs
    expected = F.conv2d(x[..., None, None], weight.reshape(g * Q, I, 1, 1), b, groups=g).flatten(1)
    y = grouped_linear(*ours)
    assert_close(y, expected.detach(), 1e-12)

    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient)
    for our, their in zip(ours, theirs, strict=True):
        if our is not None:
            assert_close(our.grad, their.grad, 1e-12)


def test_second_derivatives():
    tensors = inputs(2, 2, 2, 3, bias=True)
    assert torch.autograd.gradcheck(grouped_linear, tensors)
    assert torch.autograd.gradgradcheck(grouped_linear, tensors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_the_dtype_of_the_input_is_that_of_the_output(dtype, tolerance):
    x, weight, bias = inputs(8, 2, 6, 5, bias=True, dtype=dtype)
    y = grouped_linear(x, weight, bias)
    assert y.dtype == dtype
    assert_close(y, grouped_linear(x.double(), weight.double(), bias.double()).detach(), tolerance)


@pytest.mark.parametrize("bias", [False, True])
def test_autocast_decides_the_dtype_as_for_a_linear_layer(bias):
    x, weight, b = inputs(8, 2, 6, 5, bias, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_linear(x, weight, b).dtype == F.linear(x, weight.flatten(0, 1).repeat(1, 2), b).dtype


def test_an_input_that_is_not_contiguous():
    x, weight, bias = inputs(3, 2, 4, 5, bias=True)
    assert_close(grouped_linear(x.T.contiguous().T, weight, bias), grouped_linear(x, weight, bias).detach(), 1e-14)


def test_shapes_on_the_meta_device():
    y = grouped_linear(torch.empty(7, 6, device="meta"), torch.empty(2, 5, 3, device="meta"))
    assert (y.shape, y.device.type) == ((7, 10), "meta")


def test_no_rows_give_no_rows():
    assert grouped_linear(torch.empty(0, 6), torch.empty(2, 5, 3), torch.empty(10)).shape == (0, 10)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_form_by_rows_computes_the_same_with_the_same_gradients(groups, bias):
    x = torch.randn(5, groups * 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(groups, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(groups * 3, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, b) if t is not None]
    a, c = grouped_linear(x, weight, b), grouped_linear(x, weight, b, by_rows=True)
    torch.testing.assert_close(a, c)
    assert c.is_contiguous()
    gradient = torch.randn_like(a)
    for one, other in zip(
        torch.autograd.grad(a, inputs, gradient), torch.autograd.grad(c, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(one, other)
