"""The random inputs of `verify`: what their rows look like, how many there are, and what is compared apart."""

from collections import Counter

import pytest
import torch
from torch import nn

from repmlp.conversion.comparison import rows_needed
from repmlp.conversion.probing import (
    FACTORS,
    MANY_SAMPLES,
    MIN_ROUNDS,
    MIN_SAMPLES,
    PROFILES,
    SIZES_AND_SIGNS,
    Probes,
    Spec,
    record_calls,
)

CPU = torch.device("cpu")


def probes(*shape: int, scale: float = 1.0) -> Probes:
    return Probes(((Spec(torch.Size(shape), scale, CPU),), {}))


def test_each_profile_stands_once_and_each_size_meets_each_sign_of_an_activation():
    assert len(set(PROFILES)) == len(PROFILES)
    assert {size for size, _ in PROFILES} == set(range(len(FACTORS)))
    assert {sign for _, sign in PROFILES} == {-1, 0, 1, 2}
    assert {(size, sign) for size in (1, 2) for sign in (-1, 1, 2)} <= set(PROFILES)
    assert {size for size, _ in PROFILES[:SIZES_AND_SIGNS]} == set(range(len(FACTORS)))


@pytest.mark.parametrize("scale", [0.5, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(5, 7, 7), (40, 6)])
def test_a_row_has_the_size_and_the_signs_of_its_profile(shape, scale):
    drawn = probes(20, *shape, scale=scale)
    args, kwargs, sizes = drawn.draw()
    assert kwargs == {}
    scales = [scale * factor for factor in FACTORS] + list(FACTORS)
    for number, (row, size) in enumerate(zip(args[0], sizes, strict=True)):
        expected_size, sign = drawn.profiles[number % len(drawn.profiles)]
        assert size == expected_size
        rms = row.square().mean().sqrt()
        assert 0.7 * scales[size] < rms < 1.4 * scales[size]
        rows = row.reshape(shape[0], -1) if len(shape) == 3 else row.T  # one channel each
        positive = (rows > 0).double().mean(1)
        if sign in (-1, 1):
            assert (positive == (sign == 1)).all()
        elif sign == 2:  # a channel has one sign; the channels differ
            assert set(positive.tolist()) <= {0.0, 1.0}
        else:
            assert 0.3 < positive.mean() < 0.7


def test_rows_go_on_where_the_last_call_stopped_and_every_process_draws_the_same():
    one, two = probes(3, 4), probes(3, 4)
    sizes = torch.cat([one.draw()[2] for _ in range(len(PROFILES))])
    assert sizes.tolist() == [size for size, _ in PROFILES] * 3
    for _ in range(len(PROFILES)):
        (x,), _, _ = two.draw()
    assert torch.equal(x, probes_drawn(3, 4, calls=len(PROFILES)))
    assert not torch.equal(x, probes_drawn(3, 4, calls=1))


def probes_drawn(*shape: int, calls: int) -> torch.Tensor:
    drawn = probes(*shape)
    for _ in range(calls):
        (x,), _, _ = drawn.draw()
    return x


def test_single_rows_take_each_profile_once():
    one = probes(1, 4)
    assert [int(one.draw()[2]) for _ in PROFILES] == [size for size, _ in PROFILES]


def test_inputs_without_rows_have_no_groups():
    assert probes().draw()[2] is None
    assert Probes(((torch.ones(2),), {})).draw()[2] is None


def test_a_module_that_sees_tiny_or_large_inputs_is_probed_around_one_too():
    assert probes(4, 3, scale=1.0).profiles == [*PROFILES]
    assert probes(4, 3, scale=1 / 16).profiles == [*PROFILES]
    assert probes(4, 3, scale=16.0).profiles == [*PROFILES]
    for scale in (1 / 17, 17.0):
        more = probes(4, 3, scale=scale).profiles
        assert more == [*PROFILES, *((len(FACTORS) + size, sign) for size, sign in PROFILES)]


@pytest.mark.parametrize("per_row", [1, 2, 3, 15, 16, MANY_SAMPLES - 1])
def test_each_channel_has_enough_samples_of_the_rarest_size(per_row):
    output, groups = torch.zeros(4, 5, per_row), torch.zeros(4)
    rows = rows_needed(output, groups, len(PROFILES))
    rounds, rest = divmod(rows, len(PROFILES))
    rarest = min(Counter(size for size, _ in PROFILES).values())
    assert rest == 0
    assert rounds >= MIN_ROUNDS
    assert rounds * rarest * per_row >= MIN_SAMPLES
    assert rounds == MIN_ROUNDS or (rounds - 1) * rarest * per_row < MIN_SAMPLES  # and no more


def test_a_large_map_needs_one_row_of_each_size():
    large, groups = torch.zeros(4, 5, MANY_SAMPLES), torch.zeros(4)
    assert rows_needed(large, groups, len(PROFILES)) == SIZES_AND_SIGNS
    assert rows_needed(large, groups, 2 * len(PROFILES)) == MIN_ROUNDS * 2 * len(PROFILES)
    assert rows_needed(large, None, len(PROFILES)) == 1
    assert rows_needed((large, large[..., :1]), groups, len(PROFILES)) > SIZES_AND_SIGNS  # the smaller one decides


def test_outputs_without_channels_count_one_sample_a_row():
    groups = torch.zeros(4)
    assert rows_needed(torch.zeros(4), groups, len(PROFILES)) == rows_needed(torch.zeros(4, 5), groups, len(PROFILES))


@pytest.mark.parametrize(("x", "scale"), [(torch.full((2, 3), -100.0), 100.0), (torch.zeros(2, 3), 1.0)])
def test_a_call_is_recorded_by_the_size_of_its_input(x, scale):
    layer = nn.Linear(3, 4)
    with record_calls({"layer": layer}) as calls:
        layer(x)
    ((spec,), kwargs) = calls.arguments["layer"]
    assert (spec.shape, spec.scale, kwargs) == (x.shape, scale, {})


class InARow(nn.Module):
    """Layers that return one tensor, several, or something else than a tensor, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.bn = nn.Sequential(nn.Conv1d(6, 6, 1)), nn.BatchNorm1d(6)
        self.attention, self.last = nn.MultiheadAttention(6, 2), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.inner(x)).mT
        y, _ = self.attention(y, y, y)
        return self.last(y)


def test_only_layers_without_layers_of_their_own_follow_each_other():
    model = InARow().eval()
    names = {name: module for name, module in model.named_modules() if name}
    with record_calls(names) as calls:
        model(torch.randn(2, 6, 5))
    assert calls.followers == {"inner.0": {"bn"}}
    assert calls.arguments.keys() >= {"inner", "inner.0", "bn", "attention", "last"}
