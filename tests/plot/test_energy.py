"""The share of FC3's energy near the output pixel."""

import timm
import torch
from PIL import Image, ImageColor

from repmlp import RepMLP
from repmlp.functional import conv_to_linear
from repmlp.plot import plot_energy
from repmlp.plot.ablation import COLORS
from repmlp.plot.energy import energy_within
from weights import randomize


def test_the_energy_of_a_conv_lies_within_its_kernel():
    kernel = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    share = energy_within(conv_to_linear(kernel, (4, 6), groups=2), (4, 6))
    assert share.shape == (6,)
    assert share[0] < 0.5
    torch.testing.assert_close(share[1:], torch.ones(5, dtype=torch.float64))


def test_it_is_the_sum_over_explicit_pairs_of_pixels():
    h, w, weight = 2, 3, torch.randn(2, 12, 6, dtype=torch.float64)  # g 2, O/g 2, C/g 1
    expected = torch.zeros(3, dtype=torch.float64)
    fc3 = weight.view(2, 2, h, w, 1, h, w)
    for y in range(h):
        for x in range(w):
            for y2 in range(h):
                for x2 in range(w):
                    expected[max(abs(y - y2), abs(x - x2)) :] += fc3[:, :, y, x, :, y2, x2].square().sum()
    torch.testing.assert_close(energy_within(weight, (h, w)), expected / expected[-1])


def test_the_merge_makes_fc3_more_local():
    block = randomize(RepMLP(4, 4, 8, 4, (1, 3), groups=2).double())
    with torch.no_grad():
        for branch in block.local_perceptron.branches.values():
            branch.conv.weight *= 10
    alone, _ = block.partition_perceptron.equivalent_fc3()
    merged, _ = block.equivalent_fc3()
    assert energy_within(merged, (4, 4))[1] > energy_within(alone, (4, 4))[1] + 0.1


def test_the_picture_has_a_line_for_each_network_with_an_fc3(tmp_path):
    size = {"img_size": 8, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]}
    pure = timm.create_model("repmlp_cifar", **size)
    conv = timm.create_model("repmlp_cifar", **{**size, "block": "conv3"})
    image = plot_energy({"pure-mlp": pure, "no-local": pure, "conv9": conv}, tmp_path / "energy.png")
    with Image.open(image) as picture:
        pixels = {color for _, color in picture.convert("RGB").getcolors(maxcolors=2**24)}
    shown = {name: ImageColor.getrgb(COLORS[name]) in pixels for name in ("pure-mlp", "no-local", "conv9")}
    assert shown == {"pure-mlp": True, "no-local": True, "conv9": False}
    assert plot_energy({"conv9": conv}, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
