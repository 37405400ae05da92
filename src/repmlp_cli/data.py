"""The data set that a command's settings name, as a model takes it."""

from torch import nn
from torch.utils.data import DataLoader

from repmlp.data import ImageData, load_data
from repmlp.training import build_test_loader
from repmlp_settings import Eval, Export, Quantize, Train, Verify


def load_test_images(
    model: nn.Module, settings: Eval | Export | Quantize | Train | Verify, batch_size: int, workers: int = 0
) -> tuple[ImageData, DataLoader]:
    """The data set, and batches of its test images."""
    data = load_data(settings.data or "", settings.data_root, bad_images=settings.bad_images, in_memory="no")
    return data, build_test_loader(model, data, batch_size, workers, settings.labels)
