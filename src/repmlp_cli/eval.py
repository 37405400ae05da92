"""`repmlp eval`"""

from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn

from repmlp.deploy import ExportedModel, load_any
from repmlp.training import evaluate
from repmlp_settings import Eval

from .card import name_forms
from .console import say
from .data import load_test_images


def run(settings: Eval) -> int:
    model = load_any(settings.model)
    data, loader = load_test_images(model, settings, settings.batch_size, settings.workers)
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False))  # each image once
    model, loader = accelerator.prepare(model, loader)
    result = evaluate(model, loader, accelerator)
    say(
        f"{settings.model} ({kind(accelerator.unwrap_model(model))}) on {settings.data}: "
        f"{result.correct} of {result.images} correct, ",
        (f"{result.accuracy:.2%}", "bold"),
        f" top-1 (loss {result.loss:.4f})",
    )
    if turned := data.test.num_turned:
        images = "1 image was" if turned == 1 else f"{turned} images were"
        say(f"{images} rotated according to the EXIF orientation, which timm and torchvision do not apply")
    return 0


def kind(model: nn.Module) -> str:
    if isinstance(model, ExportedModel):
        return f"{'int8, ' if model.metadata.get('int8') else ''}exported to {model.format}"
    return next(iter(name_forms(model)))
