"""timm's contract, for every named RepMLP-ResNet: what timm's own tests check of a model, on small sizes."""

import pytest
import timm
import torch
from torch import nn

import repmlp
from weights import randomize

NAMES = [
    "repmlp_resnet50",
    "repmlp_resnet50_c4",
    "repmlp_resnet50_light",
    "repmlp_resnet50_light_g4",
    "repmlp_resnet50_320_g8x16",
    "repmlp_resnet50_320_g8x8",
    "repmlp_resnet50_320_g4x8",
    "repmlp_faceresnet",
    "faceresnet",
]
pytestmark = pytest.mark.parametrize("name", NAMES)


def small(name: str, **kwargs) -> nn.Module:
    """A named model with two blocks in a stage, a quarter of its channels and 64 px, with random statistics."""
    args = {
        "layers": (2, 2, 2, 2),
        "channels": (8, 16, 32, 64) if "face" in name else (16, 32, 64, 128),
        "img_size": 64,
        "partition_size": 4,
        "kernel_sizes": (1, 3),
        "num_classes": 10,
    }
    return randomize(timm.create_model(name, **{**args, **kwargs}))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


def test_default_cfg_describes_the_model(name):
    model = timm.create_model(name, device="meta")
    cfg = model.default_cfg
    assert cfg["fixed_input_size"]
    assert cfg["num_classes"] == model.num_classes
    x = model.forward_features(torch.empty(2, *cfg["input_size"], device="meta"))
    assert x.shape == (2, model.num_features, *cfg["pool_size"])
    assert model.forward_head(x).shape == (2, model.num_classes)
    state = model.state_dict()
    assert {f"{cfg[key]}.weight" for key in ("first_conv", "classifier")} <= set(state)
    assert timm.data.resolve_model_data_config(model)["input_size"] == cfg["input_size"]


@pytest.mark.parametrize("deploy", [False, True])
def test_backward_gives_every_parameter_a_gradient(name, deploy):
    model = small(name, deploy=deploy).train()
    y = model(images())
    assert y.shape == (2, 10)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.any() for p in model.parameters() if p.dim() > 1)


def test_classifier_can_be_removed_and_put_back(name):
    model, x = small(name), images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert model.get_classifier() is model.fc
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 2, 2)
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)
    assert small(name, num_classes=0, global_pool="")(x).shape == (2, model.num_features, 2, 2)


def test_features_only_gives_the_maps_that_feature_info_states(name):
    x = images()
    model = small(name, features_only=True)
    info = model.feature_info
    assert info.reduction() == [2, 4, 8, 16, 32]
    for f, channels, reduction in zip(model(x), info.channels(), info.reduction(), strict=True):
        assert f.shape == (2, channels, 64 // reduction, 64 // reduction)
    chosen = small(name, features_only=True, out_indices=(1, 3))
    chosen.load_state_dict(model.state_dict(), strict=False)
    for actual, expected in zip(chosen(x), (model(x)[1], model(x)[3]), strict=True):
        assert torch.equal(actual, expected)
    assert [f.shape[-1] for f in small(name, features_only=True, output_stride=8)(x)] == [32, 16, 8, 8, 8]


def test_intermediates_are_the_features(name):
    model, x = small(name), images()
    last, every = model.forward_intermediates(x)
    assert len(every) == 5
    assert torch.equal(last, model.forward_features(x))
    assert torch.equal(every[-1], last)
    chosen = model.forward_intermediates(x, indices=[1, 3], stop_early=True, intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(chosen, (every[1], every[3]), strict=True)] == [True, True]


def test_intermediate_layers_can_be_pruned(name):
    model, x = small(name), images()
    _, every = model.forward_intermediates(x)
    model.prune_intermediate_layers([2])
    assert len(model.layer3) == len(model.layer4) == 0
    assert torch.equal(model(x), every[2])


def test_grad_checkpointing_changes_no_output_and_no_gradient(name):
    model = small(name)
    x = images()
    grads, outputs = [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        y = model(x)
        y.sum().backward()
        outputs.append(y)
        grads.append([p.grad.clone() for p in model.parameters()])
    assert torch.equal(*outputs)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_group_matcher_puts_every_parameter_into_a_group_in_order(name):
    model = small(name)
    for coarse, layers in ((True, 4), (False, sum(len(getattr(model, f"layer{i}")) for i in range(1, 5)))):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
        assert len(groups) == 1 + layers + 1  # stem, blocks, head
        assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))
    assert model.no_weight_decay() == set()


@pytest.mark.parametrize("deploy", [False, True])
def test_torchscript_and_fx_compute_the_same(name, deploy):
    model, x = small(name), images()
    if deploy:
        model = repmlp.reparameterize(model)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)


def test_channels_last_computes_the_same(name):
    model, x = small(name).double(), images().double()
    expected = model(x)
    actual = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def test_it_is_built_on_the_device_and_in_the_dtype_that_are_asked_for(name):
    for model in (timm.create_model(name, device="meta", dtype=torch.bfloat16), _on_meta(name)):
        assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"meta"}
    half = small(name, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert repmlp.reparameterize(half)(images().bfloat16()).dtype == torch.bfloat16


def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)
