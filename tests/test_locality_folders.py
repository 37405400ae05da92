"""Model folders of networks with convs beside their token-mixing FCs: in training form ours, merged timm's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file, save_file

import repmlp
from compare import assert_same
from repmlp.conversion import example_inputs
from repmlp.layers import TokenMixing
from weights import scramble


def injected_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, TokenMixing)]


def timm_model(name, **arguments):
    """A network of timm or of this package, made for small images, with weights that are nowhere near zero."""
    return scramble(timm.create_model(name, num_classes=5, **arguments))


#: Networks that timm knows without this package, and ours as arguments of timm's class.
TIMM = {
    "resmlp_12_224": {"img_size": (48, 64)},
    "gmlp_ti16_224": {"img_size": (48, 48)},
    "mixer_s16_224": {"img_size": (64, 96), "mlp_ratio": (48 / 512, 1)},  # 48 = 2*24: two maps
}
OURS = ("resmlp_6_32", "gmlp_6_32", "mixer_4_32")


def training_form(name, **arguments):
    return scramble(repmlp.inject_locality(timm_model(name, **arguments), (1, 3)), seed=1)


def random_images(model):
    return example_inputs(model, batch_size=2)


@pytest.mark.parametrize("name", OURS)
def test_a_folder_in_training_form_comes_back_with_its_convs(name, tmp_path):
    model = training_form(name)
    folder = repmlp.save_model(model, tmp_path / "model", label_names=list("abcde"))
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == name
    assert config["locality"] == [
        {"kernel_sizes": [[1, 1], [3, 3]], "layers": injected_layers(model), "grid": [8, 8], "class_token": False}
    ]
    loaded = repmlp.load_model(folder)
    assert not loaded.training
    assert not repmlp.is_reparameterized(loaded)
    assert loaded.pretrained_cfg["label_names"] == list("abcde")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    x = random_images(model)
    assert_same(loaded(x), model(x))


def test_a_folder_of_a_half_merged_model_and_of_kernels_by_layer(tmp_path):
    model = timm_model("resmlp_6_32")
    repmlp.inject_locality(model, (1,), layers=["blocks.0.linear_tokens", "blocks.1.linear_tokens"])
    repmlp.inject_locality(model, ((1, 3), 5), layers=["blocks.2.linear_tokens"])
    scramble(model, seed=1).blocks[0].linear_tokens.reparameterize()
    loaded = repmlp.load_model(repmlp.save_model(model, tmp_path / "model"))
    assert injected_layers(loaded) == ["blocks.1.linear_tokens", "blocks.2.linear_tokens"]
    assert list(loaded.blocks[2].linear_tokens.local_perceptron.branches) == ["1x3", "5x5"]
    x = random_images(model)
    assert_same(loaded(x), model(x))


def test_a_folder_in_deploy_form_is_that_of_the_plain_network(tmp_path):
    merged = repmlp.reparameterize(training_form("resmlp_6_32"))
    configs = [
        json.loads((repmlp.save_model(model, tmp_path / name) / "config.json").read_text())
        for name, model in {"merged": merged, "plain": timm_model("resmlp_6_32")}.items()
    ]
    assert configs[0] == configs[1]
    assert "locality" not in configs[0]
    assert "deploy" not in configs[0].get("model_args", {})
    loaded = repmlp.load_model(tmp_path / "merged")
    x = random_images(merged)
    assert_same(loaded(x), merged(x))


def test_weights_or_a_locality_that_do_not_fit(tmp_path):
    folder = repmlp.save_model(training_form("resmlp_6_32"), tmp_path / "model")
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    for wrong in ({"layers": ["blocks.9.linear_tokens"]}, {"kernel_sizes": [[5, 5]]}, {"kernels": [3]}):
        broken = {**config, "locality": [{**config["locality"][0], **wrong}]}
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"do not fit its config\.json|config\.json does not describe a network"):
            repmlp.load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    name = "blocks.3.linear_tokens.local_perceptron.branches.3x3.conv.weight"
    save_file({key: tensor for key, tensor in weights.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"do not fit its config.json(.|\n)*{re.escape(name)}"):
        repmlp.load_model(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged or was not written to its end"):
        repmlp.load_model(folder)


WITHOUT_US = """
import sys, timm
from safetensors.torch import load_file
from timm.layers import GatedMlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock

folder, names = sys.argv[1], sys.argv[2:]

def check(model, name):
    expected = load_file(f"{folder}/{name}.safetensors")
    y = model.eval()(expected["x"])
    assert (y - expected["y"]).abs().max() < 1e-4 * expected["y"].abs().max(), name

for name in names:
    check(timm.create_model(f"local-dir:{folder}/{name}", pretrained=True), name)
small = {"num_classes": 5, "img_size": 32, "patch_size": 4, "embed_dim": 64}
for name, sizes in {
    "resmlp_6_32": {"num_blocks": 6, "mlp_ratio": 2, "norm_layer": Affine, "block_layer": ResBlock},
    "gmlp_6_32": {"num_blocks": 6, "mlp_ratio": 2, "mlp_layer": GatedMlp, "block_layer": SpatialGatingBlock},
    "mixer_4_32": {"num_blocks": 4, "mlp_ratio": (2, 2)},
}.items():
    model = MlpMixer(**small, **sizes)
    model.load_state_dict(load_file(f"{folder}/{name}/model.safetensors"))
    check(model, name)
assert "repmlp" not in sys.modules
print("loaded", len(names) + 3)
"""


@pytest.mark.slow
def test_merged_networks_run_where_this_package_is_not_imported(tmp_path):
    """timm alone builds the network from the folder, or from its class, and loads the weights strictly."""
    for name, arguments in [*TIMM.items(), *((name, {}) for name in OURS)]:
        model = training_form(name, **arguments)
        x = random_images(model)
        y = model(x).detach()
        assert y.std() > 0.1
        repmlp.save_model(repmlp.reparameterize(model), tmp_path / name)
        save_file({"x": x, "y": y}, tmp_path / f"{name}.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(tmp_path), *TIMM], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "loaded 6\n", done.stderr


def test_the_code_in_the_docs_runs(tmp_path, monkeypatch, capsys):
    docs = Path(__file__).parents[1] / "docs" / "locality.md"
    train, load, own = re.findall(r"```python\n(.*?)```", docs.read_text(), re.DOTALL)
    assert "import repmlp" not in load
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(train, names)
    assert "equal within" in capsys.readouterr().out
    trained = names["plain"]
    exec(load, names)
    x = random_images(trained)
    assert_same(names["model"].eval()(x), trained(x))
    exec(own, names)
