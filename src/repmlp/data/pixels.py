"""Image files of one small size, decoded once and kept as one tensor of bytes.

Decoding a JPEG of 32x32 pixels takes longer than a training step spends on it. So the pixels of such a
data set are kept in memory, and in one file that the next run maps into its memory instead of decoding.

N images, h,w their size.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from .images import EncodedImages

#: By default, images are kept in memory if the pixels of all of them take no more bytes than this.
MEMORY_LIMIT = 2**30
#: The file of pixels beside the images.
PIXELS = "repmlp-pixels.safetensors"
#: Goes up when an image file comes to mean other pixels, so that files of older versions are written again.
FORMAT = 1


class PixelImages(Dataset[tuple[Image.Image, int]]):
    """A data set of PIL images whose pixels are in memory: bytes (N, h, w) or (N, h, w, 3), and labels (N)."""

    def __init__(self, pixels: Tensor, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[i].numpy()), int(self.labels[i])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.pixels.shape[1], self.pixels.shape[2]


class _SizesDiffer(ValueError):
    """The images cannot be one tensor."""


def load_pixels(
    parts: Sequence[tuple[EncodedImages, Sequence[int]]],
    folder: Path | None,
    force: bool,
    on_check: Callable[[int, int], None],
) -> list[PixelImages] | None:
    """Decode data sets of image files into memory, or find their pixels in the file of an earlier run.

    The file is PIXELS in ``folder``, or one in the user's cache folder where that cannot be written. It is
    used as long as the names, sizes and times of change of the image files are the same.

    Args:
        parts: data sets, and the indices of those of their images that can be read.
        folder: that holds the images; None to keep no file.
        force: keep the images in memory even if they take more bytes than MEMORY_LIMIT.
        on_check: called with the number of images decoded so far, and of all.

    Returns:
        A data set for each of ``parts``; None if the images are too large, or not all of one size.

    Raises:
        ValueError: for an image that cannot be read; with ``force``, if the images differ in size.
    """
    data, indices = parts[0]
    width, height = data[indices[0]][0].size
    if not force and sum(len(indices) for _, indices in parts) * height * width * 3 > MEMORY_LIMIT:
        return None
    files = [folder / PIXELS, _user_file(folder)] if folder else []
    key = _key(parts) if files else ""
    found = next((found for file in files if (found := _read(file, key))), None)
    if found is None:
        found = _decode(parts, (width, height), on_check)
        any(_write(file, key, found) for file in files)  # the first that can be written
    pixels, difference = found
    if difference and force:
        raise ValueError(f"images of different sizes cannot be kept in memory: {difference}; use in_memory='auto'")
    if difference:
        return None
    labels = [data.labels[np.asarray(indices)] for data, indices in parts]
    return [PixelImages(*of_part) for of_part in zip(pixels, labels, strict=True)]


#: The pixels of each part, or how the sizes of two images differ.
Found = tuple[list[Tensor], str]


def _decode(
    parts: Sequence[tuple[EncodedImages, Sequence[int]]], size: tuple[int, int], on_check: Callable[[int, int], None]
) -> Found:
    """Decode all images; stop at the first that is not of ``size`` (width, height)."""
    width, height = size
    total, done = sum(len(indices) for _, indices in parts), 0
    tensors = []
    with ThreadPoolExecutor() as pool:
        for data, indices in parts:
            pixels = torch.empty(len(indices), height, width, 3, dtype=torch.uint8)
            for start in range(0, len(indices), 1024):
                block = indices[start : start + 1024]
                for place, i, (image, _) in zip(
                    range(start, start + len(block)), block, pool.map(data.__getitem__, block), strict=True
                ):
                    if image.size != size:
                        shapes = [f"{width}x{height}", f"{image.width}x{image.height}"]
                        return [], f"{parts[0][0].name(parts[0][1][0])} is {shapes[0]}, {data.name(i)} {shapes[1]}"
                    pixels[place] = torch.from_numpy(np.array(image))
                done += len(block)
                on_check(done, total)
            tensors.append(pixels)
    return tensors, ""


def _key(parts: Sequence[tuple[EncodedImages, Sequence[int]]]) -> str:
    """Changes when the pixels may have: another image, another version of its decoder or of this module."""
    state = [FORMAT, PIL.__version__]
    for data, indices in parts:
        left_out = sorted(set(range(len(data))) - set(indices)) if len(indices) < len(data) else []
        state += [data.fingerprint(times=True), left_out]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _user_file(folder: Path) -> Path:
    """A file in the user's cache folder, another for each folder of images."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return cache / "repmlp" / f"pixels-{place}.safetensors"


def _read(file: Path, key: str) -> Found | None:
    """What a file holds, mapped into memory; None if there is none, a damaged one or one of other images."""
    with suppress(OSError, SafetensorError), safe_open(file, "pt") as stored:
        about = stored.metadata() or {}
        if about.get("key") == key:
            return [stored.get_tensor(name) for name in sorted(stored.keys())], about["difference"]
    return None


def _write(file: Path, key: str, found: Found) -> bool:
    """Write a file as a whole; False, with nothing left behind, if it cannot be written."""
    pixels, difference = found
    partial = file.with_name(f"{file.name}.{uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {str(number): tensor for number, tensor in enumerate(pixels)}
        save_file(tensors, partial, {"key": key, "difference": difference})
        partial.chmod(file.parent.stat().st_mode & 0o666)  # whoever may read the images may read their pixels
        partial.replace(file)
    except (OSError, SafetensorError):
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        return False
    return True
