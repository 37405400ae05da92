"""The CIFAR-10 networks: the paper's figures, and both forms of every row of the ablation."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import repmlp
from compare import assert_close, assert_same
from repmlp.models import CifarNet
from weights import randomize

ROWS = {
    "pure MLP": {},
    "B": {"kernel_sizes": ()},
    "C": {"global_perceptron": False},
    "D": {"block": "conv9_for_fc3"},
    "D, one partition": {"block": "conv9_for_fc3", "partition_size": 16, "channels": (4,)},
    "E": {"block": "conv9"},
    "padded": {"partition_size": (3, 5), "kernel_sizes": (1, 3), "pad": True},
    "padded D": {"partition_size": (3, 5), "kernel_sizes": (1, 3), "pad": True, "block": "conv9_for_fc3"},
}
SMALL = {"img_size": 16, "channels": (4, 6, 8), "partition_size": 4, "kernel_sizes": (1, 3), "num_classes": 5}


def small(row="pure MLP", **kwargs):
    """A network of a row of the ablation, or the Wide ConvNet, with small sizes."""
    if row == "Wide ConvNet":
        return timm.create_model("wide_convnet_cifar", **{**SMALL, **kwargs})
    return timm.create_model("repmlp_cifar", **{**SMALL, **ROWS[row], **kwargs})


@pytest.fixture(params=[*ROWS, "Wide ConvNet"])
def row(request):
    return request.param


@pytest.fixture
def model(row):
    return randomize(small(row))


@pytest.fixture
def x():
    return torch.randn(2, 3, 16, 16)


def channels(model):
    return [info["num_chs"] for info in model.feature_info]


# The paper's figures


def macs(model, size=(1, 3, 32, 32)):
    """Multiply-adds in millions; torch counts two operations for each."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(size, device="meta"))
    return counter.get_total_flops() / 2 / 1e6


@pytest.mark.parametrize(
    ("name", "kwargs", "training", "deployed"),
    [
        ("repmlp_cifar", {}, 118.87, 52.806),
        ("repmlp_cifar", ROWS["C"], None, 52.5),
        ("repmlp_cifar", ROWS["D"], None, 66.2),
        ("repmlp_cifar", ROWS["E"], 129.5, 129.5),
        ("wide_convnet_cifar", {}, 65.111, 65.111),
    ],
)
def test_macs(name, kwargs, training, deployed):
    model = timm.create_model(name, **kwargs, device="meta")
    if training:
        assert macs(model) == pytest.approx(training, abs=0.06 if training == 129.5 else 0.006)
    decimals = len(str(deployed).split(".")[1])
    assert macs(repmlp.reparameterize(model)) == pytest.approx(deployed, abs=0.5 * 10**-decimals)


def test_no_local_perceptron_costs_as_much_as_the_converted_network():
    assert macs(timm.create_model("repmlp_cifar", kernel_sizes=(), device="meta")) == pytest.approx(52.806, abs=5e-4)


def test_parameters():
    deployed = timm.create_model("repmlp_cifar", deploy=True, device="meta")
    assert sum(p.numel() for p in deployed.parameters()) / 1e6 == pytest.approx(22.38, abs=5e-3)


def test_the_structure_is_the_papers():
    """FC(3,16) RepMLP FC(16,16) RepMLP FC(16,32) pool | RepMLP FC(32,32) RepMLP FC(32,64) pool | ... FC(64,64)."""
    model = timm.create_model("repmlp_cifar", device="meta")
    words = []
    for m in (m for stage in model.stages for m in stage):
        if isinstance(m, repmlp.layers.ConvNorm):
            assert m.conv.kernel_size == (1, 1)
            words.append(f"FC({m.conv.in_channels},{m.conv.out_channels})")
        else:
            words.append(type(m).__name__)
    expected = """
        FC(3,16) ReLU RepMLP ReLU FC(16,16) ReLU RepMLP ReLU FC(16,32) ReLU MaxPool2d
        RepMLP ReLU FC(32,32) ReLU RepMLP ReLU FC(32,64) ReLU MaxPool2d
        RepMLP ReLU FC(64,64) ReLU RepMLP ReLU FC(64,64) ReLU
    """
    assert words == expected.split()
    blocks = [m for m in model.modules() if isinstance(m, repmlp.RepMLP)]
    assert [b.feature_size for b in blocks] == [(32, 32)] * 2 + [(16, 16)] * 2 + [(8, 8)] * 2
    assert {(b.partition_size, b.partition_perceptron.groups) for b in blocks} == {((8, 8), 2)}
    assert all(b.global_perceptron.fc1.in_features == b.global_perceptron.fc1.out_features for b in blocks[:4])
    assert [b.global_perceptron for b in blocks[4:]] == [None, None]


# Both forms


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_forms_compute_the_same(row, x, dtype, tolerance):
    model, x = randomize(small(row).to(dtype)), x.to(dtype)
    deployed = repmlp.reparameterize(model)
    assert_close(deployed(x), model(x).detach(), tolerance)
    assert repmlp.verify(model, deployed, x)
    assert repmlp.is_reparameterized(deployed)


def test_no_norm_is_left(model):
    kinds = nn.modules.batchnorm._BatchNorm
    assert not [m for m in repmlp.reparameterize(model).modules() if isinstance(m, kinds)]


def test_no_conv_larger_than_1x1_is_left_in_the_pure_mlp():
    sizes = {m.kernel_size for m in repmlp.reparameterize(small()).modules() if isinstance(m, nn.Conv2d)}
    assert sizes == {(1, 1)}


def test_a_network_built_in_deploy_form_loads_a_converted_one_strictly(row, model, x):
    deployed = repmlp.reparameterize(model)
    built = small(row, deploy=True)
    assert list(built.state_dict()) == list(deployed.state_dict())
    built.load_state_dict(deployed.state_dict(), strict=True)
    assert_same(built.eval()(x), deployed(x))
    assert repmlp.is_reparameterized(built)


# timm's contract, where the rows differ from the networks of test_contract.py


def test_wide_convnet_is_twice_as_wide_and_has_no_repmlp():
    model = timm.create_model("wide_convnet_cifar", device="meta")
    assert channels(model) == [32, 64, 128]
    assert not [m for m in model.modules() if isinstance(m, repmlp.RepMLP)]


def test_features_only_in_deploy_form(x):
    pyramid = randomize(small(features_only=True))
    deployed = repmlp.reparameterize(pyramid)
    for a, b in zip(deployed(x), pyramid(x), strict=True):
        assert_close(a, b.detach(), 1e-5)


def test_forward_intermediates(model, x):
    last, maps = model.forward_intermediates(x)
    assert [m.shape[1] for m in maps] == channels(model)
    assert_same(last, model.forward_features(x))
    assert_same(maps[-1], last)
    assert len(model.forward_intermediates(x, indices=1, intermediates_only=True)) == 1
    first, only = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert_same(first, maps[0])
    assert_same(only[0], maps[0])
    with pytest.raises(ValueError, match="output_fmt 'NLC' is not supported"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_torchscript(model, x):
    for form in (model, repmlp.reparameterize(model)):
        assert_same(torch.jit.script(form)(x), form(x))


def test_fx(model, x):
    for form in (model, repmlp.reparameterize(model)):
        traced = torch.fx.symbolic_trace(form)
        assert_same(traced(x), form(x))
        assert_same(traced(x[:1]), form(x[:1]))


def test_fx_in_training(row, x):
    model = small(row).train()
    traced = torch.fx.symbolic_trace(model)
    traced(x).mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_meta_device(row, model):
    on_meta = small(row, device="meta")
    assert {t.device.type for t in on_meta.state_dict().values()} == {"meta"}
    assert on_meta(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, 5)
    repmlp.reparameterize(on_meta, inplace=True)
    shapes = {name: t.shape for name, t in on_meta.state_dict().items()}
    assert shapes == {name: t.shape for name, t in repmlp.reparameterize(model).state_dict().items()}


def test_checkpointing_changes_no_output_and_no_gradient(row, x):
    plain = small(row).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    assert checkpointed.grad_checkpointing
    outputs = [model(x.clone().requires_grad_()) for model in (plain, checkpointed)]
    assert_same(*outputs)
    for y in outputs:
        y.square().sum().backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert_close(b.grad, a.grad, 1e-5)


def test_in_chans(row):
    for in_chans in (1, 4):
        assert small(row, in_chans=in_chans)(torch.randn(2, in_chans, 16, 16)).shape == (2, 5)


def test_rectangular_images(row):
    model = randomize(small(row, img_size=(16, 32)).double())
    x = torch.randn(2, 3, 16, 32, dtype=torch.float64)
    shrunk = 2 ** (len(channels(model)) - 1)
    assert model.forward_features(x).shape[2:] == (16 // shrunk, 32 // shrunk)
    assert_close(repmlp.reparameterize(model)(x), model(x).detach(), 1e-10)


@pytest.mark.parametrize("deploy", [False, True])
def test_errors(deploy):
    with pytest.raises(ValueError, match=r"unknown block 'conv5': use repmlp, conv9_for_fc3, conv9 or conv3"):
        small(block="conv5", deploy=deploy)
    with pytest.raises(ValueError, match=r"feature size 8x9 is not a multiple of partition 4x6"):
        small(img_size=(16, 18), channels=(4, 4), partition_size=(4, 6), deploy=deploy)
    with pytest.raises(ValueError, match=r"2 groups do not divide"):
        small(channels=(3,), deploy=deploy)
    with pytest.raises(ValueError, match=r"got an input of shape \[1, 4, 8, 8\], but was built for \(N, 4, 16, 16\)"):
        small(deploy=deploy)(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("deploy", [False, True])
def test_row_d_has_the_same_errors(deploy):
    row_d = {"block": "conv9_for_fc3", "deploy": deploy}
    with pytest.raises(ValueError, match=r"feature size 18x18 is not a multiple of partition 4x4"):
        small(**row_d, img_size=18, channels=(4,))
    with pytest.raises(ValueError, match=r"got an input of shape"):
        small(**row_d)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"each of them once"):
        small(**row_d, img_size=(16, 16), partition_size=16, channels=(4,), kernel_sizes=(9,))


def test_the_class_takes_what_the_entry_points_do(x):
    assert CifarNet(**SMALL)(x).shape == (2, 5)
