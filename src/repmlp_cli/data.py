"""The data set that a command's settings name, as a model takes it."""

import math

from timm.models import get_model_input_config
from torch import nn
from torch.utils.data import DataLoader

from repmlp.data import ImageData, load_data
from repmlp.training import build_test_loader
from repmlp_settings import Eval, Export, Quantize, Train, Verify

#: Bytes of the images that a command compares in one batch, at most; what a network computes from them takes far more.
MAX_BYTES = 2**32


def check_memory(model: nn.Module, images: int) -> None:
    """Raise ValueError if so many images of the model's size are too many for one batch."""
    size = get_model_input_config(model)["input_size"]
    most = MAX_BYTES // (4 * math.prod(size))
    if images > most:
        shape = "x".join(str(n) for n in size)
        raise ValueError(f"--images is {images}: use at most {most}, since images of {shape} are compared in one batch")


def load_test_images(
    model: nn.Module, settings: Eval | Export | Quantize | Train | Verify, batch_size: int, workers: int = 0
) -> tuple[ImageData, DataLoader]:
    """The data set, and batches of its test images."""
    data = load_data(settings.data or "", settings.data_root, bad_images=settings.bad_images, in_memory="no")
    return data, build_test_loader(model, data, batch_size, workers, settings.labels)
