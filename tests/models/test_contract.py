"""timm's contract for every network that this package registers: what timm's own tests/test_models.py checks, and more.

Shapes and names are checked on the network as it is registered, on the meta device; numbers on a small one of its
family. A new network is covered once it is registered, at its own size unless its family has an entry in ``SMALL``.
"""

import copy
from functools import cache

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules, group_parameters, model_entrypoint
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import repmlp
from compare import assert_close, assert_same
from weights import randomize

#: Arguments that make a network small, by the module that registers it.
SMALL = {
    "cifar": {"channels": (4, 6, 8), "img_size": (16, 32), "partition_size": 4, "kernel_sizes": (1, 3)},
    "repmlp_resnet": {
        "layers": (2, 2, 2, 2),
        "channels": (8, 16, 32, 64),
        "channel_reduction": 2,
        "img_size": (64, 32),
        "partition_size": 4,
        "kernel_sizes": (1, 3),
    },
    "repmlpnet": {
        "depths": (1, 1, 2, 1),
        "img_size": (64, 32),
        "partition_sizes": (4, 2, 1, 1),
        "kernel_sizes": (1,),
    },
}


#: Networks which, made small, differ from another one in widths only: their numbers are checked by `make test-all`.
ALIKE = {
    "repmlp_faceresnet",
    "repmlp_resnet50_320_g4x8",
    "repmlp_resnet50_320_g8x16",
    "repmlp_resnet50_320_g8x8",
    "repmlp_resnet50_c4",
    "repmlp_resnet50_light_g4",
    "repmlpnet_b224",
    "repmlpnet_b256",
    "repmlpnet_d256",
    "repmlpnet_l256",
    "repmlpnet_t256",
}


def registered() -> list[str]:
    """The names of our networks in timm's registry."""
    return [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("repmlp.")]


every_network = pytest.mark.parametrize("name", registered())
every_small_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in registered()]
)


def test_every_network_of_the_package_is_registered():
    ours = {name for name in repmlp.models.__all__ if not isinstance(getattr(repmlp.models, name), type)}
    assert set(registered()) == ours >= ALIKE


def small(name: str, **kwargs) -> nn.Module:
    family = model_entrypoint(name).__module__.rpartition(".")[2]
    return timm.create_model(name, **{**SMALL.get(family, {}), **kwargs})


def images(name: str, batch_size: int = 2, channels: int = 3) -> Tensor:
    family = model_entrypoint(name).__module__.rpartition(".")[2]
    size = SMALL.get(family, {}).get("img_size") or timm.get_pretrained_cfg_value(name, "input_size")[1:]
    return torch.randn(batch_size, channels, *size)


@cache
def on_meta(name: str, **kwargs) -> nn.Module:
    """A network at full size, without memory. Kept: change a copy only."""
    return timm.create_model(name, device="meta", **kwargs).eval()


def full_size(name: str) -> Tensor:
    return torch.empty(2, *timm.get_pretrained_cfg_value(name, "input_size"), device="meta")


# At full size, on the meta device


@every_network
def test_the_default_cfg_describes_the_network(name):
    model = on_meta(name)
    cfg, state, x = model.default_cfg, model.state_dict(), full_size(name)
    assert cfg["num_classes"] == model.num_classes > 0
    smallest = cfg["input_size"] if cfg["fixed_input_size"] else cfg["min_input_size"] or (3, 96, 96)
    assert model(torch.empty(2, *smallest, device="meta")).shape == (2, model.num_classes)
    assert resolve_model_data_config(model)["input_size"] == cfg["input_size"]
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0]
    assert state[f"{cfg['classifier']}.weight"].shape == (model.num_classes, model.head_hidden_size)
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])

    features = model.forward_features(x)
    assert features.shape[-1 if features.dim() == 3 else 1] == model.num_features  # tokens, or a map
    if cfg["pool_size"] is not None:
        assert features.shape == (2, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features).shape == model(x).shape == (2, model.num_classes)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@every_network
def test_the_classifier_and_the_pooling_can_go(name):
    model, x = copy.deepcopy(on_meta(name)), full_size(name)
    features = model.forward_features(x)

    def classify(num_classes: int, global_pool: str | None = None) -> tuple[int, ...]:
        with torch.device("meta"):
            model.reset_classifier(num_classes, global_pool)
        assert model.num_classes == num_classes
        return model.forward_head(features).shape

    assert classify(0) == (2, model.head_hidden_size)
    assert classify(0, "") == features.shape
    assert classify(7, "avg") == (2, 7)
    assert timm.create_model(name, device="meta", num_classes=0)(x).shape == (2, model.head_hidden_size)
    assert timm.create_model(name, device="meta", num_classes=0, global_pool="")(x).shape == features.shape


@every_network
@pytest.mark.parametrize("kwargs", [{}, {"feature_cls": "getter"}, {"out_indices": (1,)}], ids=str)
def test_features_only_gives_the_maps_that_feature_info_lists(name, kwargs):
    pyramid = timm.create_model(name, device="meta", features_only=True, **kwargs)
    levels = len(pyramid.feature_info.channels())
    assert levels == 1 if "out_indices" in kwargs else levels >= 3
    check_maps(pyramid(full_size(name)), pyramid.feature_info, full_size(name))


@every_network
def test_intermediates_are_the_maps_that_feature_info_lists(name):
    model, x = on_meta(name), full_size(name)
    last, maps = model.forward_intermediates(x)
    assert last.shape == model.forward_features(x).shape
    check_maps(maps, FeatureInfo(model.feature_info, len(model.feature_info)), x)


def check_maps(maps: list[Tensor], info: FeatureInfo, x: Tensor) -> None:
    expected = [
        (2, channels, -(-x.shape[2] // reduction), -(-x.shape[3] // reduction))
        for channels, reduction in zip(info.channels(), info.reduction(), strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected


@every_network
def test_it_is_built_on_the_device_and_in_the_dtype_asked_for(name):
    with torch.device("meta"):
        by_context = timm.create_model(name)
    by_argument = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    for model in (by_context, by_argument):
        assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert {p.dtype for p in by_argument.parameters()} == {torch.bfloat16}


@every_network
def test_every_parameter_is_in_a_group_from_the_stem_to_the_head(name):
    model = on_meta(name)
    names = {name for name, _ in model.named_parameters()}
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(name for group in groups.values() for name in group) == sorted(names)
        assert f"{model.default_cfg['first_conv']}.weight" in groups[0]
        assert f"{model.default_cfg['classifier']}.weight" in groups[max(groups)]
        assert len(groups) >= 2 + (2 if coarse else len(model.feature_info))
    assert set(getattr(model, "no_weight_decay", set)()) <= names


# Numbers, on a small network in both forms


def forms(name: str, **kwargs) -> list[nn.Module]:
    """A small network in training form and, if it has one, in deploy form; in eval mode, with random statistics."""
    model = randomize(small(name, **kwargs))
    converts = repmlp.conversion.needs_reparameterize(model)
    return [model, repmlp.reparameterize(model)] if converts else [model]


@every_small_network
def test_training_gives_every_parameter_a_gradient(name):
    for model in forms(name, num_classes=42):
        y = model.train()(images(name))
        assert y.shape == (2, 42)
        y.square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@every_small_network
def test_grad_checkpointing_changes_no_output_no_gradient_and_no_map(name):
    plain, x = small(name).eval(), images(name).requires_grad_()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert saving.grad_checkpointing
    for a, b in zip(*(m.forward_intermediates(x, intermediates_only=True) for m in (plain, saving)), strict=True):
        assert_same(a, b)
    outputs = [model.train()(x) for model in (plain, saving)]
    assert_same(*outputs)
    for y in outputs:
        y.square().sum().backward()
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        assert_close(q.grad, p.grad, 1e-5)


@every_small_network
@torch.no_grad()
def test_intermediates_are_the_features(name):
    for model in forms(name):
        x = images(name)
        last, maps = model.forward_intermediates(x)
        assert_same(last, model.forward_features(x))
        assert_same(model.forward_head(last), model(x))
        for chosen in ([1], [0, 2]):
            some = model.forward_intermediates(x, indices=chosen, stop_early=True, intermediates_only=True)
            for i, actual in zip(chosen, some, strict=True):
                assert_same(actual, maps[i])
        (last_map,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
        assert_same(last_map, maps[-1])


@every_small_network
@torch.no_grad()
def test_a_pruned_network_gives_the_maps_that_it_keeps(name):
    model, x = randomize(small(name)), images(name)
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    before = len(list(model.parameters()))
    kept = model.prune_intermediate_layers([1], prune_norm=True)
    assert len(list(model.parameters())) < before
    assert_same(model.forward_intermediates(x, indices=kept, intermediates_only=True)[0], expected[0])


@every_small_network
@torch.no_grad()
def test_torchscript_computes_the_same(name):
    for model in forms(name):
        x = images(name)
        assert_close(torch.jit.script(model)(x), model(x), 1e-6)


def trace(model: nn.Module) -> nn.Module:
    """A graph of the network, in training as in eval mode, traced as timm traces."""
    timms = {
        "leaf_modules": list(get_notrace_modules()),
        "autowrap_functions": list(get_notrace_functions()),
        "param_shapes_constant": True,
    }
    last = [nodes[-1] for nodes in get_graph_node_names(model, tracer_kwargs=timms)]
    return create_feature_extractor(model, train_return_nodes=last[:1], eval_return_nodes=last[1:], tracer_kwargs=timms)


@every_small_network
def test_fx_computes_the_same_and_trains_and_scripts(name):
    *_, last = models = forms(name)
    for model in models:
        x = images(name)
        graph = trace(model)
        with torch.no_grad():
            (y,) = graph(x).values()
            assert_same(y, model(x))
            if model is last:  # a script of either form alone: the other test
                (scripted,) = torch.jit.script(graph)(x).values()
                assert_close(scripted, y, 1e-6)
        (y,) = graph.train()(x).values()
        y.mean().backward()
        assert [name for name, p in graph.named_parameters() if p.grad is None] == []


@every_small_network
@torch.no_grad()
def test_channels_last_computes_the_same(name):
    for model in forms(name, dtype=torch.float64):
        x = images(name).double()
        expected = model(x)
        actual = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert_close(actual, expected, 1e-10)


@every_small_network
@torch.no_grad()
def test_half_precision_stays_half(name):
    for model in forms(name, dtype=torch.bfloat16):
        y = model(images(name).bfloat16())
        assert y.dtype == torch.bfloat16
        assert y.isfinite().all()


@every_small_network
def test_pretrained_weights_load_with_other_channels_and_classes(name, tmp_path):
    model = small(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    cfg = model.default_cfg
    overlay = {"file": str(tmp_path / "model.safetensors")}
    loaded = small(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=5)
    expected, state = model.state_dict(), loaded.state_dict()
    first = f"{cfg['first_conv']}.weight"
    assert_same(state.pop(first), expected[first].sum(1, keepdim=True))
    for key, tensor in state.items():
        if not key.startswith(cfg["classifier"]):
            assert_same(tensor, expected[key])
    assert loaded(images(name, channels=1)).shape == (2, 5)
