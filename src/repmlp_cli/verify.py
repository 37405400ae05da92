"""`repmlp verify`"""

import json
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from repmlp import is_reparameterized, load_model, reparameterize, verify
from repmlp.conversion import example_inputs
from repmlp.files import atomic_write, ensure_can_write, is_json_with
from repmlp.training import read_settings
from repmlp_settings import Export, Train, Verify

from .console import print_report, say
from .data import check_memory, load_test_images


def run(settings: Verify) -> int:
    if settings.images < 1:
        raise ValueError(f"--images is {settings.images}: compare on one image or more")
    if settings.json:
        ensure_can_write(settings.json, overwrite=True)
        if Path(settings.json).exists() and not is_json_with(Path(settings.json), "blocks", "network"):
            raise FileExistsError(f"{settings.json} is kept, since it is not from this command: choose another name")
    a = load_model(settings.a)
    if not settings.data:
        check_memory(a, settings.images)
    if settings.b is None and is_reparameterized(a):
        raise ValueError(f"{settings.a} is in deploy form: name a second model to compare it with")
    b = load_model(settings.b) if settings.b else reparameterize(a)
    inputs = test_images(a, settings.images, settings) if settings.data else inputs_for(settings.a, a, settings.images)
    report = verify(a, b, inputs, settings.tolerance)
    print_report(report)
    if settings.json:
        atomic_write(settings.json, json.dumps(report.to_dict(), indent=2))
        say(f"wrote {settings.json}")
    return 0 if report else 1


def inputs_for(folder: str | Path, model: nn.Module, images: int = 8) -> Tensor:
    """Random images and, if available, as many test images of the data set that a run was trained on.

    Args:
        folder: a run folder, or a model folder, for which all images are random.
        model: the model loaded from ``folder``.
    """
    random, config = example_inputs(model, images), Path(folder) / "config.yaml"
    if not config.is_file() or not (Path(folder) / "model").is_dir():
        return random
    settings = read_settings(config)
    try:
        own = test_images(model, images, settings)
    except (FileNotFoundError, ImportError):  # trained on another machine
        say(f"compared on {images} random images only: {settings.data} is not available here")
        return random
    except ValueError as error:  # the data set has changed, which says nothing about the model
        say(f"compared on random images only, since the test images of {settings.data} do not fit the model: {error}")
        return random
    say(f"compared on {len(own)} test images of {settings.data} and {images} random ones")
    return torch.cat([own, random])


def test_images(model: nn.Module, images: int, settings: Export | Train | Verify) -> Tensor:
    """The first test images of a data set, preprocessed for the model."""
    data, loader = load_test_images(model, settings, batch_size=1)
    check_memory(model, min(images, len(data.test)))
    return torch.cat([image for image, _ in islice(loader, images)])
