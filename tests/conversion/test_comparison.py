"""Which module is named when two models differ, and what a larger module may make up for."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from timm.layers import LayerScale
from torch import nn

import repmlp
from repmlp.conversion.differences import same_weights, translate
from repmlp.layers import ConvNorm
from weights import randomize


class Net(nn.Module):
    """A stem that is folded from outside, a block, a residual, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.block = ConvNorm(4, 6, 3)
        self.act = nn.ReLU()
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = x + self.bn2(self.conv2(x))
        return self.fc(self.act(self.block(x)).mean((2, 3)))


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomize(Net())


@pytest.fixture
def deployed(model):
    return repmlp.fold_norms(repmlp.reparameterize(model), X)


def change(model, name, factor=1.001):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] *= factor


def test_norms_that_moved_into_the_layer_before_them_are_compared_with_it(model, deployed):
    report = repmlp.verify(model, deployed, X)
    assert report
    assert [row.name for row in report.blocks] == ["conv1 + bn1", "conv2 + bn2", "block"]


@pytest.mark.parametrize(
    ("tensor", "module"),
    [
        ("conv1.weight", "conv1 + bn1"),
        ("conv1.bias", "conv1 + bn1"),
        ("conv2.weight", "conv2 + bn2"),
        ("conv2.bias", "conv2 + bn2"),
        ("block.conv.weight", "block"),
        ("block.conv.bias", "block"),
        ("fc.weight", "fc"),
        ("fc.bias", "fc"),
    ],
)
def test_a_change_is_found_in_its_module_and_tensor(model, deployed, tensor, module):
    change(deployed, tensor)
    report = repmlp.verify(model, deployed, X)
    assert not report
    assert (report.first_difference.name, report.first_difference.tensor) == (module, tensor)
    assert f"First difference in {module}, in tensor {tensor}" in str(report)


@pytest.mark.parametrize("channel", [0, 3])
def test_the_worst_channel_is_named(model, deployed, channel):
    with torch.no_grad():
        deployed.conv1.weight[channel, 0, 0, 0] += 0.1
    assert repmlp.verify(model, deployed, X).first_difference.channel == channel


def test_of_two_changes_both_are_shown_and_the_first_is_named(model, deployed):
    change(deployed, "fc.weight")
    change(deployed, "conv2.weight")
    report = repmlp.verify(model, deployed, X)
    assert report.first_difference.name == "conv2 + bn2"
    assert report.blocks[-1].name == "fc"


def test_a_norm_that_was_dropped_is_named(model):
    broken = copy.deepcopy(model)
    broken.bn2 = nn.Identity()
    assert repmlp.verify(model, broken, X).first_difference.name == "bn2"


def test_a_change_that_no_unit_passes_on_is_still_found(model, deployed):
    """All units of the block are dead on the images, so the outputs of the network are the same."""
    for m in (model.block.bn, deployed.block.conv):
        with torch.no_grad():
            m.bias -= 1000
    change(deployed, "block.conv.weight")
    report = repmlp.verify(model, deployed, X)
    assert report.network.float64.relative == 0
    assert report.first_difference.name == "block"


def test_an_error_that_another_makes_up_for_is_none(model, deployed):
    """Scaling a channel and unscaling it in the next layer changes nothing: both together are compared."""

    class Two(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    a = Two(nn.Linear(4, 5), nn.Linear(5, 3))
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.first.weight *= 3
        b.first.bias *= 3
        b.second.weight /= 3
    x = torch.randn(8, 4)
    report = repmlp.verify(a, b, x)
    assert report
    assert [row.name for row in report.blocks] == []  # it is the whole network that is compared
    inside = repmlp.verify(nn.Sequential(nn.ReLU(), a), nn.Sequential(nn.ReLU(), b), x)
    assert inside
    assert [row.name for row in inside.blocks] == ["1"]
    with torch.no_grad():
        b.second.weight[2, 1] *= 1.001
    report = repmlp.verify(a, b, x)
    assert not report
    assert report.network.channel == 2


def test_an_attribute_that_differs_is_found_and_one_that_does_not_matter_is_not(model, deployed):
    deployed.block.conv.note = "not used"
    deployed.fc.unused = 3
    assert repmlp.verify(model, deployed, X)
    deployed.block.conv.padding, deployed.block.conv.dilation = (2, 2), (2, 2)
    assert repmlp.verify(model, deployed, X).first_difference.name == "block"


def test_a_hook_that_changes_an_output_is_found(model, deployed):
    deployed.act.register_forward_hook(lambda module, args, output: output * 2)
    assert repmlp.verify(model, deployed, X).first_difference.name == "act"


def test_a_layer_that_is_not_used_is_no_difference(model, deployed):
    for m in (model, deployed):
        m.unused = nn.Linear(2, 2)
    assert repmlp.verify(model, deployed, X)


def test_names_may_differ(model, deployed):
    class Renamed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.stem = nn.Sequential(net.conv1, net.bn1, net.act1)
            self.body = nn.ModuleDict(dict(net.named_children()))

        def forward(self, x):
            x, body = self.stem(x), self.body
            x = x + body["bn2"](body["conv2"](x))
            return body["fc"](body["act"](body["block"](x)).mean((2, 3)))

    names = {name: f"body.{name}" for name in ("conv2", "bn2", "block", "act", "fc")}
    names |= {"conv1": "stem.0", "bn1": "stem.1", "act1": "stem.2"}
    renamed = Renamed(copy.deepcopy(deployed))
    assert repmlp.verify(model, renamed, X, names=names)
    change(deployed, "fc.weight")
    report = repmlp.verify(model, Renamed(deployed), X, names=names)
    assert (report.first_difference.name, report.first_difference.tensor) == ("fc", "fc.weight")


@pytest.mark.parametrize(
    ("dtype", "change"),
    [(torch.float64, 1e-10), (torch.float32, 0.1), (torch.float16, 0.1), (torch.bfloat16, 0.5)],
)
def test_one_weight_of_fc3_is_found_in_every_dtype(dtype, change):
    """In bfloat16 it drowns in the outputs; the merged weights show it."""
    torch.manual_seed(0)
    block = randomize(repmlp.RepMLP(8, 8, (8, 8), (4, 4), (1, 3)).to(dtype))
    deployed = repmlp.reparameterize(block)
    assert repmlp.verify(block, deployed)
    fc3 = deployed.partition_perceptron.fc3
    with torch.no_grad():
        fc3.weight[0, 3, 5] += change * fc3.weight.std()
    first = repmlp.verify(block, deployed).first_difference
    assert (first.name, first.tensor) == ("whole network", "partition_perceptron.fc3.weight")


@pytest.mark.parametrize(
    ("name", "other"),
    [("stem", "first"), ("stem.conv", "first.conv"), ("stem.bn", "norm"), ("stem.bn.a", "norm.a"), ("stems", "stems")],
)
def test_the_longest_part_of_a_name_is_translated(name, other):
    for names in ({"stem": "first", "stem.bn": "norm"}, {"stem.bn": "norm", "stem": "first"}):
        assert translate(name, names) == other


def test_weights_are_the_same_up_to_one_rounding_and_never_of_another_shape_or_kind():
    x = torch.tensor([1.0, -3.0, 0.0])
    half = x.to(torch.bfloat16)
    assert same_weights(x, x.double())
    assert same_weights(x * (1 + 1e-4), half)  # the coarser dtype counts
    assert not same_weights(x * (1 + 1e-4), x)
    assert not same_weights(x, x.reshape(1, 3))
    assert not same_weights(x, x.expand(2, 3))
    assert not same_weights(x, x.long())
    assert same_weights(x.long(), x.long())
    assert not same_weights(x.long(), x.long() + 1)


def test_a_change_before_a_folded_norm_is_told_from_the_fold():
    layers = {"fc0": nn.Linear(4, 5), "fc1": nn.Linear(5, 6), "bn1": nn.BatchNorm1d(6), "fc2": nn.Linear(6, 7)}
    model = randomize(nn.Sequential(OrderedDict(layers))).double()
    x = torch.randn(8, 4).double()
    deployed = repmlp.fold_norms(model, x)
    assert [row.name for row in repmlp.verify(model, deployed, x).blocks] == ["fc1 + bn1"]
    for name in ("fc0", "fc2"):
        changed = copy.deepcopy(deployed)
        change(changed, f"{name}.weight")
        report = repmlp.verify(model, changed, x)
        assert not report
        assert {row.name for row in report.blocks} == {"fc1 + bn1", name}
        assert report.worst_block.name == name


class Picks(nn.Module):
    """Channels by number, each with a weight: integers beside weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, 1))
        self.register_buffer("index", torch.tensor([2, 0, 1]))

    def forward(self, x):
        return x[:, self.index] * self.weight


@pytest.mark.parametrize(("tensor", "named"), [("weight", "0.weight"), ("index", "0.index")])
def test_a_layer_may_hold_integers_beside_its_weights(tensor, named):
    a = nn.Sequential(Picks(), nn.Conv2d(3, 2, 1))
    b = copy.deepcopy(a)
    assert repmlp.verify(a, b, X)
    with torch.no_grad():
        if tensor == "weight":
            b[0].weight[1] *= 1.001
        else:
            b[0].index[1] = 1
    report = repmlp.verify(a, b, X)
    assert not report
    assert report.first_difference.tensor == named


class Scaled(nn.Module):
    """A conv times a number that is an attribute."""

    def __init__(self, key, number, keep):
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 4, 1), (lambda value: value) if keep is None else keep
        setattr(self, key, number)
        self.key = key

    def forward(self, x):
        return self.conv(x) * self.read(getattr(self, self.key))


KEPT = {  # where a number is kept: name, from a number, and back
    "public": ("scale", float, None),
    "private": ("_scale", float, None),
    "in a dict": ("scale", lambda v: {"by": v}, lambda d: d["by"]),
    "in an array": ("scale", lambda v: np.array([v]), lambda a: float(a[0])),
    "in a tensor": ("scale", torch.tensor, lambda t: t),
}


@pytest.mark.parametrize(("key", "make", "read"), KEPT.values(), ids=KEPT)
def test_a_number_that_moved_into_the_weights_below_explains_them(key, make, read):
    a, b = (nn.Sequential(Scaled(key, make(number), read), nn.ReLU()).eval() for number in (2.0, 1.0))
    with torch.no_grad():
        for ours, theirs in zip(a.parameters(), b.parameters(), strict=True):
            theirs.copy_(2 * ours)
    report = repmlp.verify(a, b, X)
    assert report
    assert [row.name for row in report.blocks] == ["0"]
    change(b, "0.conv.weight")
    assert not repmlp.verify(a, b, X)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.conv(x))


def test_the_channels_of_a_sequence_are_those_of_its_conv():
    model, x = randomize(Sequence()), torch.randn(4, 3, 16)
    folded = repmlp.fold_norms(model, x)
    assert repmlp.verify(model, folded, x)
    with torch.no_grad():
        folded.conv.bias[5] += 0.1
    assert repmlp.verify(model, folded, x).first_difference.channel == 5


def test_the_channels_of_maps_that_have_them_last_are_judged_apart():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), LayerScale(8)).eval()
    with torch.no_grad():
        model[2].gamma.copy_(torch.tensor([1.0] * 7 + [1e-7]))
    merged = copy.deepcopy(model)
    with torch.no_grad():
        merged[1].weight.mul_(model[2].gamma[:, None])
        merged[1].bias.mul_(model[2].gamma)
    merged[2] = nn.Identity()
    maps = torch.randn(4, 6, 6, 3)  # (N, H, W, C)
    assert repmlp.verify(model, merged, maps)
    with torch.no_grad():
        merged[1].weight[7] = 0
    assert repmlp.verify(model, merged, maps).first_difference.channel == 7


@pytest.mark.parametrize("pruned", range(6))
def test_an_error_is_found_beside_any_number_of_channels_that_are_zero(pruned):
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)))
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].bias, model[3].weight, model[3].bias):
            tensor[:pruned] = 0
    x = torch.randn(4, 4, 6, 6)
    deploy = repmlp.fold_norms(model, x)
    assert repmlp.verify(model, deploy, x)
    with torch.no_grad():
        deploy[0].bias[5] += 0.1
    report = repmlp.verify(model, deploy, x)
    assert not report
    assert report.first_difference.channel == 5


def test_an_overflow_in_the_dtype_of_a_model_is_not_equal_and_names_the_model():
    def net(first, last):
        convs = [nn.Conv2d(3, 3, 1, groups=3, bias=False, dtype=torch.float16) for _ in range(2)]
        for conv, factor in zip(convs, (first, last), strict=True):
            nn.init.constant_(conv.weight, factor)
        return nn.Sequential(*convs).eval()

    small, large, x = net(1e-3, 30000.0), net(30000.0, 1e-3), torch.full((2, 3, 4, 4), 10.0)
    assert repmlp.verify(small, small, x)
    for pair, who in (((small, large), "second model gives"), ((large, small), "first"), ((large, large), "both")):
        report = repmlp.verify(*pair, x)
        assert not report
        assert f"in its own dtype, {'' if who == 'both' else 'the '}{who}" in report.where()
