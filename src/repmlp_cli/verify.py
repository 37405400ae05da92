"""`repmlp verify`"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from repmlp import is_reparameterized, load_model, reparameterize, verify
from repmlp.conversion import example_inputs
from repmlp.data import load_data
from repmlp.files import atomic_write
from repmlp.training import build_test_loader
from repmlp_settings import Verify

from .console import print_report, say


def run(settings: Verify) -> int:
    if settings.images < 1:
        raise ValueError(f"--images is {settings.images}: compare on one image or more")
    a = load_model(settings.a)
    if settings.b is None and is_reparameterized(a):
        raise ValueError(f"{settings.a} is in deploy form: name a second model to compare it with")
    b = load_model(settings.b) if settings.b else reparameterize(a)
    if settings.data:
        inputs = test_images(
            a, settings.images, settings.data, settings.data_root, settings.bad_images, settings.labels
        )
    else:
        inputs = inputs_for(settings.a, a, settings.images)
    report = verify(a, b, inputs, settings.tolerance)
    print_report(report)
    if settings.json:
        atomic_write(settings.json, json.dumps(report.to_dict(), indent=2))
        say(f"wrote {settings.json}")
    return 0 if report else 1


def inputs_for(folder: str | Path, model: Any, images: int = 8) -> Tensor:
    """Random images and, if available, as many test images of the data set that a run was trained on.

    Args:
        folder: a run folder, or a model folder, for which all images are random.
        model: the model loaded from ``folder``.
    """
    random, config = example_inputs(model, images), Path(folder) / "config.yaml"
    if not config.is_file():
        return random
    settings = yaml.safe_load(config.read_text())
    try:
        own = test_images(
            model, images, settings["data"], settings.get("data_root"), settings.get("bad_images", "stop"), "by-name"
        )
    except (FileNotFoundError, ImportError):  # trained on another machine
        return random
    say(f"compared on {len(own)} test images of {settings['data']} and {images} random ones")
    return torch.cat([own, random])


def test_images(model: Any, images: int, data: str, data_root: str | None, bad_images: Any, labels: Any) -> Tensor:
    """The first test images of a data set, preprocessed for the model."""
    own = load_data(data, data_root, bad_images=bad_images, in_memory="no")
    loader = build_test_loader(model, own, batch_size=1, labels=labels)
    return torch.cat([image for image, _ in islice(loader, images)])
