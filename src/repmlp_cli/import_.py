"""`repmlp import`"""

import torch

from repmlp import official, save_model
from repmlp.checkpoint import check_architecture, claim_model_folder
from repmlp.conversion import example_inputs
from repmlp.official.checkpoint import build_for, identify_checkpoint, read_checkpoint
from repmlp_settings import Import

from .console import say


def run(settings: Import) -> int:
    check_architecture(settings.arch)
    with claim_model_folder(settings.output, settings.overwrite):
        return read_and_write(settings)


def read_and_write(settings: Import) -> int:
    weights = read_checkpoint(settings.file)
    kind = identify_checkpoint(weights)
    say(f"{settings.file}: {len(weights)} tensors, {kind}")
    model = build_for(settings.arch, weights, **settings.model_args).eval()
    try:
        official.load(model, weights)
    except ValueError as error:
        raise ValueError(f"{settings.file} is {kind}, but --arch says {settings.arch}: {error}") from error
    with torch.no_grad():
        logits = model(example_inputs(model, batch_size=2))
    if not logits.isfinite().all():
        raise ValueError(f"{settings.arch} with the weights of {settings.file} gives values that are not finite")
    save_model(model, settings.output, overwrite=settings.overwrite)
    say(f"all names found, all shapes fit, the network runs; wrote {settings.output}")
    return 0
