"""Fine-tuning: where weights may come from, what is said of them, and what is trained."""

import os

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import repmlp
from repmlp import official
from repmlp.data import load_data
from repmlp.training import train
from repmlp.training.setup import build_model, build_optimizer
from repmlp.training.weights import load_weights, match_weights
from repmlp_settings import Train
from tiny import TINY
from weights import randomize

NET = {
    "img_size": 32,
    "partition_sizes": [8, 4, 2, 1],
    "kernel_sizes": [1],
    "channels": [4, 8, 16, 32],
    "share_sets": [1, 4, 16, 32],
}
RESNET = {
    "img_size": 64,
    "partition_size": 2,
    "kernel_sizes": [1],
    "layers": [1, 1, 2, 1],
    "channels": [8, 8, 8, 8],
    "groups": 2,
}


def settings(folder, **changes):
    return Train(output=str(folder), **{**TINY, "epochs": 1, **changes})


def network(classes=10, img_size=8, seed=1, **changes):
    torch.manual_seed(seed)
    arguments = {**TINY["model_args"], **changes}
    return timm.create_model("repmlp_cifar", img_size=img_size, in_chans=1, num_classes=classes, **arguments)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return train(settings(tmp_path_factory.mktemp("weights") / "first"))


def test_training_starts_from_any_kind_of_file(first, tmp_path):
    model = repmlp.load_model(first.folder)
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}}, tmp_path / "a.pth"
    )
    for source in (first.folder, first.folder / "model", first.folder / "model/model.safetensors", tmp_path / "a.pth"):
        said = []
        built = build_model(settings("r", weights=str(source)), load_data("digits"), said.append)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in built.state_dict().items())
        assert said == [f"weights of {source}: {len(model.state_dict())} tensors loaded"]


def test_a_run_says_what_it_loaded_and_resumes_without_the_file(first, tmp_path):
    class Crash(Exception):
        pass

    def crash(step):
        if step.step > 1:  # the state of the first step is written by then
            raise Crash

    said = []
    with pytest.raises(Crash):
        train(settings(tmp_path / "r", weights=str(first.folder), state_every=1), crash, on_message=said.append)
    assert "tensors loaded" in said[0]
    moved = first.folder.rename(first.folder.with_name("moved"))
    try:
        with pytest.raises(Crash):  # it trains on
            train(Train(output=str(tmp_path / "r"), resume=True), crash)
    finally:
        moved.rename(first.folder)


def test_what_starts_anew_and_what_is_not_used_is_said(tmp_path):
    other = network(classes=7)
    save_file({**other.state_dict(), "extra.weight": torch.zeros(1)}, tmp_path / "seven.safetensors")
    model = network(classes=10, seed=2)
    fresh = model.head.fc.weight.clone()
    loaded = load_weights(model, tmp_path / "seven.safetensors")
    assert loaded.initialized == ("head.fc.weight", "head.fc.bias")
    assert loaded.unused == ("extra.weight",)
    assert torch.equal(model.head.fc.weight, fresh)
    assert torch.equal(model.stages[0][0].conv.weight, other.stages[0][0].conv.weight)
    assert "2 re-initialized (head.fc.weight, head.fc.bias); 1 of the file unused (extra.weight)" in str(loaded)


def test_weights_of_another_image_size_are_those_that_resize_gives(tmp_path):
    other = randomize(network(img_size=8))
    repmlp.save_model(other, tmp_path / "small")
    resized = repmlp.resize(other, 16)
    model = network(img_size=16)
    loaded = load_weights(model, tmp_path / "small")
    before = other.state_dict()
    changed = {n for n, value in model.state_dict().items() if n not in before or value.shape != before[n].shape}
    assert set(loaded.initialized) == changed
    assert all(".global_perceptron." in name for name in changed)
    for name in loaded.copied:
        assert torch.equal(model.state_dict()[name], resized.model.state_dict()[name])


@pytest.mark.parametrize("kind", ["folder", "safetensors", "official"])
def test_deploy_weights_are_refused_in_one_sentence(tmp_path, kind):
    architecture = "repmlpnet_t224" if kind == "official" else "repmlp_cifar"
    model = timm.create_model(architecture, **NET) if kind == "official" else network()
    deploy = repmlp.reparameterize(model.eval())
    repmlp.save_model(deploy, tmp_path / "folder")
    save_file(deploy.state_dict(), tmp_path / "safetensors")
    (tmp_path / "safetensors").rename(tmp_path / "deploy.safetensors")
    if kind == "official":
        torch.save(official.state_dict(deploy), tmp_path / "deploy.pth")
    path = tmp_path / {"folder": "folder", "safetensors": "deploy.safetensors", "official": "deploy.pth"}[kind]
    with pytest.raises(
        ValueError, match=r"is in deploy form, which cannot be trained: give the weights before"
    ) as error:
        load_weights(model if kind == "official" else network(), path)
    assert "\n" not in str(error.value)


CONVERT = {"repvgg_a0": repmlp.reparameterize, "test_resnet": repmlp.fold_norms}  # a ResNet has no blocks, but norms


@pytest.mark.parametrize("name", CONVERT)
@pytest.mark.parametrize("part", ["", "model.safetensors"])
def test_a_folder_of_any_network_in_deploy_form_is_refused_and_so_is_the_file_in_it(tmp_path, name, part):
    model = randomize(timm.create_model(name))
    repmlp.save_model(CONVERT[name](model), tmp_path / "deploy")
    with pytest.raises(ValueError, match=r"deploy is in deploy form, which cannot be trained"):
        load_weights(timm.create_model(name), tmp_path / "deploy" / part)
    repmlp.save_model(model, tmp_path / "model")
    assert not load_weights(timm.create_model(name), tmp_path / "model" / part).initialized


@pytest.mark.parametrize(("architecture", "arguments"), [("repmlpnet_t224", NET), ("repmlp_resnet50_light", RESNET)])
def test_weights_of_the_authors_are_translated(tmp_path, architecture, arguments):
    other = randomize(timm.create_model(architecture, num_classes=7, **arguments))
    torch.save({"model": official.state_dict(other)}, tmp_path / "theirs.pth")
    model = timm.create_model(architecture, num_classes=10, **arguments)
    loaded = load_weights(model, tmp_path / "theirs.pth")
    assert len(loaded.initialized) == 2
    assert not loaded.unused
    for name in loaded.copied:
        assert torch.equal(model.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize(("architecture", "arguments"), [("repmlpnet_t224", NET), ("repmlp_resnet50_light", RESNET)])
def test_weights_of_the_authors_for_any_image_size_are_translated(tmp_path, architecture, arguments):
    other = randomize(timm.create_model(architecture, **{**arguments, "img_size": 2 * arguments["img_size"]}))
    torch.save(official.state_dict(other), tmp_path / "theirs.pth")
    model = timm.create_model(architecture, **arguments)
    loaded = load_weights(model, tmp_path / "theirs.pth")
    before = other.state_dict()
    assert set(loaded.initialized) == {n for n, t in model.state_dict().items() if t.shape != before[n].shape}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in loaded.copied)
    torch.save({n: t for n, t in official.state_dict(other).items() if "fc1" not in n}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"the weights do not fit the model: \d+ missing"):
        load_weights(model, tmp_path / "part.pth")


def test_weights_of_timms_resnet_load_into_the_blocks_that_stay(tmp_path):
    theirs = timm.create_model("resnet50", layers=(1, 1, 2, 1), channels=(8, 8, 8, 8))
    save_file(theirs.state_dict(), tmp_path / "resnet.safetensors")
    model = timm.create_model("repmlp_resnet50_light", **RESNET)
    loaded = load_weights(model, tmp_path / "resnet.safetensors")
    assert "conv1.conv.weight" in loaded.copied
    assert "layer1.0.conv2.weight" in loaded.copied
    assert all(name.startswith("layer3.1.") for name in loaded.unused)


def test_weights_of_another_network_and_damaged_ones_are_refused(tmp_path):
    save_file({"nothing": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors are not those of this CifarNet: no name in common"):
        load_weights(network(), tmp_path / "other.safetensors")
    save_file(network(channels=[8, 8]).state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"not those of this CifarNet: stages.0.0.bn.* \[8\] instead of \[4\]"):
        load_weights(network(), tmp_path / "wide.safetensors")
    repmlp.save_model(network(channels=[8, 8]), tmp_path / "wide")
    with pytest.raises(ValueError, match=r"set model to repmlp_cifar and model_args to .*'channels': \[8, 8\]"):
        load_weights(network(), tmp_path / "wide")
    color = timm.create_model("repmlp_cifar", img_size=8, **TINY["model_args"])
    repmlp.save_model(color, tmp_path / "color")
    with pytest.raises(ValueError, match=r"they are for images of 3 channels, and those of the data have 1$"):
        load_weights(network(), tmp_path / "color")
    (tmp_path / "broken.pth").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken.pth is"):
        load_weights(network(), tmp_path / "broken.pth")

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth is refused"):
        load_weights(network(), tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("weights", ["model", "model/model.safetensors"])
def test_the_classes_of_a_model_folder_are_matched_by_name(tmp_path, weights):
    data = load_data("digits")
    names = [*data.class_names[1:], data.class_names[0]]
    repmlp.save_model(network(), tmp_path / "model", names)
    matched = match_weights(data, settings("r", weights=str(tmp_path / weights)), None)
    assert matched.class_names == tuple(names)
    assert [names[label] for label in matched.test.labels] == [data.class_names[label] for label in data.test.labels]
    repmlp.save_model(network(), tmp_path / "model", [f"class {i}" for i in range(10)], overwrite=True)
    with pytest.raises(ValueError, match="the class names of the data set and the model differ"):
        match_weights(data, settings("r", weights=str(tmp_path / weights)), None)


@pytest.mark.parametrize(
    ("freeze", "trained"), [("all-but-head", ("head.",)), ("all-but-blocks", ("head.", "perceptron"))]
)
def test_what_is_frozen_stays_bit_for_bit(first, tmp_path, freeze, trained):
    done = train(settings(tmp_path / "r", weights=str(first.folder), freeze=freeze))
    before, after = (load_file(run.folder / "model" / "model.safetensors") for run in (first, done))
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert {"head.fc.weight", "head.fc.bias"} <= changed
    for kind in trained:
        assert any(kind in name for name in changed)
    assert all(any(kind in name for kind in trained) for name in changed)


def test_layer_decay_slows_the_first_layers_down(tmp_path):
    model = network()
    groups = build_optimizer(settings("r", layer_decay=0.5), model).param_groups
    scales = {group["lr_scale"] for group in groups}
    assert max(scales) == 1.0
    assert min(scales) < 0.5
    assert "lr_scale" not in build_optimizer(settings("r"), model).param_groups[0]
    rows = []
    train(settings(tmp_path / "r", layer_decay=0.5, epochs=2), on_epoch=rows.append)
    assert rows[0].lr == pytest.approx(0.05)  # of the last layers
