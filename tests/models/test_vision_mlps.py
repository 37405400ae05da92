"""The small ResMLP, gMLP and Mixer: timm's class with the sizes that their docstrings give."""

import pytest
import timm
import torch
from timm.layers import GatedMlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock

import repmlp

#: Arguments of timm's class; parameters and MACs, counted by hand.
NETWORKS = {
    "resmlp_6_32": ({"num_blocks": 6, "mlp_ratio": 2, "block_layer": ResBlock, "norm_layer": Affine}, 130634, 8061568),
    "gmlp_6_32": (
        {"num_blocks": 6, "mlp_ratio": 2, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp},
        105290,
        6488704,
    ),
    "mixer_4_32": ({"num_blocks": 4, "mlp_ratio": (2.0, 2.0)}, 137546, 8585856),
}
pytestmark = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def test_it_costs_what_it_says(name):
    _, params, macs = NETWORKS[name]
    counted = repmlp.complexity(timm.create_model(name, device="meta"))
    assert (counted.params, counted.macs) == (params, macs)
    stated = timm.model_entrypoint(name).__doc__
    assert f"{counted.params / 1e6:.2f}M parameters, {counted.macs / 1e6:.1f}M MACs" in stated


def test_it_is_timms_class_and_its_weights_load_into_that(name, images):
    model = timm.create_model(name, num_classes=7).eval()
    assert type(model) is MlpMixer
    torch.nn.init.normal_(model.head.weight)
    plain = MlpMixer(num_classes=7, img_size=32, patch_size=4, embed_dim=64, **NETWORKS[name][0]).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(images), model(images))


def test_its_tokens_form_a_grid_that_locality_fits(name, images):
    model = repmlp.inject_locality(timm.create_model(name), (1, 3, 5, 7))
    layers = [m for m in model.modules() if isinstance(m, repmlp.layers.TokenMixing)]
    assert {layer.grid for layer in layers} == {(8, 8)}
    assert len(layers) == {"resmlp_6_32": 6, "gmlp_6_32": 6, "mixer_4_32": 8}[name]
    maps = {(layer.local_perceptron.in_channels, layer.local_perceptron.out_channels) for layer in layers}
    assert maps == ({(1, 2), (2, 1)} if name == "mixer_4_32" else {(1, 1)})
    assert model(images).shape == (2, 10)


def test_it_takes_timms_arguments(name, images):
    assert timm.create_model(name, in_chans=1, num_classes=3)(images[:, :1]).shape == (2, 3)
    assert timm.create_model(name, img_size=24, num_blocks=1, embed_dim=32)(images[..., :24, :24]).shape == (2, 10)
