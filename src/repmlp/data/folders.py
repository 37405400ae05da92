"""``folder:PATH``: images in PATH/train and PATH/val, one sub-folder a class."""

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from .images import EncodedImages
from .splits import HELD_OUT, Splits


class FileImages(EncodedImages):
    """Image files in a folder.

    Args:
        folder: that holds all of them.
        samples: (path, class index) of each.
    """

    def __init__(self, folder: Path, samples: Sequence[tuple[str, int]]) -> None:
        prefix = os.path.join(folder, "")
        self.folder = folder
        # Arrays, not lists of a million strings: workers share their memory, and a copy takes no time.
        self.names = np.array([os.fsencode(path.removeprefix(prefix)) for path, _ in samples])
        self.labels = np.array([label for _, label in samples])

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return os.path.join(self.folder, os.fsdecode(bytes(self.names[i])))

    def encoded(self, i: int) -> tuple[bytes, int]:
        return Path(self.name(i)).read_bytes(), int(self.labels[i])

    def fingerprint(self, times: bool = True) -> str:
        digest = sha256()
        for i, name in enumerate(self.names.tolist()):
            digest.update(b"%s\0%s\0" % (name, file_state(self.name(i), times)))
        return digest.hexdigest()


def file_state(path: str | Path, times: bool) -> bytes:
    """Size of a file, and with ``times`` its time of change; nothing if it is not there."""
    try:
        state = os.stat(path)
    except OSError:
        return b""
    return b"%d %d" % (state.st_size, state.st_mtime_ns if times else 0)


def open_folder(path: Path) -> Splits:
    """
    Raises:
        FileNotFoundError: if there is no such folder, or no image in it or in one of its classes.
        ValueError: if the classes to train on are not those to test on.
    """
    held_out = next((path / part for part in HELD_OUT if (path / part).is_dir()), path / "val")
    splits = [_scan(path / "train"), _scan(held_out)]
    (train, classes), (test, test_classes) = splits
    if classes != test_classes:
        only = {path / "train": set(classes) - set(test_classes), held_out: set(test_classes) - set(classes)}
        where = "; ".join(f"{', '.join(sorted(names))} only in {folder}" for folder, names in only.items() if names)
        raise ValueError(f"there are other classes to train on than to test on: {where}")
    for folder, (samples, names) in zip((path / "train", held_out), splits, strict=True):
        filled = {label for _, label in samples}
        if empty := [name for label, name in enumerate(names) if label not in filled]:
            raise FileNotFoundError(
                f"no image in {', '.join(str(folder / name) for name in empty)}: add some, or remove the class "
                f"from train and {held_out.name} alike (image files are {', '.join(IMG_EXTENSIONS)})"
            )
    return Splits(FileImages(path, train), FileImages(path, test), tuple(classes), path)


def _scan(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(path, class index) of all images, and the class names."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: folder:PATH needs PATH/train and PATH/val (or PATH/test), "
            f"each with one sub-folder per class"
        )
    if not any(entry.is_dir() for entry in folder.iterdir()):
        raise FileNotFoundError(f"{folder} has no sub-folders: put the images of each class into one of its own")
    found = ImageFolder(str(folder), allow_empty=True)
    return found.samples, found.classes
