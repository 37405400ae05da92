"""Data sets of image files: reading them, finding those that cannot be read, and the statistics of their pixels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

#: Images that the mean and standard deviation are computed from, at most, and their longer side in pixels.
SAMPLE, SAMPLE_SIZE = 2000, 256


class EncodedImages(Dataset[tuple[Image.Image, int]], ABC):
    """A map-style data set of image files, wherever they lie: (PIL image in RGB, class index).

    Map-style, so that shuffling, holding out, going on where a run stopped and dividing an epoch among
    processes are functions of indices. It holds no open files: workers get a copy, forked or pickled.
    """

    #: What to do about an image that cannot be read; ends the message that names it.
    advice = "repair or remove it, or leave out what cannot be read with --bad_images skip"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encoded(self, i: int) -> tuple[bytes, int]:
        """The file of image ``i``, undecoded, and the index of its class."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Where image ``i`` is, for a person to find it."""

    #: Class index of each image (N).
    labels: np.ndarray

    @abstractmethod
    def fingerprint(self, times: bool = True) -> str:
        """A digest of the names and sizes of the files; what was computed from them holds while it stays the same.

        Args:
            times: include their times of change, which a copy of the files may not keep.
        """

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        """Image and class index; ValueError, naming the image, if it cannot be read."""
        return self._decoded(i)

    def small(self, i: int) -> Image.Image:
        """Image ``i``, shrunk to SAMPLE_SIZE pixels on its longer side if it is larger."""
        image, _ = self._decoded(i, SAMPLE_SIZE)
        image.thumbnail((SAMPLE_SIZE, SAMPLE_SIZE))
        return image

    def is_readable(self, i: int) -> bool:
        """Whether image ``i`` can be decoded to its last byte.

        A file that is gone, or that one may not read, is not readable; other errors of the disk or
        network are raised, since they tell nothing about the image.
        """
        try:
            self._decoded(i, SAMPLE_SIZE)
        except (ValueError, FileNotFoundError, PermissionError):
            return False
        return True

    def _decoded(self, i: int, size: int | None = None) -> tuple[Image.Image, int]:
        encoded, label = self.encoded(i)
        try:
            return decode_image(encoded, self.name(i), size).convert("RGB"), label
        except ValueError as error:
            raise ValueError(f"{error}: {self.advice}") from error


def decode_image(encoded: bytes, name: str, size: int | None = None) -> Image.Image:
    """Decode an image file.

    Args:
        encoded: its bytes.
        name: for messages.
        size: if given, an image with sides of no less than this will do, which is faster for JPEG: its
            format holds smaller ones. The bytes are read to the last, whatever the size.

    Raises:
        ValueError: if they are no image, or not all of one.
    """
    try:
        with Image.open(BytesIO(encoded)) as image:
            if size is not None:
                image.draft("RGB", (size, size))
            image.load()
            return image.copy()
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise ValueError(f"{name} is not an image that can be read ({error})") from error


def find_unreadable(data: EncodedImages, on_check: Callable[[int, int], None]) -> list[int]:
    """Indices of the images that cannot be read. Reads all of them, in threads: decoding leaves Python's lock.

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


def levels(image: Image.Image) -> np.ndarray:
    """How often each of the 256 levels comes in each channel of an image, as a part of its pixels (C, 256)."""
    histogram = np.array(image.histogram(), dtype=np.float64).reshape(-1, 256)
    return histogram / histogram[0].sum()


def mean_std(shares: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], per channel, to four decimals.

    ``mean = E[x]`` and ``std = sqrt(E[x^2] - mean^2)`` over the pixels of all images, each image with the
    same weight. A channel that does not vary gets a standard deviation of one gray level, to be divided by.

    Args:
        shares: of each image, what :func:`levels` gives (C, 256).
    """
    total, images = np.zeros(()), 0
    for share in shares:
        total, images = total + share, images + 1
    share, level = total / images, np.arange(256) / 255
    mean = share @ level  # (C)
    std = np.sqrt(np.maximum(share @ level**2 - mean**2, 255.0**-2))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
