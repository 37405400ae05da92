"""The picture of a token-mixing row shows the rows that it says."""

import copy

import pytest
import torch
from torch import nn

import repmlp
from compare import assert_close, assert_same
from repmlp.plot import plot_token_mixing
from repmlp.plot.token_mixing import mixing_row
from weights import randomize


def model(class_token=False):
    size = 12 + class_token
    fcs = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 12 * 2 + class_token))
    return repmlp.inject_locality(fcs, (3,), layers=["0", "2"], grid=(3, 4), class_token=class_token)


@pytest.mark.parametrize("class_token", [False, True])
def test_a_row_is_the_map_that_one_token_draws_from(class_token):
    layer = model(class_token)[2]
    row, first = mixing_row(layer, layer, (1, 2)), int(class_token)
    assert row.shape == (3, 4)
    for y in range(3):
        for x in range(4):
            assert row[y, x] == layer.weight[first + 1 * 4 + 2, first + y * 4 + x]


def test_the_merge_adds_the_kernel_around_the_token():
    layer = randomize(model())[0]
    merged = copy.deepcopy(layer)
    merged.reparameterize()
    kernel, _ = layer.local_perceptron.equivalent_conv()
    added = mixing_row(merged, layer, (1, 2)) - mixing_row(layer, layer, (1, 2))
    assert_close(added[:, 1:4], kernel[0, 0].detach(), 1e-6)
    assert_same(added[:, 0], torch.zeros(3))


def test_it_draws_the_first_and_the_last_fc(tmp_path):
    initial, trained = model(), randomize(model())
    before = copy.deepcopy(trained.state_dict())
    assert plot_token_mixing(initial, trained, tmp_path / "row.png", token=(0, 3)) == tmp_path / "row.png"
    assert (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    plain = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 24))
    plot_token_mixing(plain, trained, tmp_path / "again.png")
    plot_token_mixing(plain[:1], trained[:1], tmp_path / "one.png")


def test_models_that_it_cannot_draw(tmp_path):
    image = tmp_path / "row.png"
    with pytest.raises(ValueError, match="no FC of the trained model has convs in parallel: pass the model in"):
        plot_token_mixing(model(), repmlp.reparameterize(model()), image)
    with pytest.raises(ValueError, match="the initial model has no FC 0 of this size: pass the same model before"):
        plot_token_mixing(nn.Sequential(nn.Linear(9, 9)), model(), image)
    with pytest.raises(ValueError, match="the initial model has no FC 0 of this size"):
        plot_token_mixing(nn.ReLU(), model(), image)
    assert not image.exists()
