"""When a training step from moments should cost less than one that runs the branches."""

import pytest
import torch

from repmlp.layers.moments import prefer_moments

CONVS = [(k, k) for k in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("C", "h", "g", "kernel_sizes", "rows", "pays"),
    [
        (8, 8, 2, CONVS, 2048, True),  # measured: 2.5 times faster
        (16, 8, 2, CONVS, 2048, True),
        (32, 8, 2, CONVS, 512, False),  # measured: 3 times slower
        (64, 8, 2, CONVS, 128, False),
        (64, 7, 8, CONVS[:3], 512, False),
        (32, 7, 8, CONVS[:3], 2048, True),
    ],
)
def test_moments_pay_on_narrow_maps_with_many_rows(C, h, g, kernel_sizes, rows, pays):
    features = C // g * h * h
    assert prefer_moments(rows, features, features, (h, h), kernel_sizes) == pays


@pytest.mark.parametrize(
    ("C", "h", "g", "kernel_sizes", "rows", "pays"),
    [
        (8, 8, 2, CONVS, 2048, True),  # measured: 1.9 times as fast
        (16, 8, 2, CONVS, 2048, False),
        (32, 7, 8, CONVS[:3], 2048, True),
        (64, 7, 8, CONVS[:3], 2048, False),
    ],
)
def test_they_pay_less_often_in_bf16_which_speeds_up_the_convs_alone(C, h, g, kernel_sizes, rows, pays):
    features = C // g * h * h
    arguments = (rows, features, features, (h, h), kernel_sizes)
    assert prefer_moments(*arguments, torch.bfloat16) == pays
    assert all(prefer_moments(*arguments, dtype) for dtype in (torch.float32, torch.float64))


@pytest.mark.parametrize("rows", [100, 300, 1000, 3000, 10000])
@pytest.mark.parametrize("size", [(2, 8), (4, 16), (7, 3)])
def test_the_rule_does_not_tell_height_from_width(size, rows):
    features = 4 * size[0] * size[1]
    ways = [prefer_moments(rows, features, features, s, CONVS[:2]) for s in (size, size[::-1])]
    assert ways[0] == ways[1]


def test_what_makes_moments_pay():
    def pay(rows=2048, channels=4, kernel_sizes=CONVS):
        return prefer_moments(rows, channels * 64, channels * 64, (8, 8), kernel_sizes)

    assert pay()
    assert not pay(rows=64)
    assert not pay(channels=32, rows=256)
    assert not pay(kernel_sizes=CONVS[:1])
    assert not pay(kernel_sizes=())
