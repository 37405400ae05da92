"""`repmlp verify`"""

import json
from itertools import islice
from pathlib import Path

import torch

from repmlp import is_reparameterized, load_model, reparameterize, verify
from repmlp.conversion import example_inputs
from repmlp.data import load_data
from repmlp.training import build_test_loader
from repmlp_settings import Verify

from .console import print_report, say


def run(settings: Verify) -> int:
    a = load_model(settings.a)
    if settings.b is None and is_reparameterized(a):
        raise ValueError(f"{settings.a} is in deploy form: name a second model to compare it with")
    b = load_model(settings.b) if settings.b else reparameterize(a)
    if settings.data:
        data = load_data(settings.data, settings.data_root, bad_images=settings.bad_images)
        loader = build_test_loader(a, data, batch_size=1)
        inputs = torch.cat([image for image, _ in islice(loader, settings.images)])
    else:
        inputs = example_inputs(a, settings.images)
    report = verify(a, b, inputs, settings.tolerance)
    print_report(report)
    if settings.json:
        Path(settings.json).write_text(json.dumps(report.to_dict(), indent=2))
        say(f"wrote {settings.json}")
    return 0 if report else 1
