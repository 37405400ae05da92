"""Data sets by name, and the way from their images to batches."""

from .loading import Batches, ImageBatches, Part, count_batches, epoch_batches, seed_everything
from .memory import TensorBatches, crop_and_flip, fits_in_memory, load_tensor, normalize
from .sets import FOLDER, NORMALIZATION, ImageData, hold_out, load_data
from .transforms import Transformed, eval_transform, open_image, train_transform

__all__ = [
    "FOLDER",
    "NORMALIZATION",
    "Batches",
    "ImageBatches",
    "ImageData",
    "Part",
    "TensorBatches",
    "Transformed",
    "count_batches",
    "crop_and_flip",
    "epoch_batches",
    "eval_transform",
    "fits_in_memory",
    "hold_out",
    "load_data",
    "load_tensor",
    "normalize",
    "open_image",
    "seed_everything",
    "train_transform",
]
