"""The input path alone: pad, crop, flip and normalize whole batches in memory, against torchvision image by image.

The data are 60,000 images with random pixels, 28x28 gray as in Fashion-MNIST and 32x32 RGB as in CIFAR; their content
does not matter. Both paths give normalized float32 batches of 128, padded by 4, cropped and flipped at random.

    python benchmarks/input.py
"""

import time
from itertools import islice
from statistics import median

import numpy as np
import torch
from common import options, table, write
from torch.utils.data import DataLoader
from torchvision import transforms

from repmlp.data import ImageBatches, TensorBatches, load_tensor, train_transform
from repmlp.data.images import PixelImages

SETS = {"28x28 gray": (28, 1), "32x32 RGB": (32, 3)}


class Random(PixelImages):
    """Images of random bytes (n, size, size, channels), as PIL images."""

    def __init__(self, n: int, size: int, channels: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
        super().__init__(torch.from_numpy(pixels[..., 0] if channels == 1 else pixels), np.arange(n) % 10)


class Torchvisions(Random):
    """The same through the transforms that people write."""

    def __init__(self, n: int, size: int, channels: int) -> None:
        super().__init__(n, size, channels)
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * channels, (0.25,) * channels),
            ]
        )

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:  # type: ignore[override]
        image, label = super().__getitem__(i)
        return self.transform(image), label


def ways(n: int, size: int, channels: int, batch: int) -> dict:
    """Name -> a function that gives the batches of an epoch."""
    config = {
        "input_size": (channels, size, size),
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    data = Random(n, size, channels)
    memory = TensorBatches(*load_tensor(data, config), batch, config, train=True, padding=4, hflip=0.5)
    ours = ImageBatches(data, range(n), train_transform(config, "pad-crop"), batch, train=True)
    theirs = Torchvisions(n, size, channels)
    return {
        "torchvision, 0 workers": lambda epoch: DataLoader(theirs, batch, shuffle=True),
        "torchvision, 2 workers": lambda epoch: DataLoader(theirs, batch, shuffle=True, num_workers=2),
        "image by image, 0 workers": ours.iter_epoch,
        "whole batches": memory.iter_epoch,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each way, in turn")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batches", type=int, default=80, help="counted batches of a round, after two that are not")
    args = parser.parse_args()
    batch, results = 128, []
    for name, (size, channels) in SETS.items():
        rates: dict[str, list[float]] = {}
        epochs = ways(args.images, size, channels, batch)
        for epoch in range(args.rounds):
            for way, epoch_of in epochs.items():
                batches = iter(epoch_of(epoch))
                next(batches), next(batches)
                start = time.perf_counter()
                count = sum(len(labels) for _, labels in islice(batches, args.batches))
                rates.setdefault(way, []).append(count / (time.perf_counter() - start))
                del batches
        base = median(rates["torchvision, 0 workers"])
        for way, values in rates.items():
            results.append(
                {
                    "images": name,
                    "way": way,
                    "images/s": round(median(values)),
                    "slowest": round(min(values)),
                    "fastest": round(max(values)),
                    "ratio": round(median(values) / base, 2),
                }
            )
    header = list(results[0])
    text = "Images per second of the input path alone; ratio to torchvision without workers:\n\n" + table(
        header, [[f"{value:,}" if isinstance(value, int) else str(value) for value in r.values()] for r in results]
    )
    settings = {"batch": batch, "images": args.images, "batches": args.batches, "rounds": args.rounds, "warm-up": 2}
    write("input", settings, results, text)


if __name__ == "__main__":
    main()
