"""Models whose outputs one rounding of the weights already changes: `verify` vouches for them only part by part."""

import copy

import pytest
import torch
from torch import nn

import repmlp
from repmlp.conversion.equivalence import _some_rows
from repmlp.conversion.probing import ROWS
from weights import randomize

X = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def network(cancels: bool) -> nn.Module:
    """A conv and its BN, and a difference of two channels; if it cancels, the channels agree to a millionth."""
    model = randomize(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    model.append(nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[4].weight[:] = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
        if cancels:
            model[3].weight[1] = model[3].weight[0] * (1 + 1e-6)
            model[3].bias[1] = model[3].bias[0]
    return model.eval()


def test_a_function_that_rounding_could_explain_is_not_vouched_for():
    model = network(cancels=True)
    report = repmlp.verify(model, lambda x: model(x), X)
    assert not report
    assert "too much to tell models apart as a whole" in str(report)


@pytest.mark.parametrize(("cancels", "dtype"), [(False, torch.float32), (True, torch.float64)])
def test_a_function_of_a_model_that_rounding_hardly_moves_is_vouched_for(cancels, dtype):
    model = network(cancels).to(dtype)
    assert repmlp.verify(model, lambda x: model(x), X.to(dtype))
    report = repmlp.verify(model, lambda x: model(x) * 1.01, X.to(dtype))
    assert not report
    assert report.network.note == ""


def test_parts_are_vouched_for_where_the_whole_could_not_be():
    model = network(cancels=True)
    folded = repmlp.fold_norms(model, X)
    report = repmlp.verify(model, folded, X)
    assert report
    assert [row.name for row in report.blocks] == ["0 + 1"]
    with torch.no_grad():
        folded[0].weight[1, 2] *= 1.001
    assert not repmlp.verify(model, folded, X)


class Apart(nn.Module):
    """The last two layers of a network, with an activation between them that is no module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.first, self.second = model[3], model[4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("cancels", [False, True])
def test_a_difference_that_only_the_whole_explains_is_vouched_for_unless_rounding_could_explain_it(cancels):
    a = Apart(network(cancels))
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.first.weight *= 3
        b.first.bias *= 3
        b.second.weight /= 3
    report = repmlp.verify(a, b, X)
    assert bool(report) != cancels
    assert ("too much to tell models apart" in str(report)) == cancels
    assert repmlp.verify(a, copy.deepcopy(a), X)  # no difference needs no explanation


@pytest.mark.parametrize("batch", [1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 2 * ROWS + 1, 100])
def test_at_most_a_few_images_evenly_spread_decide(batch):
    x, other, number = torch.arange(batch), torch.arange(batch + 1), torch.tensor(3)
    some, whole, same = _some_rows((x, other, number), batch)
    assert torch.equal(whole, other)
    assert same is number
    assert some[0] == 0
    assert len(set(some.diff().tolist())) <= 1
    assert ROWS / 2 < len(some) <= ROWS or len(some) == batch <= ROWS
