"""RepMLP-ResNet: structure and figures of the paper, timm's ResNet underneath, and the conversion of whole networks."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import reference
import repmlp
from repmlp import RepMLP
from repmlp.models._resnet_blocks import FoldableBottleneck, RepMLPBottleneck, RepMLPLightBlock
from weights import randomize

B = "bottleneck"
C2, C3, C4 = (
    {"layer1.1", "layer1.2"},
    {"layer2.1", "layer2.2", "layer2.3"},
    {f"layer3.{j}" for j in (1, 2, 3, 4, 5)},
)
#: Every named model, and which of its blocks are RepMLP blocks.
MODELS = {
    "repmlp_resnet50": C3 | C4,
    "repmlp_resnet50_c4": C4,
    "repmlp_resnet50_light": C3 | C4,
    "repmlp_resnet50_light_g4": C3 | C4,
    "repmlp_resnet50_320_g8x16": C3 | C4,
    "repmlp_resnet50_320_g8x8": C3 | C4,
    "repmlp_resnet50_320_g4x8": C3 | C4,
    "repmlp_faceresnet": C2 | {"layer2.1", "layer3.1"},
    "faceresnet": set(),
}
every_model = pytest.mark.parametrize("name", MODELS)
#: All of them in `make test-all`.
one_model = pytest.mark.parametrize(
    "name", [name if name == "repmlp_resnet50_light" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)


def small(name: str, pretrained: bool = False, **kwargs) -> nn.Module:
    """A named model with a quarter of its channels, for 64 px: c2 to c5 are 16, 8, 4 and 2 px, P is 16, 4, 1."""
    channels = (8, 16, 32, 64) if "face" in name else (16, 32, 64, 128)
    args = {"channels": channels, "img_size": 64, "partition_size": 4, "kernel_sizes": (1, 3), "num_classes": 10}
    return timm.create_model(name, pretrained, **{**args, **kwargs})


def images(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, *(size or (64, 64)), dtype=dtype)


def repmlps(model: nn.Module) -> dict[str, RepMLP]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RepMLP)}


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# The paper's figures and structure


@pytest.mark.parametrize(
    ("name", "args", "params", "macs"),
    [
        ("repmlp_resnet50", {"blocks": {}}, 25.53, 4.09),
        ("repmlp_resnet50", {}, 40.87, 3.89),
        ("repmlp_resnet50_320_g8x16", {}, 59.22, 8.06),
        ("repmlp_resnet50_320_g8x8", {}, 72.02, 8.11),
        ("repmlp_resnet50_320_g4x8", {}, 87.38, 8.35),
        ("repmlp_resnet50", {"blocks": {"c3": B}}, 35.53, 4.15),
        ("repmlp_resnet50_c4", {}, 30.88, 3.83),
        ("repmlp_resnet50", {"blocks": {"c2": B, "c3": B, "c4": B}}, 58.27, 3.95),
        ("repmlp_resnet50", {"blocks": {"c2": B, "c3": B, "c4": B, "c5": B}}, 65.76, 3.84),
        ("repmlp_resnet50_c4", {"channel_reduction": 2, "groups": 4}, 77.36, 4.29),
        ("repmlp_resnet50_c4", {"channel_reduction": 2, "groups": 8}, 52.78, 4.19),
        ("repmlp_resnet50_c4", {"channel_reduction": 4, "groups": 4}, 37.02, 3.85),
        ("repmlp_resnet50_c4", {"channel_reduction": 8, "groups": 8}, 25.03, 3.66),
        ("repmlp_resnet50_light", {}, 57.87, 2.92),
        ("repmlp_resnet50_light_g4", {}, 86.14, 3.08),
    ],
)
def test_deploy_form_has_the_papers_params_and_macs(name, args, params, macs):
    model = timm.create_model(name, deploy=True, device="meta", **args).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *model.pretrained_cfg["input_size"], device="meta"))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == params
    assert round(counter.get_total_flops() / 2 / 1e9, 2) == macs  # a multiply-add is two FLOPs


@every_model
def test_all_but_the_first_blocks_of_the_papers_stages_are_repmlp_blocks(name):
    model = timm.create_model(name, device="meta")
    kind = RepMLPLightBlock if "light" in name else RepMLPBottleneck
    assert {n for n, m in model.named_modules() if isinstance(m, kind)} == MODELS[name]
    assert {n.removesuffix(".repmlp") for n in repmlps(model)} == MODELS[name]
    assert sum(isinstance(m, Bottleneck) for m in model.modules()) == sum(
        len(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)
    ) - len(MODELS[name])


@pytest.mark.parametrize("name", ["faceresnet", "repmlp_faceresnet"])
def test_faceresnet_is_the_papers(name):
    model = timm.create_model(name, device="meta")
    faces = torch.empty(2, 3, 96, 96, device="meta")
    _, (_, *stages) = model.forward_intermediates(faces)
    assert [tuple(s.shape[1:]) for s in stages] == [(128, 24, 24), (256, 12, 12), (512, 6, 6), (1024, 3, 3)]
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [len(layer) for layer in layers] == [3, 2, 2, 2]
    assert [layer[0].conv1.weight.shape[0] for layer in layers] == [128, 256, 512, 1024]
    assert [layer[0].conv2.weight.shape[:2] for layer in layers] == [(c, c) for c in (128, 256, 512, 1024)]
    assert model(faces).shape == (2, 512)


def test_arguments_are_one_value_or_one_for_each_stage():
    model = timm.create_model(
        "repmlp_resnet50",
        device="meta",
        blocks={"c2": "light", "c4": "bottleneck"},
        channel_reduction={"c2": 4, "c4": 2},
        groups={"c2": 2, "c4": 16},
        partition_size={"c2": (14, 7), "c4": 14},
        kernel_sizes={"c2": (), "c4": (1, (3, 5))},
        global_reduction=8,
    )
    c2, c4 = model.layer1[1].repmlp, model.layer3[1].repmlp
    assert (c2.in_channels, c2.out_channels, c2.feature_size, c2.partition_size) == (16, 16, (56, 56), (14, 7))
    assert (c4.in_channels, c4.out_channels, c4.feature_size, c4.partition_size) == (128, 128, (14, 14), (14, 14))
    assert (c2.partition_perceptron.groups, c4.partition_perceptron.groups) == (2, 16)
    assert c2.local_perceptron is None
    assert list(c4.local_perceptron.branches) == ["1x1", "3x5"]
    assert c2.global_perceptron.fc1.weight.shape == (64, 512)  # P = 4*8, C*P = 512
    assert c4.global_perceptron is None
    assert {n.split(".")[0] for n in repmlps(model)} == {"layer1", "layer3"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"blocks": {"layer3": B}}, "blocks names the stages layer3, but a ResNet has c2, c3, c4, c5"),
        ({"blocks": {"c3": "heavy"}}, "unknown block 'heavy': use bottleneck or light"),
        ({"groups": {"c3": 8}}, "groups names c3, but c4 has RepMLP blocks too: add c4, or pass one value"),
        ({"groups": {"c3": 8, "c6": 8}}, "groups names the stages c6"),
        ({"channel_reduction": 3}, "channel_reduction 3 does not divide the width 128"),
        ({"kernel_sizes": (1, 9)}, "kernel 9x9 is larger than the 7x7 map"),
    ],
)
def test_arguments_that_do_not_fit_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("repmlp_resnet50", device="meta", **args)


# The blocks, against explicit ones


@pytest.mark.parametrize("kind", [RepMLPBottleneck, RepMLPLightBlock])
def test_a_repmlp_block_is_what_the_paper_draws(kind):
    build = partial(RepMLP, feature_size=(4, 6), partition_size=(2, 3), kernel_sizes=(1,), groups=2)
    block = randomize(kind(8, 8, 2, build, dtype=torch.float64))
    state = reference.numpy_state(block)

    def conv_norm(x, name):
        y = reference.conv(x, state[f"{name}.conv.weight"], 1)
        return reference.batch_norm(y, state, f"{name}.bn", training=False)

    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    y = np.maximum(conv_norm(x.numpy(), "conv1"), 0)
    if kind is RepMLPBottleneck:
        assert block.conv1.conv.kernel_size == block.conv4.conv.kernel_size == (1, 1)
        assert block.conv2.conv.kernel_size == block.conv3.conv.kernel_size == (3, 3)
        y = np.maximum(conv_norm(y, "conv2"), 0)
    assert y.shape[1] == 4  # width / r
    own = {n.removeprefix("repmlp."): t for n, t in state.items() if n.startswith("repmlp.")}
    y = np.maximum(reference.repmlp(y, own, (2, 3), groups=2), 0)
    if kind is RepMLPBottleneck:
        y = np.maximum(conv_norm(y, "conv3"), 0)
    y = conv_norm(y, "conv4" if kind is RepMLPBottleneck else "conv2")
    y = np.maximum(x.numpy() + y, 0)
    torch.testing.assert_close(block(x), torch.from_numpy(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["repmlp_resnet50", "repmlp_resnet50_light"])
def test_repmlp_blocks_start_as_the_identity(name):
    x = torch.rand(2, 128, 8, 8)
    torch.testing.assert_close(small(name).eval().layer2[1](x), x)
    assert not torch.allclose(small(name, zero_init_last=False).eval().layer2[1](x), x)


# timm's ResNet underneath


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_without_repmlp_blocks_it_is_timms_resnet50(output_stride):
    theirs = randomize(timm.create_model("resnet50", output_stride=output_stride))
    ours = timm.create_model("repmlp_resnet50", blocks={}, output_stride=output_stride, img_size=64).eval()
    nn.Sequential(ours).load_state_dict({f"0.{name}": tensor for name, tensor in theirs.state_dict().items()})
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_it_starts_from_the_weights_that_timms_resnet_starts_from():
    torch.manual_seed(1)
    theirs = ResNet(Bottleneck, (3, 4, 6, 3), channels=(16, 32, 64, 128), num_classes=10)
    torch.manual_seed(1)
    ours = small("repmlp_resnet50")
    assert torch.equal(ours.conv1.conv.weight, theirs.conv1.weight)
    for block in ("layer1.2", "layer2.0", "layer4.1", "fc"):
        own, expected = (model.get_submodule(block).state_dict() for model in (ours, theirs))
        assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())


def test_weights_of_timms_resnet50_load_into_the_blocks_that_stay(tmp_path):
    theirs = randomize(ResNet(Bottleneck, (3, 4, 6, 3), channels=(16, 32, 64, 128), num_classes=10))
    replaced = tuple(f"{block}." for block in MODELS["repmlp_resnet50"])
    model = small("repmlp_resnet50")
    missing, unexpected = model.load_state_dict(theirs.state_dict(), strict=False)
    assert all(name.startswith(replaced) for name in (*missing, *unexpected))
    file = tmp_path / "resnet50.pth"
    torch.save(theirs.state_dict(), file)
    overlay = {"file": str(file), "num_classes": 10}
    by_timm = partial(small, "repmlp_resnet50", True, pretrained_cfg_overlay=overlay, pretrained_strict=False)
    for loaded in (model, by_timm()):
        for block in ("layer1.0", "layer2.0", "layer4.2", "fc"):
            own = loaded.get_submodule(block).state_dict()
            for name, tensor in theirs.get_submodule(block).state_dict().items():
                assert torch.equal(own[name], tensor)
        x = images()
        torch.testing.assert_close(loaded.eval().bn1(loaded.conv1(x)), theirs.bn1(theirs.conv1(x)), rtol=0, atol=0)
    torch.testing.assert_close(by_timm(in_chans=1).conv1.conv.weight, theirs.conv1.weight.sum(1, keepdim=True))


def test_drop_path_grows_with_depth_as_in_timms_resnet50():
    def rates(model):
        return [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]

    theirs = timm.create_model("resnet50", drop_path_rate=0.2, device="meta")
    ours = timm.create_model("repmlp_resnet50", drop_path_rate=0.2, device="meta")
    assert rates(ours) == rates(theirs)
    assert len(rates(ours)) == 15


def test_drop_path_drops_the_residual_path():
    for name in ("repmlp_resnet50", "repmlp_resnet50_light"):
        block = small(name, drop_path_rate=0.5, zero_init_last=False).layer3[5].train()
        block.drop_path.drop_prob = 1.0 - 1e-7
        x = torch.rand(4, 256, 4, 4)
        torch.testing.assert_close(block(x), x)


# Sizes


@pytest.mark.parametrize("size", [(72, 40), (50, 99), (32, 32)])
@pytest.mark.parametrize("name", ["repmlp_resnet50", "repmlp_resnet50_light", "repmlp_faceresnet"])
def test_images_may_be_rectangular_and_need_not_divide_by_the_partition(name, size):
    model = randomize(small(name, img_size=size, blocks=dict.fromkeys(("c2", "c3", "c4", "c5"), B)).double())
    x = images(*size, dtype=torch.float64)
    _, (_, *stages) = model.forward_intermediates(x)
    for name_, block in repmlps(model).items():
        stage = stages[int(name_[len("layer")]) - 1]
        assert block.feature_size == stage.shape[2:]
        assert block.pad == any(s % 4 for s in stage.shape[2:])
    expected = model(x)
    assert_equal(repmlp.reparameterize(model)(x), expected, 1e-10)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_dilates_and_repmlp_blocks_follow_its_sizes(output_stride):
    every = dict.fromkeys(("c2", "c3", "c4", "c5"), B)
    model = randomize(small("repmlp_resnet50", output_stride=output_stride, blocks=every).double())
    x = images(dtype=torch.float64)
    _, (_, *stages) = model.forward_intermediates(x)
    assert [s.shape[-1] for s in stages] == [64 // min(4 * 2**i, output_stride) for i in range(4)]
    dilation = 32 // output_stride
    for conv in (model.layer4[1].conv2.conv, model.layer4[1].conv3.conv):
        assert conv.dilation == (dilation, dilation)
        assert conv.padding == (dilation, dilation)
    assert_equal(repmlp.reparameterize(model)(x), model(x), 1e-10)


# Conversion


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Element by element, relative to the largest of them."""
    assert expected.isfinite().all()
    assert expected.std() > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@every_model
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_both_forms_are_equal(name, dtype, tolerance):
    model = randomize(small(name).to(dtype))
    x = images(dtype=dtype)
    with torch.no_grad():
        expected = model(x)
        deployed = repmlp.reparameterize(model)
        assert_equal(deployed(x), expected, tolerance)
    assert norms(deployed) == []
    assert repmlp.is_reparameterized(deployed)
    assert not repmlp.is_reparameterized(model)


@one_model
def test_verify_lists_every_repmlp_block(name):
    model = randomize(small(name))
    report = repmlp.verify(model, repmlp.reparameterize(model), images())
    assert report
    listed = {block.name for block in report.blocks}
    assert {"conv1", "layer1.0", "layer4.2" if "face" not in name else "layer4.1"} <= listed
    assert {f"{block}.repmlp" for block in MODELS[name]} <= listed


@one_model
def test_built_and_converted_deploy_form_load_each_other_strictly(name):
    converted = repmlp.reparameterize(timm.create_model(name, device="meta"))
    built = timm.create_model(name, device="meta", deploy=True)
    assert shapes(built) == shapes(converted)

    converted, built = repmlp.reparameterize(randomize(small(name))), small(name, deploy=True).eval()
    assert norms(built) == []
    assert repmlp.is_reparameterized(built)
    built.load_state_dict(converted.state_dict())
    x = images()
    torch.testing.assert_close(built(x), converted(x), rtol=0, atol=0)
    converted.load_state_dict(built.state_dict())


@every_model
def test_timms_own_conversion_folds_everything_too(name):
    model = timm.utils.reparameterize_model(randomize(small(name)))
    assert norms(model) == []


def test_conversion_twice_changes_nothing():
    once = repmlp.reparameterize(randomize(small("repmlp_resnet50")))
    twice = repmlp.reparameterize(once)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


@pytest.mark.parametrize("feature_cls", ["list", "getter", "hook"])
def test_an_encoder_converts_completely(feature_cls):
    model = randomize(small("repmlp_resnet50", features_only=True, feature_cls=feature_cls).double())
    x = images(dtype=torch.float64)
    deployed = repmlp.reparameterize(model)
    assert norms(deployed) == []
    for actual, expected in zip(deployed(x), model(x), strict=True):
        assert_equal(actual, expected, 1e-10)


def test_a_bottleneck_folds_its_three_pairs_and_its_shortcut():
    down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    block = randomize(FoldableBottleneck(8, 4, 2, down).double())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    expected = block(x)
    block.reparameterize()
    assert norms(block) == []
    y = F.relu(F.conv2d(x, block.conv1.weight, block.conv1.bias))
    y = F.relu(F.conv2d(y, block.conv2.weight, block.conv2.bias, 2, 1))
    y = F.conv2d(y, block.conv3.weight, block.conv3.bias)
    y = F.relu(y + F.conv2d(x, block.downsample[0].weight, block.downsample[0].bias, 2))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_the_embedding_trains_under_am_softmax():
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="the extra [faces]")
    model = small("repmlp_faceresnet", num_classes=16)
    loss = losses.CosFaceLoss(num_classes=5, embedding_size=16)(model(images()), torch.tensor([0, 3]))
    loss.backward()
    assert model.conv1.conv.weight.grad.abs().sum() > 0
