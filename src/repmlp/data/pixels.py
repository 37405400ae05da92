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

import numpy as np
import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_file
from .images import EncodedImages, PixelImages

#: By default, images are kept in memory if the pixels of all of them take no more bytes than this.
MEMORY_LIMIT = 2**30
#: The file of pixels beside the images.
PIXELS = "repmlp-pixels.safetensors"
#: Goes up when an image file comes to mean other pixels, so that files of older versions are written again.
FORMAT = 1


def load_pixels(
    parts: Sequence[EncodedImages], folder: Path | None, force: bool, on_check: Callable[[int, int], None]
) -> list[PixelImages] | None:
    """Decode data sets of image files into memory, or find their pixels in the file of an earlier run.

    The file is PIXELS in ``folder``, or one in the user's cache folder where that cannot be written. It is
    used as long as the names, sizes and times of change of the image files are the same.

    Args:
        folder: that holds the images; None to keep no file.
        force: keep the images in memory even if they take more bytes than MEMORY_LIMIT.
        on_check: called with the number of images decoded so far, and of all.

    Returns:
        A data set for each of ``parts``; None if the images are too large, or not all of one size.

    Raises:
        ValueError: for an image that cannot be read; with ``force``, if the images differ in size.
    """
    width, height = parts[0][0][0].size
    if not force and sum(map(len, parts)) * height * width * 3 > MEMORY_LIMIT:
        return None
    files = [folder / PIXELS, _user_file(folder)] if folder else []
    state = [FORMAT, PIL.__version__, *(part.fingerprint() for part in parts)] if files else []
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    found = next((found for file in files if (found := _read(file, key))), None)
    if found is None:
        found = _decode(parts, (width, height), on_check)
        any(_write(file, key, found) for file in files)  # the first that can be written
    tensors, difference = found
    if difference and force:
        raise ValueError(f"images of different sizes cannot be kept in memory: {difference}; use in_memory='auto'")
    if difference:
        return None
    return [PixelImages(pixels, part.labels) for pixels, part in zip(tensors, parts, strict=True)]


#: The pixels of each part (N, h, w, 3), or how the sizes of two images differ.
Found = tuple[list[Tensor], str]


def _decode(parts: Sequence[EncodedImages], size: tuple[int, int], on_check: Callable[[int, int], None]) -> Found:
    """Decode all images; stop at the first that is not of ``size`` (width, height)."""
    width, height = size
    tensors = [torch.empty(len(part), height, width, 3, dtype=torch.uint8) for part in parts]
    total, done = sum(map(len, parts)), 0
    with ThreadPoolExecutor() as pool:
        for part, pixels in zip(parts, tensors, strict=True):
            for start in range(0, len(part), 1024):
                block = range(start, min(start + 1024, len(part)))
                for i, (image, _) in zip(block, pool.map(part.__getitem__, block), strict=True):
                    if image.size != size:
                        first = f"{parts[0].name(0)} is {width}x{height}"
                        return [], f"{first}, {part.name(i)} {image.width}x{image.height}"
                    pixels[i] = torch.from_numpy(np.array(image))
                done += len(block)
                on_check(done, total)
    return tensors, ""


def _user_file(folder: Path) -> Path:
    """A file in the user's cache folder, another for each folder of images."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return cache / "repmlp" / f"pixels-{place}.safetensors"


def _read(file: Path, key: str) -> Found | None:
    """What a file holds, mapped into memory; None if there is none, a damaged one or one of other images."""
    if not file.is_file():  # a named pipe would be waited for
        return None
    with suppress(OSError, SafetensorError), safe_open(file, "pt") as stored:
        about = stored.metadata() or {}
        if about.get("key") == key:
            return [stored.get_tensor(name) for name in sorted(stored.keys())], about["difference"]
    return None


def _write(file: Path, key: str, found: Found) -> bool:
    """Write a file as a whole; False, with nothing left behind, if it cannot be written."""
    tensors, difference = found
    try:
        with atomic_file(file) as partial:
            named = {str(i): pixels for i, pixels in enumerate(tensors)}
            save_file(named, partial, {"key": key, "difference": difference})
            partial.chmod(file.parent.stat().st_mode & 0o666)  # whoever may read the images may read their pixels
    except OSError:
        return False
    return True
