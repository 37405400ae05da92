"""Folding a batch norm changes nothing but the number of layers."""

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compare import assert_close
from repmlp.functional import fold_bn_into_following, fold_bn_into_preceding, to_double
from repmlp.layers.conv_norm import bn_affine
from weights import randomize

seeds = st.integers(0, 2**16)


def random_norm(features, seed=0, affine=True, eps=1e-5, kind=nn.BatchNorm1d):
    norm = kind(features, eps=eps, affine=True, dtype=torch.float64)
    randomize(norm, seed)
    if not affine:
        norm.weight = norm.bias = None
    return norm


@given(seed=seeds, affine=st.booleans(), eps=st.sampled_from([1e-5, 1e-3, 0.1]))
def test_scale_and_shift_are_the_norm_in_eval_mode(seed, affine, eps):
    norm = random_norm(5, seed, affine, eps)
    x = torch.randn(4, 5, dtype=torch.float64)
    scale, shift = bn_affine(norm)
    assert_close(scale * x + shift, norm(x).detach(), 1e-12)
    for c in range(5):  # and by the formula, channel by channel
        gamma, beta = (norm.weight[c].item(), norm.bias[c].item()) if affine else (1.0, 0.0)
        sigma = (norm.running_var[c].item() + eps) ** 0.5
        assert scale[c].item() == pytest.approx(gamma / sigma, rel=1e-12)
        assert shift[c].item() == pytest.approx(beta - norm.running_mean[c].item() * gamma / sigma, rel=1e-12)


def test_a_frozen_norm_folds_as_it_did_before():
    holder = nn.Sequential(random_norm(5, kind=nn.BatchNorm2d))
    before = bn_affine(holder[0])
    frozen = timm.utils.model.freeze_batch_norm_2d(holder)[0]
    assert not isinstance(frozen, nn.BatchNorm2d)
    assert all(torch.equal(a, b) for a, b in zip(bn_affine(frozen), before, strict=True))


@given(seed=seeds, bias=st.booleans(), groups=st.sampled_from([1, 2]))
def test_a_norm_after_a_conv(seed, bias, groups):
    conv = nn.Conv2d(4, 6, (3, 1), padding=(1, 0), groups=groups, bias=bias, dtype=torch.float64)
    norm = random_norm(6, seed, kind=nn.BatchNorm2d)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    weight, shift = fold_bn_into_preceding(conv.weight, conv.bias, *bn_affine(norm))
    assert_close(F.conv2d(x, weight, shift, padding=(1, 0), groups=groups), norm(conv(x)).detach(), 1e-12)


@given(seed=seeds, bias=st.booleans())
def test_a_norm_after_an_fc(seed, bias):
    fc, norm = nn.Linear(4, 6, bias=bias, dtype=torch.float64), random_norm(6, seed)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_close(
        F.linear(x, *fold_bn_into_preceding(fc.weight, fc.bias, *bn_affine(norm))), norm(fc(x)).detach(), 1e-12
    )


@given(seed=seeds, bias=st.booleans())
def test_a_norm_before_an_fc(seed, bias):
    fc, norm = nn.Linear(4, 6, bias=bias, dtype=torch.float64), random_norm(4, seed)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_close(
        F.linear(x, *fold_bn_into_following(fc.weight, fc.bias, *bn_affine(norm))), fc(norm(x)).detach(), 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_folding_is_done_in_float64(dtype):
    norm = random_norm(6).to(dtype)
    fc = nn.Linear(6, 6, dtype=dtype)
    scale, shift = bn_affine(norm)
    folded = (
        *fold_bn_into_preceding(fc.weight, fc.bias, scale, shift),
        *fold_bn_into_following(fc.weight, fc.bias, scale, shift),
    )
    assert {t.dtype for t in (scale, shift, *folded)} == {torch.float64}
    wide_norm, wide_fc = norm.double(), fc.double()
    expected = fold_bn_into_preceding(wide_fc.weight, wide_fc.bias, *bn_affine(wide_norm))
    assert all(torch.equal(a, b) for a, b in zip(folded, expected, strict=False))
    assert to_double(torch.ones(1, dtype=dtype)).dtype == torch.float64


@pytest.mark.parametrize("before", [False, True])
def test_gradients_are_those_of_the_norm_and_the_fc(before):
    fc, norm = nn.Linear(4, 4, dtype=torch.float64), random_norm(4)
    parameters = [*fc.parameters(), *norm.parameters()]
    fold = fold_bn_into_following if before else fold_bn_into_preceding
    x, gradient = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    apart = fc(norm(x)) if before else norm(fc(x))
    folded = F.linear(x, *fold(fc.weight, fc.bias, *bn_affine(norm)))
    for ours, theirs in zip(*(torch.autograd.grad(y, parameters, gradient) for y in (folded, apart)), strict=True):
        assert_close(ours, theirs, 1e-12)


def test_a_norm_that_needs_the_batch_cannot_be_folded():
    with pytest.raises(ValueError, match=r"keeps no running statistics.*track_running_stats=True"):
        bn_affine(nn.BatchNorm2d(3, track_running_stats=False))
