"""RepMLP-ResNet under the authors' names: the golden logits, and every key of both forms, both ways."""

import json
from math import prod
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

import repmlp
from weights import golden_state_dict, randomize, uniform

GOLDEN = Path(__file__).parents[1] / "golden" / "repmlp_res50_light_224"
KEYS = json.loads(GOLDEN.with_suffix(".keys.json").read_text())
both_forms = pytest.mark.parametrize("form", ["train", "deploy"])


def on_meta(name: str, form: str, **kwargs) -> nn.Module:
    return timm.create_model(name, deploy=form == "deploy", device="meta", **kwargs)


@both_forms
def test_every_official_key_of_the_released_network_is_mapped_to_one_of_ours(form):
    model = on_meta("repmlp_resnet50_light_g4", form)
    entries = list(repmlp.official.entries(model))
    assert {entry.official: list(entry.shape) for entry in entries} == KEYS[form]
    assert sorted(entry.ours for entry in entries) == sorted(model.state_dict())


def test_golden_logits_in_both_forms():
    with safe_open(GOLDEN.with_suffix(".safetensors"), "pt") as file:
        y, shape = file.get_tensor("y"), json.loads(file.metadata()["input_shape"])
    x = torch.from_numpy(uniform("input", prod(shape))).reshape(shape)
    weights = golden_state_dict(KEYS["train"])
    model = on_meta("repmlp_resnet50_light_g4", "train", dtype=torch.float64).to_empty(device="cpu").eval()
    repmlp.official.load(model, weights)
    returned = repmlp.official.state_dict(model)
    assert all(torch.equal(returned[name], weights[name]) for name in KEYS["train"])
    with torch.no_grad():
        assert (model(x) - y).norm() <= 1e-9 * y.norm()
        repmlp.reparameterize(model, inplace=True)
        assert (model(x) - y).norm() <= 1e-9 * y.norm()


@both_forms
@pytest.mark.parametrize("name", ["repmlp_resnet50", "repmlp_resnet50_light", "repmlp_faceresnet", "faceresnet"])
def test_weights_go_out_and_come_back(name, form):
    size = {"channels": (16, 32, 64, 128), "img_size": 64, "partition_size": 4, "kernel_sizes": (1, 3)}
    model, other = (timm.create_model(name, deploy=form == "deploy", **size) for _ in range(2))
    randomize(model)
    weights = repmlp.official.state_dict(model)
    assert len(weights) == len(model.state_dict())
    repmlp.official.load(other, weights)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_repmlp_bottleneck_has_the_authors_names():
    names = {entry.official: entry.ours for entry in repmlp.official.entries(on_meta("repmlp_resnet50", "deploy"))}
    block = {theirs.removeprefix("stage2.1."): ours for theirs, ours in names.items() if theirs.startswith("stage2.1.")}
    assert block == {
        "btnk_conv1.conv.weight": "layer2.1.conv1.conv.weight",
        "btnk_conv1.conv.bias": "layer2.1.conv1.conv.bias",
        "btnk_conv2.conv.weight": "layer2.1.conv2.conv.weight",
        "btnk_conv2.conv.bias": "layer2.1.conv2.conv.bias",
        "btnk_repmlp.fc1_fc2.fc1.weight": "layer2.1.repmlp.global_perceptron.fc1.weight",
        "btnk_repmlp.fc1_fc2.fc1.bias": "layer2.1.repmlp.global_perceptron.fc1.bias",
        "btnk_repmlp.fc1_fc2.fc2.weight": "layer2.1.repmlp.global_perceptron.fc2.weight",
        "btnk_repmlp.fc1_fc2.fc2.bias": "layer2.1.repmlp.global_perceptron.fc2.bias",
        "btnk_repmlp.fc3.weight": "layer2.1.repmlp.partition_perceptron.fc3.weight",
        "btnk_repmlp.fc3.bias": "layer2.1.repmlp.partition_perceptron.fc3.bias",
        "btnk_conv4.conv.weight": "layer2.1.conv3.conv.weight",
        "btnk_conv4.conv.bias": "layer2.1.conv3.conv.bias",
        "btnk_conv5.conv.weight": "layer2.1.conv4.conv.weight",
        "btnk_conv5.conv.bias": "layer2.1.conv4.conv.bias",
    }


def test_weights_of_the_other_form_are_refused_and_named():
    model = on_meta("repmlp_resnet50_light_g4", "train")
    deployed = {name: torch.empty(shape, device="meta") for name, shape in KEYS["deploy"].items()}
    with pytest.raises(ValueError, match=r"missing \(stage0\.0\.bn\.weight.*unexpected \(stage0\.0\.conv\.bias"):
        repmlp.official.load(model, deployed)
