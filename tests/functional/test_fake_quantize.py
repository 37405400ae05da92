"""Rounding to integers: what it gives, against loops, and its gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compare import assert_same
from repmlp.functional import fake_quantize


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(2, 8), st.integers(0, 99))
def test_every_output_of_every_group_has_its_own_scale(g, Q, I, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(g, Q, I, generator=generator, dtype=torch.float64) * 10 ** torch.arange(g).view(g, 1, 1)
    rounded = fake_quantize(weight, bits)
    largest = 2 ** (bits - 1) - 1
    for k in range(g):
        for q in range(Q):
            scale = max(abs(w) for w in weight[k, q].tolist()) / largest
            for w, r in zip(weight[k, q].tolist(), rounded[k, q].tolist(), strict=True):
                assert r == pytest.approx(round(r / scale) * scale)
                assert abs(round(r / scale)) <= largest
                assert abs(w - r) <= scale / 2 * (1 + 1e-9)


def test_the_largest_weight_of_an_output_is_kept_and_zeros_stay_zeros():
    weight = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    rounded = fake_quantize(weight)
    assert rounded[0].tolist() == pytest.approx([64 * 2 / 127, -2.0, 0.0])  # 63.5 is rounded to the even 64
    assert rounded[1].tolist() == [0.0, 0.0, 0.0]


def test_what_is_rounded_already_stays_as_it_is():
    rounded = fake_quantize(torch.randn(2, 3, 50, dtype=torch.float64))
    torch.testing.assert_close(fake_quantize(rounded), rounded, rtol=1e-12, atol=0)


def test_it_is_what_pytorchs_own_fake_quantization_gives():
    weight = torch.randn(6, 40)
    scale = weight.abs().amax(1) / 127
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(6, dtype=torch.int32), 0, -127, 127)
    torch.testing.assert_close(fake_quantize(weight), theirs, rtol=1e-6, atol=0)


def test_the_gradient_goes_straight_through():
    weight = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 3, 5, dtype=torch.float64)
    fake_quantize(weight, 3).backward(gradient)
    assert_same(weight.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_and_device_stay(dtype):
    assert fake_quantize(torch.randn(2, 3, dtype=dtype)).dtype == dtype
    assert fake_quantize(torch.randn(2, 3, dtype=dtype, device="meta")).device.type == "meta"


def test_one_bit_is_refused():
    with pytest.raises(ValueError, match="1 bits hold only zero"):
        fake_quantize(torch.randn(2, 3), bits=1)
