"""Data sets by name, and the way from their images to batches."""

from .class_names import match_labels
from .decoding import open_image
from .loading import Batches, ImageBatches, ProcessShard, count_batches, epoch_batches, seed_from_key
from .memory import TensorBatches, crop_and_flip, fits_in_memory, load_tensor, normalize
from .sets import NORMALIZATION, ImageData, load_data
from .splits import draw_train_val, split_train_val
from .transforms import Transformed, eval_transform, train_transform

__all__ = [
    "NORMALIZATION",
    "Batches",
    "ImageBatches",
    "ImageData",
    "ProcessShard",
    "TensorBatches",
    "Transformed",
    "count_batches",
    "crop_and_flip",
    "draw_train_val",
    "epoch_batches",
    "eval_transform",
    "fits_in_memory",
    "load_data",
    "load_tensor",
    "match_labels",
    "normalize",
    "open_image",
    "seed_from_key",
    "split_train_val",
    "train_transform",
]
