"""Open data sets by name: PIL images, class indices, class names and statistics."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.data import create_dataset

from ..extras import import_optional
from ..messages import shorten
from .cache import get_or_compute
from .folders import FileImages, open_folder
from .hub import open_hub
from .images import (
    ChosenImages,
    EncodedImages,
    LabeledImages,
    PixelImages,
    channel_histogram,
    evenly_spread,
    find_unreadable,
    mean_std,
)
from .pixels import load_pixels
from .shards import open_shards
from .splits import Splits, draw_train_val, split_train_val

#: Per-channel mean and standard deviation of the training images, in [0, 1]: published values for torchvision's data
#: sets, and those of the digits as this module reads them.
NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3054,), (0.3760,)),
    "torch/mnist": ((0.1307,), (0.3081,)),
    "torch/fashion_mnist": ((0.2860,), (0.3530,)),
    "torch/cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "torch/cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
#: torchvision's data sets that fit in memory, and those that consist of image files.
SMALL = ("torch/cifar10", "torch/cifar100", "torch/mnist", "torch/fashion_mnist", "torch/kmnist", "torch/qmnist")
LARGE = ("torch/imagenet", "torch/places365")
#: What opens the image files of a name, by its prefix: from the rest of the name, ``root`` and ``download``.
SOURCES: dict[str, Callable[[str, str | Path | None, bool], Splits]] = {
    "folder:": lambda path, root, download: open_folder(Path(path).expanduser()),
    "wds/": lambda path, root, download: open_shards(Path(path).expanduser()),
    "hfds/": open_hub,
}
#: The prefixes that a path always follows; the others may be followed by another kind of name.
PATHS = ("folder:", "wds/")
#: File next to the images with their mean and standard deviation, and the list of unreadable ones.
CACHE = "repmlp-cache.json"
#: A data set and the indices of the images that are chosen from it.
Chosen = tuple[LabeledImages, Sequence[int]]


@dataclass(frozen=True)
class ImageData:
    """A data set with its published splits.

    Attributes:
        train, test: map-style data sets of (PIL image, class index), for training and for the final test.
        class_names: in the order of the class indices.
        mean, std: of the training images' pixels in [0, 1], one value per channel.
        image_size: (height, width) if all images are small, of this size and kept in memory.
        skipped: names of the unreadable images, which are left out.
        val: the split for choosing the best epoch; None if the data set has only two splits.
        ignored: anything else that was found but not used, with the reason, one sentence each.
        digests: of the names and sizes of the image files, by split; empty for data sets from torchvision or
            scikit-learn.
    """

    train: LabeledImages
    test: LabeledImages
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None
    skipped: tuple[str, ...] = ()
    val: LabeledImages | None = None
    ignored: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_chans(self) -> int:
        return len(self.mean)

    def train_and_val(
        self,
        fraction: float,
        seed: int,
        draw: Literal["by-class", "at-random"] = "by-class",
        train_images: int | None = None,
    ) -> tuple[Sequence[int], Chosen | None]:
        """Choose the images for training and for validation.

        Args:
            fraction: share of the training images for validation if there is no validation split; 0 for none.
            draw: "at-random" draws them regardless of class, as earlier versions did.
            train_images: number of images to train on, drawn by class from the remaining ones; by default all.

        Returns:
            Indices in ``train``; and a data set with indices in it, or None without validation.

        Raises:
            ValueError: if ``draw`` is "at-random" although there is a validation split, or ``train_images`` exceeds
                the number of images.
        """
        train: Sequence[int]
        val: Chosen | None
        if self.val is not None and draw == "at-random":
            raise ValueError(
                "the data set has a validation split, so val_draw='at-random' has nothing to draw; a run of an earlier "
                "version, which tested on that split, cannot be resumed: start it again"
            )
        if self.val is not None:
            train, val = range(len(self.train)), (self.val, range(len(self.val))) if fraction else None
        else:
            if draw == "at-random":
                train, held_out = draw_train_val(len(self.train), fraction, seed)
            else:
                train, held_out = split_train_val(self.train.labels, fraction, seed, self.class_names)
            val = (self.train, held_out) if held_out else None
        if train_images is None:
            return train, val
        if not 0 < train_images <= len(train):
            raise ValueError(f"train_images={train_images} of {len(train)} images to train on: use 1 to {len(train)}")
        if train_images < len(train):
            _, chosen = split_train_val(self.train.labels[train], train_images / len(train), seed)
            train = [train[i] for i in chosen]
        return train, val


def load_data(
    name: str,
    root: str | Path | None = None,
    download: bool = False,
    bad_images: Literal["stop", "skip"] = "stop",
    on_check: Callable[[int, int], None] = lambda checked, images: None,
    in_memory: Literal["auto", "yes", "no"] = "auto",
) -> ImageData:
    """Open a data set by name.

    Small data sets without published mean and standard deviation get them from all training images. Others get them
    from at most 2,000 images, evenly spread over the set in its order (by class, for a folder), each shrunk to 256
    pixels on its longer side, equally weighted, to four decimals. The values are kept in CACHE next to the images, if
    it can be written, until an image file changes.

    By default an unreadable image stops the run when it is reached, possibly after hours. With ``bad_images="skip"``
    all images are read once at the start, and unreadable ones are left out with a warning that counts and names them.
    An index then means the same image in every process and run, and no image is counted twice. This takes part of the
    time of an epoch. The result is kept in CACHE too; if the set has not changed, only the skipped images are read
    again.

    Image files of one size are decoded once and kept in memory as a tensor of bytes, if that takes no more than
    MEMORY_LIMIT; ``repmlp.data.pixels.load_pixels`` has the details.

    Args:
        name: ``digits`` (scikit-learn's 1797 handwritten 8x8 digits, included, no download), ``torch/...``
            (torchvision's, by timm's names), ``folder:PATH`` (one subfolder per class, in PATH/train and PATH/val,
            PATH/test or both), ``wds/PATH`` (a folder of WebDataset shards) or ``hfds/NAME`` (from the Hugging Face
            Hub, or a folder in one of its formats).
        root: folder of the data, for ``torch/...`` and ``hfds/...``.
        download: let torchvision, or Hugging Face's datasets, download it into ``root``.
        bad_images: "stop" at an unreadable image, or "skip" it.
        on_check: called with the number of images checked or decoded so far, and the total.
        in_memory: "yes" keeps images of one size in memory however many there are, "no" reads each when it is used.

    Raises:
        ValueError: if the name is unknown (the message lists the known ones), the data is malformed, or an image is
            unreadable (here, or when it is reached).
        FileNotFoundError: if the data is not found; the message says how to get it.
    """
    if bad_images not in ("stop", "skip"):
        raise ValueError(f"bad_images is {bad_images!r}: use stop or skip")
    if in_memory not in ("auto", "yes", "no"):
        raise ValueError(f"in_memory is {in_memory!r}: use auto, yes or no")
    if name == "digits":
        return _digits()
    if name in SMALL:
        return _in_memory(name, *_torchvision(name, Path(root or "data"), download))
    if name in LARGE:
        splits = _large(name, Path(root or "data"), download)
    elif prefix := next((prefix for prefix in SOURCES if name.startswith(prefix)), None):
        splits = SOURCES[prefix](name.removeprefix(prefix), root, download)
    else:
        known = ("digits", *SMALL, *LARGE, *(f"{prefix}..." for prefix in SOURCES))
        raise ValueError(f"unknown data set {name!r}: there are {', '.join(known)}")
    return _on_disk(splits, bad_images == "skip", in_memory, on_check)


def _digits() -> ImageData:
    digits = import_optional("sklearn.datasets", "demo").load_digits()
    train_test_split = import_optional("sklearn.model_selection", "demo").train_test_split
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))  # 0..16 -> 0..255
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    return ImageData(
        train=PixelImages(images[train], digits.target[train]),
        test=PixelImages(images[test], digits.target[test]),
        class_names=tuple(str(name) for name in digits.target_names),
        mean=NORMALIZATION["digits"][0],
        std=NORMALIZATION["digits"][1],
        image_size=(8, 8),
    )


#: How to get a data set, if torchvision cannot download it or there is another way.
_HOW_TO_GET = {
    "torch/imagenet": "put the archives from image-net.org there, torchvision unpacks them",
    "torch/fashion_mnist": "pass download=True, or install Debian's package dataset-fashion-mnist and unpack the four "
    "*-ubyte.gz in /usr/share/datasets/fashion-mnist into {root}/FashionMNIST/raw",
}


def _torchvision(name: str, folder: Path, download: bool) -> tuple[Any, Any]:
    if download:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        train, test = (create_dataset(name, str(folder), split, download=download) for split in ("train", "validation"))
    except (RuntimeError, AssertionError, OSError) as error:
        if download and name not in _HOW_TO_GET:
            raise FileNotFoundError(f"{name} could not be downloaded to {folder}: {error}") from error
        how = _HOW_TO_GET.get(name, "pass download=True").format(root=folder)
        raise FileNotFoundError(
            f"no {name} in {folder}: point data_root at the folder that holds it, or {how} ({error})"
        ) from error
    return train, test


def _in_memory(name: str, *splits: Any) -> ImageData:
    train, test = (PixelImages(torch.as_tensor(split.data), _targets(split)) for split in splits)
    images = (train[i][0] for i in range(len(train)))
    mean, std = NORMALIZATION.get(name) or mean_std(map(channel_histogram, images))
    return ImageData(train, test, tuple(splits[0].classes), mean, std, image_size=train.image_size)


def _targets(split: Any) -> np.ndarray:
    """Class indices (N)."""
    targets = np.asarray(split.targets)
    return targets[:, 0] if targets.ndim == 2 else targets  # QMNIST has more columns


def _large(name: str, folder: Path, download: bool) -> Splits:
    train, test = _torchvision(name, folder, download)
    names = tuple(", ".join(words) if isinstance(words, tuple) else words for words in train.classes)
    return Splits(FileImages(folder, train.imgs), None, FileImages(folder, test.imgs), names, folder)


def _on_disk(splits: Splits, check: bool, in_memory: str, on_check: Callable[[int, int], None]) -> ImageData:
    """Drop unreadable images, compute the mean and standard deviation, and keep small images in memory."""
    cache = splits.folder / CACHE if splits.folder else None
    data = {kind: part for kind in ("train", "val", "test") if (part := getattr(splits, kind))}
    unreadable = {kind: _unreadable(part, kind, cache, on_check) if check else [] for kind, part in data.items()}
    skipped = [data[kind].name(i) for kind, indices in unreadable.items() for i in indices]
    if skipped:
        images = sum(len(part) for part in data.values())
        shown = shorten(skipped)
        warnings.warn(f"{len(skipped)} of {images} images cannot be read and are left out: {shown}", stacklevel=3)
    if splits.ignored:
        warnings.warn(f"ignored in the data set: {'; '.join(splits.ignored)}", stacklevel=3)
    mean, std = _statistics(splits.train, unreadable["train"], cache)
    parts = [
        ChosenImages(part, np.delete(np.arange(len(part)), unreadable[kind]).tolist()) if unreadable[kind] else part
        for kind, part in data.items()
    ]
    pixels = None if in_memory == "no" else load_pixels(parts, splits.folder, in_memory == "yes", on_check)
    kept = dict(zip(data, pixels or parts, strict=True))
    return ImageData(
        train=kept["train"],
        val=kept.get("val"),
        test=kept["test"],
        class_names=splits.class_names,
        mean=mean,
        std=std,
        image_size=pixels[0].image_size if pixels else None,
        skipped=tuple(skipped),
        ignored=splits.ignored,
        digests={kind: part.fingerprint(times=False) for kind, part in data.items()},
    )


def _unreadable(data: EncodedImages, split: str, cache: Path | None, on_check: Callable[[int, int], None]) -> list[int]:
    """Indices of the unreadable images; those found earlier are read again, in case they were repaired."""
    key = f"unreadable in {split}"
    found = get_or_compute(cache, {key: data.fingerprint()}, lambda key: find_unreadable(data, on_check))[key]
    found = [i for i in found if not data.is_readable(i)]
    if len(found) == len(data):
        raise ValueError(f"none of the {len(data)} images to {split} on can be read, {data.name(0)} for example")
    again = f", or remove {cache} to have all images checked again" if cache else ""
    data.advice = f"it could be read when all images were checked; repair or remove it{again}"
    return found


def _statistics(
    data: EncodedImages, unreadable: Sequence[int], cache: Path | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    sample = evenly_spread(len(data))
    left_out = sorted(set(sample) & set(unreadable))

    def compute(key: str) -> object:
        with ThreadPoolExecutor() as pool:
            thumbnails = pool.map(data.thumbnail, sorted(set(sample) - set(left_out)))
            return mean_std(map(channel_histogram, thumbnails))

    key = "mean and std of train"
    mean, std = get_or_compute(cache, {key: [data.fingerprint(), left_out]}, compute)[key]
    return tuple(mean), tuple(std)
