"""Data sets by name, and the transforms between an image file and a network.

A data set gives PIL images and class indices; ``ImageData`` says what a network must know of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

#: Per-channel mean and standard deviation of the training images, in [0, 1]: published values of the sets that
#: torchvision knows, and those of the digits as this module reads them.
NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3054,), (0.3760,)),
    "torch/mnist": ((0.1307,), (0.3081,)),
    "torch/fashion_mnist": ((0.2860,), (0.3530,)),
    "torch/cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "torch/cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
FOLDER = "folder:"


@dataclass(frozen=True)
class ImageData:
    """A data set, split as its makers did: images to train on, and images to test on at the end."""

    train: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def in_chans(self) -> int:
        return len(self.mean)


def load_data(name: str, root: str | Path | None = None, download: bool = False) -> ImageData:
    """Open a data set by name.

    Args:
        name: ``digits`` (scikit-learn's 1797 handwritten digits of 8x8, on board, no download), ``torch/...``
            (torchvision's), or ``folder:PATH`` (one sub-folder a class, in PATH/train and PATH/val or PATH/test).
        root: folder that holds the data, for ``torch/...``.
        download: let torchvision fetch it into ``root``.

    Raises:
        ValueError: for an unknown name; the message says which exist.
        FileNotFoundError: if the data is not there; the message says how to get it.
    """
    if name == "digits":
        return _digits()
    if name.startswith(FOLDER):
        return _image_folder(Path(name.removeprefix(FOLDER)))
    if name in NORMALIZATION:
        return _torchvision(name, Path(root) if root else Path("data"), download)
    raise ValueError(f"unknown data set {name!r}: there are {', '.join(NORMALIZATION)} and folder:PATH")


class _Images(Dataset):
    """Images (N, h, w) of bytes and labels (N), as a data set of PIL images."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[i]), int(self.labels[i])


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise FileNotFoundError("the digits come with scikit-learn: pip install 'repmlp[demo]'") from error
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)  # 0..16 -> 0..255
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    return ImageData(
        train=_Images(images[train], digits.target[train]),
        test=_Images(images[test], digits.target[test]),
        class_names=tuple(str(name) for name in digits.target_names),
        mean=NORMALIZATION["digits"][0],
        std=NORMALIZATION["digits"][1],
    )


def _torchvision(name: str, root: Path, download: bool) -> ImageData:
    if download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        train, test = (create_dataset(name, str(root), split, download=download) for split in ("train", "validation"))
    except (RuntimeError, AssertionError, OSError) as error:
        raise FileNotFoundError(
            f"no {name} in {root}: point --data_root at the folder that holds it, or pass --download ({error})"
        ) from error
    mean, std = NORMALIZATION[name]
    return ImageData(train, test, tuple(train.classes), mean, std)


def _image_folder(path: Path) -> ImageData:
    held_out = next((path / part for part in ("val", "validation", "test") if (path / part).is_dir()), path / "val")
    for part in (path / "train", held_out):
        if not part.is_dir():
            raise FileNotFoundError(
                f"there is no folder {part}: folder:PATH needs PATH/train and PATH/val or PATH/test"
            )
    train, test = ImageFolder(str(path / "train")), ImageFolder(str(held_out))  # an empty class: FileNotFoundError
    if train.classes != test.classes:
        differ = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{path} has other classes to train on than to test on: {', '.join(differ)}")
    return ImageData(train, test, tuple(train.classes), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class Transformed(Dataset):
    """A data set with a transform on its images, or on a choice of them."""

    def __init__(self, data: Any, transform: Callable[[Image.Image], Tensor], indices: Sequence[int] | None = None):
        self.data, self.transform = data, transform
        self.indices = range(len(data)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image, label = self.data[self.indices[i]]
        return self.transform(image), label


def hold_out(data: Any, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a random ``1 - fraction`` and of the ``fraction`` that is held out from it."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = round(len(order) * fraction)
    return sorted(order[held_out:]), sorted(order[:held_out])


def train_transform(data_config: dict[str, Any], augment: str, padding: int = 4, hflip: float = 0.5) -> Callable:
    """PIL image -> (C, H, W), randomly augmented.

    Args:
        data_config: timm's, with input_size, mean, std, interpolation.
        augment: "none", "pad-crop" (v1, section 4.1: zero-pad, crop at random) or "resized-crop" (for photos).
        padding: pixels on each side for pad-crop.
        hflip: probability of a horizontal flip.
    """
    if augment == "none":
        return eval_transform(data_config)
    size = data_config["input_size"]
    mode = _Mode(size[0])
    if augment == "resized-crop":
        keys = ("mean", "std", "interpolation")
        args = {key: data_config[key] for key in keys}
        return transforms.Compose(
            [mode, create_transform(size, is_training=True, hflip=hflip, color_jitter=0.0, **args)]
        )
    resize = transforms.Resize(size[1:], transforms.InterpolationMode(data_config["interpolation"]))
    return transforms.Compose(
        [
            mode,
            resize,
            transforms.RandomCrop(size[1:], padding),
            transforms.RandomHorizontalFlip(hflip),
            transforms.ToTensor(),
            transforms.Normalize(data_config["mean"], data_config["std"]),
        ]
    )


def eval_transform(data_config: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """PIL image -> (C, H, W), as timm prepares images for evaluation with the same ``data_config``."""
    keys = ("mean", "std", "interpolation", "crop_pct")
    args = {key: data_config[key] for key in keys}
    return transforms.Compose(
        [_Mode(data_config["input_size"][0]), create_transform(data_config["input_size"], **args)]
    )


class _Mode:
    """Gray for one channel, RGB for three, whatever the file holds."""

    def __init__(self, channels: int) -> None:
        self.mode = "L" if channels == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert(self.mode)


def open_image(path: str | Path) -> Image.Image:
    """Read an image file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not an image, or a broken one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
