"""Statistics from moments, against those of outputs that are computed one by one."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import reference
from compare import assert_close
from repmlp.functional import covariance, grouped_linear, im2col, linear_moments, patch_moments


def centered(x, groups):
    """Mean (g, I) and covariance (g, I, I) of rows (M, g*I)."""
    mean = x.mean(0)
    return mean.view(groups, -1), covariance(x - mean, groups)


def conv_moments(x, kernel, groups):
    """Mean and variance (O) of a conv's channels on maps (M, C, h, w), without the conv."""
    size, kernel_size = x.shape[2:], kernel.shape[2:]
    mean, S = centered(x.flatten(1), groups)
    taps = patch_moments(im2col(mean, size, kernel_size), S, size, kernel_size)
    return linear_moments(kernel.reshape(groups, kernel.shape[0] // groups, -1), *taps)


@st.composite
def linears(draw):
    """Rows (M, g*I) that are not centered, and a weight (g, Q, I)."""
    M, g, Q, I = (draw(st.integers(1, n)) for n in (6, 3, 4, 5))
    x, offset = torch.randn(M, g * I, dtype=torch.float64), torch.randn(g * I, dtype=torch.float64)
    return x + offset, torch.randn(g, Q, I, dtype=torch.float64)


@st.composite
def convs(draw):
    """Maps (M, C, h, w) that are not centered, a kernel (O, C/g, kh, kw) and g."""
    M, h, w, g, O_g, C_g = (draw(st.integers(1, n)) for n in (4, 5, 5, 3, 3, 2))
    kh, kw = (draw(st.sampled_from(range(1, n + 1, 2))) for n in (h, w))
    x, offset = torch.randn(M, g * C_g, h, w, dtype=torch.float64), torch.randn(g * C_g, h, w, dtype=torch.float64)
    return x + offset, torch.randn(g * O_g, C_g, kh, kw, dtype=torch.float64), g


@given(linears())
def test_the_covariance_of_each_group(linear):
    x, weight = linear
    groups = len(weight)
    _, S = centered(x, groups)
    for rows, group in zip(x.chunk(groups, 1), S, strict=True):
        assert_close(group, torch.cov(rows.T, correction=0).view_as(group), 1e-12)


@given(linears())
def test_the_statistics_of_an_fc_are_those_of_its_outputs(linear):
    x, weight = linear
    mean, variance = linear_moments(weight, *centered(x, len(weight)))
    y = grouped_linear(x, weight)
    assert_close(mean, y.mean(0), 1e-12)
    assert_close(variance, y.var(0, correction=0), 1e-12)


@given(convs())
def test_the_statistics_of_a_conv_are_those_of_its_outputs(conv):
    x, kernel, groups = conv
    mean, variance = conv_moments(x, kernel, groups)
    y = reference.conv(x.numpy(), kernel.numpy(), groups)
    assert_close(mean, y.mean((0, 2, 3)), 1e-12)
    assert_close(variance, y.var((0, 2, 3)), 1e-12)


@given(convs())
def test_the_moments_of_taps_are_those_of_every_window(conv):
    x, kernel, groups = conv
    size, kernel_size, (g, M) = x.shape[2:], kernel.shape[2:], (groups, len(x))
    padding = (kernel_size[0] // 2, kernel_size[1] // 2)
    windows = F.unfold(x, kernel_size, padding=padding).view(M, g, -1, size[0] * size[1])  # (M, g, T, h*w)
    windows = windows.permute(1, 2, 0, 3).flatten(2)  # (g, T, M*h*w)
    rows_mean, S = centered(x.flatten(1), groups)
    mean, cov = patch_moments(im2col(rows_mean, size, kernel_size), S, size, kernel_size)
    assert_close(mean, windows.mean(2), 1e-12)
    for group, expected in zip(cov, windows, strict=True):
        assert_close(group, torch.cov(expected, correction=0).view_as(group), 1e-12)


def test_first_and_second_derivatives():
    x = torch.randn(4, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(2, 2, 1, 3, dtype=torch.float64, requires_grad=True)

    def of_the_fc(x, weight):
        return linear_moments(weight, *centered(x.flatten(1), 2))

    def of_the_conv(x, kernel):
        return conv_moments(x, kernel, 2)

    def rows(x):
        return covariance(x.flatten(1), 2)

    for function, inputs in ((rows, (x,)), (of_the_fc, (x, weight)), (of_the_conv, (x, kernel))):
        assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_a_large_mean_costs_no_digits():
    x = torch.randn(64, 4, 4, 5, dtype=torch.float64) * 0.1 + 100
    weight, kernel = torch.randn(2, 6, 40, dtype=torch.float64), torch.randn(4, 2, 1, 1, dtype=torch.float64)
    for function, parameter in ((lambda x, w: linear_moments(w, *centered(x.flatten(1), 2)), weight),
                                (lambda x, k: conv_moments(x, k, 2), kernel)):  # fmt: skip
        # the input as float32 holds it: its own rounding is not in question
        _, expected = function(x.float().double(), parameter.float().double())
        _, variance = function(x.float(), parameter.float())
        assert variance.dtype == torch.float32
        assert_close(variance, expected, 1e-3)


def test_a_variance_is_never_negative():
    ones = torch.ones(1, 1, 8)
    S = torch.full((1, 8, 8), 1.0)  # all inputs are one: what a row with sum zero gives has no variance
    rows = torch.randn(1, 1000, 8)
    _, variance = linear_moments(rows - rows.mean(2, keepdim=True), ones[0], S)
    assert variance.min() >= 0
    x = torch.full((5, 4, 3, 3), 1e4)
    _, variance = conv_moments(x, torch.randn(4, 2, 1, 1), 2)
    assert variance.tolist() == [0.0] * 4


def test_shapes_on_the_meta_device():
    x, kernel = torch.empty(6, 4, 3, 5, device="meta"), torch.empty(8, 2, 3, 1, device="meta")
    mean, variance = conv_moments(x, kernel, 2)
    assert (mean.shape, variance.shape, variance.device.type) == ((8,), (8,), "meta")
