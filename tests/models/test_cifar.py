"""The CIFAR-10 networks: the paper's figures, timm's contract, and both forms of every row of the ablation."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

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


# timm's contract


@pytest.mark.parametrize("name", ["repmlp_cifar", "wide_convnet_cifar"])
def test_default_cfg(name, x):
    assert name in timm.list_models(module="cifar")
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    x = torch.randn(1, *cfg["input_size"])
    assert model(x).shape == (1, cfg["num_classes"])
    assert model.forward_features(x).shape == (1, model.num_features, *cfg["pool_size"])
    state = model.state_dict()
    assert state[cfg["first_conv"] + ".weight"].shape[1] == cfg["input_size"][0]
    assert state[cfg["classifier"] + ".weight"].shape == (cfg["num_classes"], model.num_features)
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert cfg["fixed_input_size"]
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 32, 32)


def test_wide_convnet_is_twice_as_wide_and_has_no_repmlp():
    model = timm.create_model("wide_convnet_cifar", device="meta")
    assert channels(model) == [32, 64, 128]
    assert not [m for m in model.modules() if isinstance(m, repmlp.RepMLP)]


def test_backward_gives_every_parameter_a_gradient(row, x):
    model = small(row, num_classes=42).train()
    y = model(x)
    assert y.shape == (2, 42)
    y.mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_reset_classifier(model, x):
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    assert_same(model.get_classifier()(pooled), model.forward_head(features))
    model.reset_classifier(0)
    assert_same(model(x), pooled)
    model.reset_classifier(0, "")
    assert_same(model(x), model.forward_features(x))
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)
    assert model.num_classes == 7


def test_no_classifier_and_no_pooling_from_the_start(row, x):
    model = small(row, num_classes=0, global_pool="").eval()
    assert_same(model(x), model.forward_features(x))


def test_features_only(row, model, x):
    pyramid = small(row, features_only=True)
    assert pyramid.feature_info.channels() == channels(model)
    assert pyramid.feature_info.reduction() == [2**i for i in range(len(channels(model)))]
    theirs = {name.replace("stages.", "stages_"): tensor for name, tensor in model.state_dict().items()}
    assert not pyramid.load_state_dict(theirs, strict=False).missing_keys
    maps = pyramid.eval()(x)
    assert [m.shape for m in maps] == [(2, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate(channels(model))]
    for ours, theirs in zip(model.forward_intermediates(x, intermediates_only=True), maps, strict=True):
        assert_same(ours, theirs)


def test_features_only_with_chosen_stages(x):
    pyramid = small(features_only=True, out_indices=(0, 2)).eval()
    assert [m.shape[1] for m in pyramid(x)] == [4, 8]


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
    with pytest.raises(ValueError, match="output_fmt 'NLC' is not available"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_prune_intermediate_layers(x):
    model = randomize(small())
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.stages) == 2
    assert_same(model(x), expected)


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


def test_torchvisions_feature_extractor(model, x):
    _, nodes = get_graph_node_names(model)
    extractor = create_feature_extractor(model, [nodes[-1]])
    assert_same(extractor(x)[nodes[-1]], model(x))


def test_meta_device(row, model):
    on_meta = small(row, device="meta")
    assert {t.device.type for t in on_meta.state_dict().values()} == {"meta"}
    assert on_meta(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, 5)
    repmlp.reparameterize(on_meta, inplace=True)
    shapes = {name: t.shape for name, t in on_meta.state_dict().items()}
    assert shapes == {name: t.shape for name, t in repmlp.reparameterize(model).state_dict().items()}


def test_channels_last(model, x):
    expected = model(x)
    y = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_close(y, expected.detach(), 1e-5)
    assert_close(repmlp.reparameterize(model)(x), expected.detach(), 1e-5)


def test_dtype(row, x):
    model = small(row, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(x.bfloat16()).dtype == torch.bfloat16


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


def test_checkpointing_changes_no_feature_map(model, x):
    maps = model.forward_intermediates(x, intermediates_only=True)
    model.set_grad_checkpointing()
    for a, b in zip(maps, model.forward_intermediates(x.requires_grad_(), intermediates_only=True), strict=True):
        assert_same(a, b)


def test_group_matcher_puts_every_parameter_into_a_group(model):
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
        assert {name for names in groups.values() for name in names} == {name for name, _ in model.named_parameters()}
    assert len(groups) == len(channels(model)) + 2  # the stem, the stages, and the head


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
