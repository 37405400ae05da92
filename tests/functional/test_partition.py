"""The partition map is a re-arrangement, and its inverse undoes it exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from compare import assert_same
from repmlp.functional import pad_to_multiple, partition_map, unpartition_map

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
small = st.integers(1, 3)


@given(N=small, C=small, rows=small, cols=small, h=small, w=small)
def test_partition_map_equals_loops(N, C, rows, cols, h, w):
    x = torch.randn(N, C, rows * h, cols * w, dtype=torch.float64)
    m = partition_map(x, (h, w))
    assert_same(m, torch.from_numpy(reference.partition_map(x.numpy(), h, w)))
    assert_same(
        unpartition_map(m, (rows * h, cols * w)), torch.from_numpy(reference.unpartition_map(m.numpy(), *x.shape[2:]))
    )
    assert_same(unpartition_map(m, (rows * h, cols * w)), x)


@given(N=small, C=small, H=st.integers(1, 9), W=st.integers(1, 9), h=st.integers(1, 4), w=st.integers(1, 4))
def test_padding_is_cropped_away(N, C, H, W, h, w):
    x = torch.randn(N, C, H, W, dtype=torch.float64)
    m = partition_map(x, (h, w), pad=True)
    assert_same(m, torch.from_numpy(reference.partition_map(x.numpy(), h, w)))
    assert_same(unpartition_map(m, (H, W)), x)


def test_a_partition_holds_what_the_docstring_says():
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    m = partition_map(x, (2, 3))  # P = 2 * 2
    n, i, j = 1, 0, 1
    assert torch.equal(m[n * 4 + i * 2 + j], x[n, :, 0:2, 3:6])


def test_zeros_are_padded_at_the_bottom_and_the_right():
    padded = pad_to_multiple(torch.ones(1, 1, 3, 4), (2, 3))
    assert torch.equal(padded[0, 0], torch.tensor([[1.0, 1, 1, 1, 0, 0]] * 3 + [[0.0] * 6]))


def test_nothing_is_copied_where_nothing_is_padded():
    x = torch.ones(1, 1, 4, 6)
    assert pad_to_multiple(x, (2, 3)) is x


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_and_layout_of_the_input_do_not_matter(dtype):
    x = torch.randn(2, 3, 5, 7, dtype=dtype)
    expected = partition_map(x, (2, 3), pad=True)
    for same in (x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        m = partition_map(same, (2, 3), pad=True)
        assert_same(m, expected)
        assert_same(unpartition_map(m, (5, 7)), x)


def test_shapes_on_the_meta_device():
    m = partition_map(torch.empty(2, 3, 5, 7, device="meta"), (2, 3), pad=True)
    assert (m.shape, m.device.type) == ((2 * 3 * 3, 3, 2, 3), "meta")
    assert unpartition_map(m, (5, 7)).shape == (2, 3, 5, 7)


def test_gradients_pass_through_both_maps():
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: partition_map(x, (2, 3), pad=True), x)
    m = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: unpartition_map(m, (3, 5)), m)


def test_an_empty_batch_stays_empty():
    m = partition_map(torch.empty(0, 3, 4, 6), (2, 3))
    assert m.shape == (0, 3, 2, 3)
    assert unpartition_map(m, (4, 6)).shape == (0, 3, 4, 6)


def test_a_size_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match=r"feature size 5x6 is not a multiple of partition 2x3: pass pad=True"):
        partition_map(torch.ones(1, 1, 5, 6), (2, 3))
    with pytest.raises(ValueError, match=r"feature size 4x7 is not a multiple of partition 2x3"):
        partition_map(torch.ones(1, 1, 4, 7), (2, 3))


def test_partitions_that_fill_no_map_are_an_error():
    with pytest.raises(ValueError, match=r"5 partitions of 2x3 do not fill feature maps of 4x6.*a multiple of 4"):
        unpartition_map(torch.ones(5, 1, 2, 3), (4, 6))
