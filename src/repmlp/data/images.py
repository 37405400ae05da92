"""Data sets of image files: reading them, finding those that cannot be read, and the statistics of their pixels."""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .decoding import decode_image

#: Images that the mean and standard deviation are computed from, at most, and their longer side in pixels.
SAMPLE, SAMPLE_SIZE = 2000, 256


class LabeledImages(Dataset[tuple[Image.Image, int]], ABC):
    """A map-style data set of (PIL image, class index).

    Map-style, so that shuffling, splitting, resuming and dividing an epoch among processes are functions
    of indices.

    Attributes:
        labels: class index of each image (N).
    """

    labels: np.ndarray
    #: How many images were read, by all workers, and turned upright as their EXIF orientation says.
    num_turned = 0

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, i: int) -> tuple[Image.Image, int]: ...

    def relabeled(self, new: Sequence[int]) -> "LabeledImages":
        """The same images; class ``i`` is now class ``new[i]``."""
        other = copy.copy(self)
        other.labels = np.asarray(new)[self.labels]
        return other


class PixelImages(LabeledImages):
    """Images in memory: bytes (N, h, w) or (N, h, w, 3), and labels (N)."""

    def __init__(self, pixels: Tensor, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[i].numpy()), int(self.labels[i])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.pixels.shape[1], self.pixels.shape[2]


class EncodedImages(LabeledImages):
    """Image files, wherever they are, as images in RGB.

    It holds no open files: workers get a copy, forked or pickled.
    """

    #: What to do about an image that cannot be read; ends the message that names it.
    advice = "repair or remove it, or leave out what cannot be read with bad_images='skip'"

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels
        try:
            self._turned = torch.zeros(len(labels), dtype=torch.bool).share_memory_()
        except RuntimeError as error:
            raise OSError(f"there is no shared memory for the data set, make room in /dev/shm ({error})") from error

    @property
    def num_turned(self) -> int:  # type: ignore[override]
        return int(self._turned.sum())

    @abstractmethod
    def encoded(self, i: int) -> bytes:
        """The file of image ``i``, not decoded."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Where image ``i`` is, for a person to find it."""

    @abstractmethod
    def fingerprint(self, times: bool = True) -> str:
        """A digest of the names and sizes of the files; what was computed from them holds while it stays the same.

        Args:
            times: include their times of change, which a copy of the files may not keep.
        """

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        """Image and class index; ValueError, naming the image, if it cannot be read."""
        return self._decoded(i), int(self.labels[i])

    def thumbnail(self, i: int) -> Image.Image:
        """Image ``i``, shrunk to SAMPLE_SIZE pixels on its longer side if it is larger."""
        image = self._decoded(i, SAMPLE_SIZE)
        image.thumbnail((SAMPLE_SIZE, SAMPLE_SIZE))
        return image

    def is_readable(self, i: int) -> bool:
        """Whether image ``i`` can be decoded to its last byte.

        A missing file, or one without read permission, is not readable. Other errors of the disk or network
        are raised, since they say nothing about the image.
        """
        try:
            self._decoded(i, SAMPLE_SIZE)
        except (ValueError, FileNotFoundError, PermissionError):
            return False
        return True

    def _decoded(self, i: int, size: int | None = None) -> Image.Image:
        try:
            image = decode_image(self.encoded(i), self.name(i), size)
        except ValueError as error:
            raise ValueError(f"{error}: {self.advice}") from error
        if "turned" in image.info:
            self._turned[i] = True
        return image.convert("RGB")


class ChosenImages(EncodedImages):
    """Some of the images of a data set."""

    def __init__(self, data: EncodedImages, indices: Sequence[int]) -> None:
        self.data, self.indices, self.advice = data, np.asarray(indices), data.advice
        super().__init__(data.labels[self.indices])

    def encoded(self, i: int) -> bytes:
        return self.data.encoded(int(self.indices[i]))

    def name(self, i: int) -> str:
        return self.data.name(int(self.indices[i]))

    def fingerprint(self, times: bool = True) -> str:
        return sha256(json.dumps([self.data.fingerprint(times), self.indices.tolist()]).encode()).hexdigest()


def find_unreadable(data: EncodedImages, on_check: Callable[[int, int], None]) -> list[int]:
    """Indices of the images that cannot be read. All are decoded, in threads, JPEG at a fraction of its size.

    Args:
        on_check: called with the number of images checked so far, and of all.
    """
    found: list[int] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(data), 1024):
            block = range(start, min(start + 1024, len(data)))
            found += [i for i, readable in zip(block, pool.map(data.is_readable, block), strict=True) if not readable]
            on_check(block.stop, len(data))
    return found


def evenly_spread(n: int, most: int = SAMPLE) -> Sequence[int]:
    """At most ``most`` of 0 .. n-1, at even distances: of images that are sorted by class, a part of each class."""
    return range(n) if n <= most else [i * n // most for i in range(most)]


def channel_histogram(image: Image.Image) -> np.ndarray:
    """The share of an image's pixels at each of the 256 levels, per channel (C, 256)."""
    histogram = np.array(image.histogram(), dtype=np.float64).reshape(-1, 256)
    return histogram / histogram[0].sum()


def mean_std(histograms: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], per channel, to four decimals.

    ``mean = E[x]`` and ``std = sqrt(E[x^2] - mean^2)`` over the pixels of all images, each image with the
    same weight. A channel that does not vary gets a standard deviation of one gray level, to be divided by.

    Args:
        histograms: of each image, as :func:`channel_histogram` gives it (C, 256).
    """
    total, images = np.zeros(()), 0
    for histogram in histograms:
        total, images = total + histogram, images + 1
    share, level = total / images, np.arange(256) / 255
    mean = share @ level  # (C)
    std = np.sqrt(np.maximum(share @ level**2 - mean**2, 255.0**-2))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
