"""Converted and folded networks of timm: what their folders say, and what comes back from them."""

import json

import pytest
import timm
import torch
from torch import nn

import repmlp
from compare import assert_same
from repmlp.conversion.forms import describe_form, rebuild_form_
from weights import randomize


def saved(model, folder):
    repmlp.save_model(model, folder)
    return json.loads((folder / "config.json").read_text()), repmlp.load_model(folder)


def assert_same_network(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert_same(tensor, b.state_dict()[name])
    assert {name: type(m) for name, m in a.named_modules()} == {name: type(m) for name, m in b.named_modules()}
    x = torch.randn(1, 3, 64, 64)
    assert_same(a(x), b(x))


def test_a_folded_network_comes_back_from_its_folder(tmp_path):
    folded = repmlp.fold_norms(randomize(timm.create_model("test_resnet", num_classes=5)))
    config, back = saved(folded, tmp_path / "model")
    assert config["folded_norms"][:2] == ["conv1.1", "conv1.4"]
    assert "reparameterized" not in config
    assert_same_network(back, folded)


def test_a_converted_and_folded_network_comes_back_from_its_folder(tmp_path):
    model = randomize(timm.create_model("lcnetv2_small", num_classes=5))
    converted = repmlp.reparameterize(model)
    config, back = saved(converted, tmp_path / "converted")
    assert len(config["reparameterized"]) == 6
    assert "folded_norms" not in config
    assert_same_network(back, converted)
    folded = repmlp.fold_norms(converted)
    config, again = saved(folded, tmp_path / "folded")
    assert config["reparameterized"]
    assert len(config["folded_norms"]) == 21
    assert_same_network(again, folded)
    assert describe_form(again) == describe_form(folded)
    _, third = saved(again, tmp_path / "third")
    assert_same_network(third, folded)


def test_a_network_of_which_some_blocks_are_converted_comes_back_so(tmp_path):
    model = randomize(timm.create_model("lcnetv2_small", num_classes=5))
    repmlp.reparameterize(model.stages[3], inplace=True)
    config, back = saved(model, tmp_path / "model")
    assert config["reparameterized"] == ["stages.3.0", "stages.3.1"]
    assert_same_network(back, model.eval())


def test_the_form_of_an_encoder_is_known_when_the_model_around_it_was_converted(tmp_path):
    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = timm.create_model("lcnetv2_small", num_classes=5)

        def forward(self, x):
            return self.encoder(x)

    model = randomize(Segmenter())
    folded = repmlp.fold_norms(repmlp.reparameterize(model), torch.randn(2, 3, 64, 64))
    _, back = saved(folded.encoder, tmp_path / "model")
    assert_same_network(back, folded.encoder)


def test_a_network_as_timm_builds_it_needs_no_description(tmp_path):
    model = timm.create_model("test_resnet", num_classes=5).eval()
    assert describe_form(model) == {}
    config, back = saved(model, tmp_path / "model")
    assert not {"reparameterized", "folded_norms"} & config.keys()
    assert_same_network(back, model)


def test_a_config_that_names_a_module_the_network_lacks_is_an_error(tmp_path):
    folded = repmlp.fold_norms(timm.create_model("test_resnet", num_classes=5))
    config, _ = saved(folded, tmp_path / "model")
    config["folded_norms"].append("layer9.bn")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has no attribute `layer9`"):
        repmlp.load_model(tmp_path / "model")


def test_a_config_that_folds_what_is_not_a_norm_is_an_error():
    with pytest.raises(ValueError, match=r"a Conv2d is not a batch norm that can be folded"):
        rebuild_form_(timm.create_model("test_resnet"), {"folded_norms": ["conv1.0"]}, {})
