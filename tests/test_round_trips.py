"""A network of ours that is made, resized, re-headed, converted, saved and loaded, in any order, stays what it is."""

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timm.data import resolve_data_config
from timm.models import get_model_input_config

import repmlp
from repmlp.conversion import needs_reparameterize
from repmlp.model_config import label_names_of
from weights import randomize

NETWORKS = {
    "repmlp_cifar": {"img_size": 16, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]},
    "repmlpnet_t224": {
        "img_size": 32,
        "partition_sizes": [8, 4, 2, 1],
        "kernel_sizes": [1],
        "channels": [4, 8, 16, 32],
        "share_sets": [1, 4, 16, 32],
    },
    "resmlp_6_32": {},
}
PREPROCESSING = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.25), "interpolation": "bilinear", "crop_pct": 0.8}
STEPS = ("convert", "save and load", "new head", "resize", "double")


def size_of(model):
    return tuple(get_model_input_config(model)["input_size"])


def check(model, names, size):
    """The network states the images that it takes and the classes that it tells apart."""
    config = resolve_data_config(model=model)
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    assert {key: stated[key] for key in PREPROCESSING} == PREPROCESSING
    assert label_names_of(model) == names
    assert size_of(model) == stated["input_size"] == (3, *size)
    assert model(torch.zeros(1, 3, *size, dtype=next(model.parameters()).dtype)).shape == (1, model.num_classes)


@settings(max_examples=15)
@given(st.sampled_from(list(NETWORKS)), st.lists(st.sampled_from(STEPS), min_size=1, max_size=5))
@example("repmlp_cifar", ["resize", "convert", "new head", "resize", "save and load"])
def test_nothing_changes_on_the_way(tmp_path_factory, name, steps):
    folder = tmp_path_factory.mktemp("m")
    made = randomize(timm.create_model(name, num_classes=3, **NETWORKS[name]))
    model = repmlp.load_model(repmlp.save_model(made, folder / "0", ["a", "b", "c"], PREPROCESSING))
    names, size = ["a", "b", "c"], size_of(made)[1:]
    for i, step in enumerate(steps):
        before = model(images := torch.ones(2, 3, *size, dtype=next(model.parameters()).dtype))
        if step == "convert" and needs_reparameterize(model):
            model = repmlp.reparameterize(model)
        elif step == "save and load":
            model = repmlp.load_model(repmlp.save_model(model, folder / f"{i + 1}"))
            assert torch.equal(model(images), before)
        elif step == "new head":
            model.reset_classifier(model.num_classes + 1)
            names = None
        elif step == "resize" and name == "repmlp_cifar":
            size = (size[0] + 8, size[1])
            model = repmlp.resize(model, size).model
        elif step == "double":
            model = model.double()
        if step in ("convert", "double"):
            torch.testing.assert_close(model(images.to(next(model.parameters()).dtype)).float(), before.float())
        check(model, names, size)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("make", ["img_size", "overlay"])
def test_a_folder_states_the_input_size_that_the_network_was_made_for(tmp_path, name, make):
    size = {"repmlp_cifar": (16, 24), "repmlpnet_t224": (64, 32), "resmlp_6_32": (48, 32)}[name]
    arguments = {**NETWORKS[name], "img_size": size}
    if make == "overlay":
        arguments["pretrained_cfg_overlay"] = {"mean": (0.1, 0.2, 0.3)}
    model = repmlp.load_model(repmlp.save_model(timm.create_model(name, **arguments), tmp_path / "m"))
    assert size_of(model) == resolve_data_config(model=model)["input_size"] == (3, *size)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, *size)
