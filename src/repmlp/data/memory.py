"""Small data sets as one tensor of bytes, cropped, flipped and normalized in whole batches on the device.

n images, B images per batch, C channels, H,W input size of the network.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .images import LabeledImages, PixelImages
from .loading import WHOLE, ProcessShard, augmentation_draws, count_batches, epoch_batches, seed_from_key
from .pixels import MEMORY_LIMIT
from .transforms import DataConfig, eval_transform


def crop_and_flip(x: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Zero-pad images, crop each at its own position to the original size, and mirror those selected by ``flip``.

    Args:
        x: images (B, C, H, W).
        top, left: (B,), first row and column of each crop in the padded image, in 0 .. 2*padding.
        flip: (B,), bool.

    Shape: (B, C, H, W).
    """
    B, _, H, W = x.shape
    x = F.pad(x, (padding,) * 4)
    rows = top[:, None] + torch.arange(H, device=x.device)  # (B, H)
    columns = torch.arange(W, device=x.device).expand(B, W)
    columns = left[:, None] + torch.where(flip[:, None], W - 1 - columns, columns)  # (B, W)
    image = torch.arange(B, device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)  # (B, H, W, C) -> (B, C, H, W)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Bytes to float32: ``(x / 255 - mean) / std`` per channel, with the same rounding as torchvision."""
    x = x.to(torch.float32).div_(255)
    return x.sub_(x.new_tensor(mean).view(-1, 1, 1)).div_(x.new_tensor(std).view(-1, 1, 1))


class TensorBatches:
    """Batches of a data set kept as one tensor, as loaded by :func:`load_tensor`.

    Args:
        images: bytes (n, C, H, W).
        labels: (n).
        batch_size: over all processes.
        data_config: timm's, with mean and std.
        shard: the share of each batch for this process.
        train: shuffle each epoch, and drop an incomplete last batch.
        seed: of order and augmentation.
        padding, hflip: pixels of padding before the random crop, and probability of a flip; only with ``train``.
        erase: another augmentation, applied to a normalized batch (B, C, H, W).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        data_config: DataConfig,
        shard: ProcessShard = WHOLE,
        train: bool = False,
        seed: int = 0,
        padding: int = 0,
        hflip: float = 0.0,
        erase: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images, self.labels, self.batch_size, self.shard = images, labels, batch_size, shard
        self.mean, self.std = data_config["mean"], data_config["std"]
        self.train, self.seed, self.padding, self.hflip, self.erase = train, seed, padding, hflip, erase

    def __len__(self) -> int:
        return count_batches(len(self.labels), self.batch_size, self.train, self.shard)

    def iter_epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (B, C, H, W) and labels (B), starting with batch number ``start``."""
        batches = epoch_batches(len(self.labels), self.batch_size, self.train, self.seed, epoch, self.shard)
        for number, indices in enumerate(batches[start:], start):
            x, labels = self.images[indices], self.labels[indices]
            if self.train and (self.padding or self.hflip):
                draws = augmentation_draws(self.batch_size, self.padding, self.hflip, (self.seed, epoch, number))
                top, left, flip = (draw[self.shard.slice()].to(x.device) for draw in draws)
                x = crop_and_flip(x, top, left, flip, self.padding)
            x = normalize(x, self.mean, self.std)
            if self.train:
                seed_from_key(self.seed, epoch, number, self.shard.rank)
                if self.erase is not None:
                    x = self.erase(x)
            yield x, labels


def fits_in_memory(images: int, data_config: DataConfig) -> bool:
    """Whether this many images, at the network's input size, take at most MEMORY_LIMIT bytes."""
    return images * math.prod(data_config["input_size"]) <= MEMORY_LIMIT


def load_tensor(
    data: LabeledImages, data_config: DataConfig, indices: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """All or selected images of a data set, prepared as by :func:`eval_transform`: bytes (n, C, H, W).

    Returns:
        images, labels (n)
    """
    prepare = eval_transform(data_config, normalize=False)
    indices = range(len(data)) if indices is None else indices
    if isinstance(data, PixelImages) and _keeps_pixels(prepare, data):
        pixels = data.pixels[torch.as_tensor(indices, dtype=torch.long)]  # (n, H, W) or (n, H, W, C)
        images = pixels[:, None] if pixels.ndim == 3 else pixels.movedim(3, 1).contiguous()
        return images, torch.from_numpy(data.labels[np.asarray(indices, dtype=np.int64)]).long()
    samples = [data[i] for i in indices]
    size = data_config["input_size"]
    images = torch.stack([prepare(image) for image, _ in samples]) if samples else torch.empty(0, *size).byte()
    return images, torch.tensor([int(label) for _, label in samples], dtype=torch.long)


def _keeps_pixels(prepare: Callable[[Image.Image], Tensor], data: PixelImages) -> bool:
    """Whether a transform leaves images of this size unchanged, judged by an image of noise."""
    noise = torch.randint(0, 256, data.pixels.shape[1:], generator=torch.Generator().manual_seed(0)).byte()
    prepared = prepare(Image.fromarray(noise.numpy()))  # (C, H, W)
    return torch.equal(prepared, noise[None] if noise.ndim == 2 else noise.movedim(2, 0))
