"""The effect of rounding, on which the verdict rests, is that of rounding."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from compare import assert_same
from repmlp.conversion import Deviation, deviation
from repmlp.conversion.rounding import FLOOR, LIMIT, Tally, paired_tensors, rounded_copy, tensors_of, tiled, wide_copy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_rounded_copy_moves_each_weight_by_half_a_unit_in_the_last_place(dtype):
    model = nn.Sequential(nn.Linear(300, 40), nn.BatchNorm1d(40)).to(dtype)
    wide, rounded = wide_copy(model), rounded_copy(model, 0)
    for name, tensor in wide.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            moved = rounded.state_dict()[name] - tensor
            info = torch.finfo(dtype)
            step = (tensor.abs() * info.eps / 2).clamp(min=info.smallest_normal * info.eps / 2)  # subnormal numbers
            # float64 itself rounds the sum
            torch.testing.assert_close(moved.abs(), step, rtol=1e-3 if dtype != torch.float64 else 1.1, atol=1e-24)
    up = (rounded[0].weight > wide[0].weight).double().mean()
    assert 0.45 < up < 0.55
    assert not rounded.training
    assert model[0].weight.dtype == dtype


def test_a_buffer_with_two_names_is_rounded_under_both():
    model = nn.Module()
    model.register_buffer("one", torch.ones(5))
    model.register_buffer("two", model.one)
    rounded = rounded_copy(model, 0)
    assert (rounded.one != 1).all()
    assert (rounded.two != 1).all()


def test_seeds_round_differently_and_the_same_seed_does_not():
    model = nn.Linear(50, 50)
    a, b, c = (rounded_copy(model, seed).weight for seed in (0, 0, 1))
    assert_same(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("numbers", [1, 99, 100, 101, 250, 1000])
def test_tiled_numbers_come_from_the_pool_in_its_order(numbers):
    pool = torch.arange(100.0)
    for seed in range(5):
        x = tiled(pool, torch.Size([numbers]), torch.Generator().manual_seed(seed))
        assert torch.equal(x, (x[0] + torch.arange(float(numbers))) % 100)
    pool.zero_()
    assert x.any() or numbers == 1  # a copy


def test_tensors_of_nested_outputs():
    @dataclass
    class Output:
        logits: torch.Tensor
        hidden: tuple

    Pair = namedtuple("Pair", ["x", "y"])
    one = torch.ones(1)
    output = {"a": [one, None, Output(one, (one, 2.0))], "b": Pair(one, "text")}
    assert list(dict(tensors_of(output))) == [
        "['a'][0]",
        "['a'][2].logits",
        "['a'][2].hidden[0]",
        "['a'][2].hidden[1]",
        "['b'][0]",
    ]
    assert list(dict(tensors_of(one.numpy()))) == [""]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({"x": torch.ones(1), "y": torch.ones(1)}, {"x": torch.ones(1)}, "outputs differ in structure"),
        (torch.ones(2), torch.ones(3), r"outputs differ in shape, \[2\] and \[3\]"),
    ],
)
def test_outputs_that_do_not_belong_together(a, b, message):
    with pytest.raises(ValueError, match=message):
        list(paired_tensors(a, b))


def test_one_tensor_belongs_to_a_list_of_one():
    assert len(list(paired_tensors(torch.ones(2), [torch.ones(2)]))) == 1


def test_deviation():
    assert deviation(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == Deviation(maximum=0.5, relative=0.1)
    assert deviation(torch.ones(2), torch.tensor([1.0, float("nan")])).relative == float("inf")
    assert deviation(torch.zeros(2), torch.ones(2)).relative == float("inf")
    with pytest.raises(ValueError, match="outputs differ in shape"):
        deviation(torch.ones(1, 2), torch.ones(2, 2))


@pytest.mark.parametrize("worst", range(5))
@pytest.mark.parametrize("shape", [(64, 5), (64, 5, 3, 3), (64, 7, 5)])
def test_the_verdict_is_that_of_the_worst_channel(shape, worst):
    x = torch.randn(shape, dtype=torch.float64)
    axis = 2 if len(shape) == 3 else 1
    noise, error = (1e-8 * torch.randn(shape, dtype=torch.float64) for _ in range(2))
    channel = [1.0] * 5
    channel[worst] = 100.0
    error = error * torch.tensor(channel).view([-1 if i == axis else 1 for i in range(len(shape))])
    tally = Tally()
    tally.add(x, x + error, [(x, x + noise)])
    verdict = tally.verdict()
    assert verdict.channel == worst
    assert 50 < verdict.ratio < 200


def test_small_inputs_are_judged_apart_from_large_ones():
    """An error that is the same for all inputs drowns in the rounding of the large ones."""
    x = torch.randn(8, 5, dtype=torch.float64) * torch.tensor([1.0, 1e6] * 4).view(8, 1)
    tally = Tally(groups=2)
    tally.add(x, x + 1e-3, [(x, x * (1 + 1e-7))], groups=torch.tensor([0, 1] * 4))
    assert tally.verdict().ratio > 1000
    together = Tally()
    together.add(x, x + 1e-3, [(x, x * (1 + 1e-7))])
    assert together.verdict().ratio < 1


def test_arithmetic_in_the_tail_of_an_activation_is_rounding():
    """1 + erf(x) cancels: GELU(-7) is 1e-12, right to the last digit of 1 and not to its own."""
    x = torch.stack([torch.linspace(-8, 8, 64), torch.linspace(-8, -7, 64)], 1).double()
    a, b = nn.functional.gelu(x), nn.functional.gelu(x * (1 + 1e-7))
    moved = torch.stack([b[:, 0], a[:, 1]], 1)  # rounding happens to reach no other digit there
    assert deviation(a[:, 1], b[:, 1]).relative > LIMIT * FLOOR
    exact, wrong = Tally(), Tally()
    exact.add(a, b, [(a, moved)])
    assert exact.verdict().ratio < 2
    a[:, 1] = 1e-9 * x[:, 1]
    wrong.add(a, a * torch.tensor([1, 1 + 1e-4]), [(a, a)])
    assert wrong.verdict().ratio > LIMIT
    assert wrong.verdict().channel == 1


@pytest.mark.parametrize("dead", [0, 2, 7])
def test_a_usual_channel_is_one_that_rounding_moves(dead):
    """Half the channels of a block may be zero behind its ReLU, and leave only what its shortcut adds."""
    x = torch.ones(4, 10, dtype=torch.float64)
    x[:, :dead] = 1e-3
    moved = x * (1 + 1e-3 * (x == 1))
    moved[:, 9] = 1 + 1e-6  # by chance
    exact, wrong = (x.clone() for _ in range(2))
    exact[:, 9] += 1e-3
    wrong[:, 9] += 1e-2
    for other, within in ((exact, True), (wrong, False)):
        tally = Tally()
        tally.add(x, other, [(x, moved)])
        assert (tally.verdict().ratio < LIMIT) == within


def test_the_effect_of_rounding_is_that_of_the_output_that_it_moves_most():
    x = torch.tensor([[3.0, 4.0]]).double()  # of norm 5
    output, zero = {"a": x, "b": x, "zero": 0 * x}, 0 * x
    tally = Tally()
    for factor in (2, 1):  # two batches
        moved = {"a": x + 0.5, "b": factor * x, "zero": zero}
        tally.add(output, output, [(output, moved)])
    assert tally.relative_rounding() == pytest.approx((25 / 50) ** 0.5)  # of b; a is moved by (1 / 50) ** 0.5
    assert Tally().relative_rounding() == 0.0


@pytest.mark.parametrize("dominated", range(6))
def test_channels_that_rounding_dominates_do_not_make_it_usual(dominated):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(100, 6, generator=generator, dtype=torch.float64)
    a[:, :dominated] *= 1e-3
    moved = a + 1e-7 * torch.randn(a.shape, generator=generator)
    moved[:, :dominated] += 0.06
    wrong = a.clone()
    wrong[:, 5] += 0.01
    for b, equal in ((moved, True), (wrong, False)):
        tally = Tally()
        tally.add(a, b, [(a, moved)])
        assert (tally.verdict().ratio <= LIMIT) == equal
