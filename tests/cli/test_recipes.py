"""Every recipe trains for some steps, with its own augmentation and loss, on small images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from repmlp.training import Stopped, train
from repmlp_settings import Train

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
#: The networks of recipes for photos, as small as they become.
SMALL = {
    "repmlpnet_t224": {"model_args": {"partition_sizes": [32, 16, 8, 4]}, "img_size": 128},
    "repmlp_resnet50": {"model": "repmlp_resnet50", "img_size": 64},
    "repmlp_faceresnet": {"model": "repmlp_faceresnet", "img_size": 96},
    "repmlp_cifar": {"model_args": {"channels": [4, 8], "partition_size": 8}, "img_size": 16},
    "wide_convnet_cifar": {"model_args": {"channels": [8, 16]}},
}


@pytest.fixture(autouse=True)
def _precision():
    """Let each run have a precision of its own: accelerate has one for a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture
def photos(tmp_path):
    """Twenty-four images of each of four classes, as a folder; gray noise would not show a wrong color operation."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "abcd":
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(24):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.jpg")
    return f"folder:{tmp_path / 'photos'}"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_for_some_steps(recipe, photos, tmp_path):
    settings = Train(output=str(tmp_path / "run"), **yaml.safe_load(recipe.read_text()))
    small = {**SMALL.get(settings.model, {}), "data": settings.data if settings.data == "digits" else photos}
    if settings.fit == "pad":
        small["fit"] = "resize"  # the photos are larger than the network's size
    settings = replace(settings, epochs=2, warmup_epochs=1 if settings.warmup_epochs else 0, batch_size=8, **small)
    settings = replace(settings, workers=0, cpu=True, state_every=0)
    losses = []

    def on_step(step):
        losses.append(step.loss)
        if len(losses) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(settings, on_step=on_step)
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_augments_photos(recipe):
    """Its own augmentation, five hundred times: some operations come once in a thousand images."""
    from repmlp.data import seed_from_key, train_transform

    settings = Train(output="", **yaml.safe_load(recipe.read_text()))
    config = {"input_size": (3, 24, 24), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    transform = train_transform(
        config | {"crop_pct": 1.0},
        settings.augment,
        settings.crop_padding,
        settings.hflip,
        settings.auto_augment,
        settings.random_erasing,
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    for i in range(500 if settings.auto_augment else 20):
        seed_from_key(i)
        assert transform(image).isfinite().all()
