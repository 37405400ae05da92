"""Data sets by name: PIL images and class indices, and what a network must know of them."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.data import create_dataset
from torch.utils.data import Dataset, Subset

from ..extras import import_optional
from .cache import remembered
from .folders import FileImages, open_folder
from .hub import open_hub
from .images import EncodedImages, evenly_spread, find_unreadable, levels, mean_std
from .pixels import PixelImages, load_pixels
from .shards import open_shards
from .splits import Splits

#: Per-channel mean and standard deviation of the training images, in [0, 1]: published values of the sets that
#: torchvision knows, and those of the digits as this module reads them.
NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3054,), (0.3760,)),
    "torch/mnist": ((0.1307,), (0.3081,)),
    "torch/fashion_mnist": ((0.2860,), (0.3530,)),
    "torch/cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "torch/cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
#: torchvision's that fit in memory; and those that are image files.
SMALL = ("torch/cifar10", "torch/cifar100", "torch/mnist", "torch/fashion_mnist", "torch/kmnist", "torch/qmnist")
LARGE = ("torch/imagenet", "torch/places365")
FOLDER, SHARDS, HUB = "folder:", "wds/", "hfds/"
#: Beside the images: their mean and standard deviation, and which cannot be read.
CACHE = "repmlp-cache.json"


@dataclass(frozen=True)
class ImageData:
    """A data set, split as its makers did: images to train on, and images to test on at the end.

    Attributes:
        train, test: map-style data sets of (PIL image, class index).
        class_names: in the order of the indices.
        mean, std: of the training images' pixels in [0, 1], per channel; their number is that of the channels.
        image_size: (height, width) if all images are small, of this size and kept in memory.
        skipped: images that cannot be read and were left out of ``train`` and ``test``, by name.
    """

    train: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None
    skipped: tuple[str, ...] = ()

    @property
    def in_chans(self) -> int:
        return len(self.mean)


def load_data(
    name: str,
    root: str | Path | None = None,
    download: bool = False,
    bad_images: Literal["stop", "skip"] = "stop",
    on_check: Callable[[int, int], None] = lambda checked, images: None,
    in_memory: Literal["auto", "yes", "no"] = "auto",
) -> ImageData:
    """Open a data set by name.

    Where the mean and standard deviation are not published they are computed: of small sets from all
    training images; of others from at most 2,000, evenly spread over the set in its order (by class,
    for a folder), each shrunk to 256 pixels on its longer side and with the same weight, to four
    decimals. These are kept in CACHE beside the images, if that can be written, until the names of the
    images (of shards: their sizes and times of change) are others.

    An image that cannot be read is found when it is reached, after hours perhaps, and stops the run.
    With ``bad_images="skip"`` all images are read once, before anything else, and those that cannot be
    read are left out, with a warning that counts and names them: so an index means the same image in
    every process and every run, images held out stay apart, and each of the others is counted exactly
    once. This takes a part of the time of an epoch. What was found is kept in CACHE too; of a set that
    has not changed, only the images left out are read again.

    Image files of one size are decoded once and kept in memory as a tensor of bytes, if that takes no
    more than MEMORY_LIMIT; :func:`repmlp.data.pixels.load_pixels` has the details.

    Args:
        name: ``digits`` (scikit-learn's 1797 handwritten digits of 8x8, on board, no download), ``torch/...``
            (torchvision's, by timm's names), ``folder:PATH`` (one sub-folder a class, in PATH/train and
            PATH/val or PATH/test), ``wds/PATH`` (a folder of WebDataset shards) or ``hfds/NAME`` (of the
            Hugging Face Hub, or a folder in one of its formats).
        root: folder that holds the data, for ``torch/...`` and ``hfds/...``.
        download: let torchvision, or Hugging Face's datasets, fetch it into ``root``.
        bad_images: what to do about an image that cannot be read.
        on_check: called with the number of images checked or decoded so far, and of all.
        in_memory: "yes" keeps images of one size in memory however many they are, "no" reads each when it is used.

    Raises:
        ValueError: for an unknown name; the message says which exist. For data that is not as it should
            be, and for an image that cannot be read: here, or where it is reached.
        FileNotFoundError: if the data is not there; the message says how to get it.
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
    elif name.startswith(FOLDER):
        splits = open_folder(Path(name.removeprefix(FOLDER)).expanduser())
    elif name.startswith(SHARDS):
        splits = open_shards(Path(name.removeprefix(SHARDS)).expanduser())
    elif name.startswith(HUB):
        splits = open_hub(name.removeprefix(HUB), root, download)
    else:
        known = ("digits", *SMALL, *LARGE, "folder:PATH", "wds/PATH", "hfds/NAME")
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


#: How to get a data set that is not there, where torchvision cannot fetch it or something else can.
_HOW_TO_GET = {
    "torch/imagenet": "put the archives from image-net.org there, torchvision unpacks them",
    "torch/fashion_mnist": "pass --download, or install Debian's package dataset-fashion-mnist and unpack the four "
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
        how = _HOW_TO_GET.get(name, "pass --download").format(root=folder)
        raise FileNotFoundError(
            f"no {name} in {folder}: point --data_root at the folder that holds it, or {how} ({error})"
        ) from error
    return train, test


def _in_memory(name: str, train: Any, test: Any) -> ImageData:
    height, width = train.data.shape[1:3]
    mean, std = NORMALIZATION.get(name) or mean_std(levels(train[i][0]) for i in range(len(train)))
    return ImageData(train, test, tuple(train.classes), mean, std, image_size=(int(height), int(width)))


def _large(name: str, folder: Path, download: bool) -> Splits:
    train, test = _torchvision(name, folder, download)
    names = tuple(", ".join(words) if isinstance(words, tuple) else words for words in train.classes)
    return Splits(FileImages(folder, train.imgs), FileImages(folder, test.imgs), names, folder)


def _on_disk(splits: Splits, check: bool, in_memory: str, on_check: Callable[[int, int], None]) -> ImageData:
    """Leave out what cannot be read, find the mean and standard deviation, and keep small images in memory."""
    cache = splits.folder / CACHE if splits.folder else None
    bad_train = _unreadable(splits.train, "train", cache, on_check) if check else []
    bad_test = _unreadable(splits.test, "test", cache, on_check) if check else []
    skipped = [splits.train.name(i) for i in bad_train] + [splits.test.name(i) for i in bad_test]
    if skipped:
        shown = ", ".join(skipped[:5]) + (f" and {len(skipped) - 5} more" if len(skipped) > 5 else "")
        images = len(splits.train) + len(splits.test)
        warnings.warn(f"{len(skipped)} of {images} images cannot be read and are left out: {shown}", stacklevel=3)
    mean, std = _statistics(splits.train, bad_train, cache)
    parts = [(splits.train, _others(splits.train, bad_train)), (splits.test, _others(splits.test, bad_test))]
    pixels = None if in_memory == "no" else load_pixels(parts, splits.folder, in_memory == "yes", on_check)
    read = [Subset(data, indices) if len(indices) < len(data) else data for data, indices in parts]
    train, test = pixels or read
    return ImageData(
        train=train,
        test=test,
        class_names=splits.class_names,
        mean=mean,
        std=std,
        image_size=pixels[0].image_size if pixels else None,
        skipped=tuple(skipped),
    )


def _unreadable(data: EncodedImages, split: str, cache: Path | None, on_check: Callable[[int, int], None]) -> list[int]:
    """Indices of the images that cannot be read; those remembered are read again, in case they were repaired."""
    key = f"unreadable in {split}"
    found = remembered(cache, {key: data.fingerprint()}, lambda key: find_unreadable(data, on_check))[key]
    found = [i for i in found if not data.is_readable(i)]
    if len(found) == len(data):
        raise ValueError(f"none of the {len(data)} images to {split} on can be read, {data.name(0)} for example")
    again = f", or remove {cache} to have all images checked again" if cache else ""
    data.advice = f"it could be read when all images were checked; repair or remove it{again}"
    return found


def _statistics(
    data: EncodedImages, unreadable: list[int], cache: Path | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    sample = evenly_spread(len(data))
    left_out = sorted(set(sample) & set(unreadable))

    def compute(key: str) -> Any:
        with ThreadPoolExecutor() as pool:
            return mean_std(pool.map(lambda i: levels(data.small(i)), sorted(set(sample) - set(left_out))))

    key = "mean and std of train"
    mean, std = remembered(cache, {key: [data.fingerprint(), left_out]}, compute)[key]
    return tuple(mean), tuple(std)


def _others(data: EncodedImages, indices: list[int]) -> Sequence[int]:
    """The indices of all images but these."""
    left_out = set(indices)
    return [i for i in range(len(data)) if i not in left_out] if indices else range(len(data))


def hold_out(data: Any, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a random ``1 - fraction`` and of the ``fraction`` that is held out from it."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = round(len(order) * fraction)
    return sorted(order[held_out:]), sorted(order[:held_out])
