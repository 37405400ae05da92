"""Networks of timm with a training form: each family converts, once and twice, is saved, loaded, folded, exported."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from timm.models import byobnet, get_model_input_config
from torch import Tensor, nn

import repmlp
from compare import assert_close, assert_same
from repmlp.conversion import iter_reparameterizable
from repmlp.deploy import export, load_exported
from weights import randomize

#: The smallest member of each family, made smaller: arguments, batch norms left by the conversion and by fold_norms.
TINY = {
    "efficientvim_m1": ({"depths": (1, 1, 1)}, 0, 0),
    "efficientvit_m0": ({"img_size": 64, "depth": (1, 1, 1)}, 0, 0),
    "fastvit_t8": ({"layers": (1, 1, 1, 1)}, 4, 0),
    "ghostnetv3_050": ({}, 54, 1),
    "iformer_t": ({"depths": (1, 1, 3, 3), "attn_groups": (0, 0, 1, 1)}, 0, 0),
    "lcnetv2_small": ({}, 21, 0),
    "levit_128s": ({"img_size": 64, "depth": (1, 1, 1)}, 0, 0),
    "nextvit_small": ({"depths": (1, 1, 5, 1)}, 20, 1),
    "repghostnet_050": ({}, 48, 1),
    "repvgg_a0": ({}, 0, 0),
    "repvit_m0_9": ({"depth": (1, 1, 1, 1)}, 0, 0),
    "shvit_s1": ({"depth": (1, 1, 1)}, 0, 0),
    "tiny_vit_5m_224": ({"depths": (1, 1, 1, 1)}, 0, 0),
}
LARGE = ("ghostnetv3_050", "nextvit_small", "repghostnet_050")  # still too slow for each run of the suite
#: Full networks, with heads and blocks that the small ones lack.
FULL = [*TINY, "mobileone_s0", "iformer_m_distilled", "levit_conv_128s", "fastvit_mci0", "efficientvim_m1_dist"]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.2}


class Tower(nn.Module):
    """A network as a part of a larger one: an image tower with a projection, which returns a tuple too."""

    def __init__(self, network):
        super().__init__()
        self.visual = network
        self.projection = nn.LazyLinear(3, bias=False)

    def forward(self, x):
        features = self.visual.forward_head(self.visual.forward_features(x), pre_logits=True)
        return self.projection(next(iter(tensors(features))))


def tensors(output):
    return [output] if isinstance(output, Tensor) else [tensor for item in output for tensor in tensors(item)]


def assert_same_outputs(a, b, x, tolerance):
    with torch.no_grad():
        for ours, theirs in zip(tensors(a(x)), tensors(b(x)), strict=True):
            assert_close(ours, theirs, tolerance)


def assert_same_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert_same(tensor, b.state_dict()[name])


def norms(model):
    return len([module for module in model.modules() if "BatchNorm" in type(module).__name__])


def build(name, dtype=torch.float64, **arguments):
    model = randomize(timm.create_model(name, num_classes=5, **arguments)).to(dtype)
    size = get_model_input_config(model)["input_size"] if model.pretrained_cfg.get("fixed_input_size") else (3, 64, 64)
    return model, torch.randn(1, *size, dtype=dtype)


def assert_converts(model, x, folder, dtype):
    """Convert a network once and twice, save it and load it; returns the deploy form."""
    before = copy.deepcopy(model.state_dict())
    converted = repmlp.reparameterize(model)
    assert model.state_dict().keys() == before.keys()
    assert not repmlp.is_reparameterized(model)
    assert repmlp.is_reparameterized(converted)
    assert {tensor.dtype for tensor in converted.state_dict().values() if tensor.is_floating_point()} == {dtype}
    wide = copy.deepcopy(converted).double(), copy.deepcopy(model).double()
    assert_same_outputs(*wide, x.double(), {**TOLERANCES, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype])
    assert_same_weights(repmlp.reparameterize(converted), converted)
    loaded = repmlp.load_model(repmlp.save_model(converted, folder))
    assert_same_weights(loaded, converted)
    assert repmlp.is_reparameterized(loaded)
    assert_same_outputs(loaded, converted, x, 0)
    return converted


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in TINY])
def test_a_small_member_of_each_family_converts(name, tmp_path, monkeypatch):
    arguments, left, _ = TINY[name]
    config = byobnet.model_cfgs["repvgg_a0"]  # no argument makes a RepVGG smaller
    monkeypatch.setitem(
        byobnet.model_cfgs, "repvgg_a0", replace(config, blocks=[replace(b, d=1, c=16) for b in config.blocks])
    )
    model, x = build(name, **arguments)
    converted = assert_converts(model, x, tmp_path / "model", torch.float64)
    assert norms(converted) == left


def test_a_small_member_converts_in_bfloat16(tmp_path):
    arguments, _, _ = TINY["levit_128s"]
    model, x = build("levit_128s", torch.bfloat16, **arguments)
    assert repmlp.verify(model, assert_converts(model, x, tmp_path / "model", torch.bfloat16), x)


@pytest.mark.parametrize("name", ["lcnetv2_small", "fastvit_t8"])
def test_timm_builds_some_deploy_forms_itself(name, tmp_path):
    arguments, _, _ = TINY[name]
    model, x = build(name, torch.float32, **arguments)
    converted = repmlp.reparameterize(model)
    built = timm.create_model(name, num_classes=5, inference_mode=True, **arguments).eval()
    built.load_state_dict(converted.state_dict())
    assert_same_outputs(built, converted, x, 0)
    if name == "lcnetv2_small":  # of FastViT timm takes the file for one of Apple's
        repmlp.save_model(converted, tmp_path / "model")
        loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
        assert_same_outputs(loaded, converted, x, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in FULL), *((name, torch.bfloat16) for name in TINY)], ids=str
)
def test_every_family_converts_in_every_dtype(name, dtype, tmp_path):
    """In float32 the full networks; in bfloat16, as in float64 above, small ones."""
    model, x = build(name, dtype, **(TINY[name][0] if dtype is torch.bfloat16 else {}))
    converted = assert_converts(model, x, tmp_path / "model", dtype)
    assert_same_outputs(converted, model, x, TOLERANCES[dtype])
    assert repmlp.verify(model, converted, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_family_folds_and_is_exported(name, tmp_path):
    arguments, _, left = TINY[name]
    model, x = build(name, **arguments)
    folded = repmlp.fold_norms(repmlp.reparameterize(model), x)
    assert norms(folded) == left
    assert_same_outputs(folded, model, x, 1e-12)
    with torch.no_grad():
        for ours, theirs in zip(folded.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
            assert_close(ours, theirs, 1e-12)
    assert_same_weights(repmlp.load_model(repmlp.save_model(folded, tmp_path / "model")), folded)
    program = torch.export.export(folded, (x,))
    assert_same_outputs(program.module(), model, x, 1e-12)
    folded.float().reset_classifier(7)
    assert all(tensor.shape == (1, 7) for tensor in tensors(folded(x.float())))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("name", TINY)
def test_every_family_is_exported_for_other_engines(name, suffix, tmp_path):
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "openvino"}[suffix])
    arguments, _, _ = TINY[name]
    model, x = build(name, torch.float32, **arguments)
    file = tmp_path / f"deploy{suffix}"
    export(repmlp.reparameterize(model), file)
    exported = load_exported(file)
    x = torch.randn(2, *exported.input_size)
    assert_same_outputs(exported, model, x, TOLERANCES[torch.float32])


@pytest.mark.slow
@torch.no_grad()  # LeViT keeps a tensor of its last forward pass, and one with a gradient cannot be copied
@pytest.mark.parametrize("name", TINY)
def test_every_family_converts_within_a_larger_model_and_block_by_block(name):
    arguments, _, _ = TINY[name]
    model, x = build(name, **arguments)
    tower = Tower(model).double()
    tower(x)
    converted = repmlp.reparameterize(tower)
    assert_same_outputs(converted, tower.eval(), x, 1e-12)
    assert_same_weights(converted.visual, repmlp.reparameterize(model))
    calls = {}
    blocks = dict(iter_reparameterizable(model))

    def remember(block, args, output):
        calls.setdefault(block, copy.deepcopy((args, output)))  # what follows may write into them

    for block in blocks.values():
        block.register_forward_hook(remember)
    model(x)
    for block, (args, output) in calls.items():
        block._forward_hooks.clear()
        for ours, theirs in zip(tensors(repmlp.reparameterize(block)(*args)), tensors(output), strict=True):
            assert_close(ours, theirs.detach(), 1e-12)
