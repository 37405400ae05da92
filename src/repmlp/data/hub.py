"""``hfds/NAME``: data sets from the Hugging Face Hub, or a local folder in one of its formats."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np

from ..extras import import_optional
from .decoding import read_file
from .images import EncodedImages
from .splits import Splits, choose_splits, class_names_of


class HubImages(EncodedImages):
    """A split of a data set, with a column of images that are not decoded."""

    def __init__(self, dataset: Any, column: str, source: str, labels: np.ndarray) -> None:
        super().__init__(labels)
        self.dataset, self.column, self.source = dataset, column, source

    def name(self, i: int) -> str:
        return f"image {i} of {self.source}"

    def encoded(self, i: int) -> bytes:
        image = self.dataset[int(i)][self.column]
        return read_file(image["path"]) if image["bytes"] is None else image["bytes"]

    def fingerprint(self, times: bool = True) -> str:
        """The names of the Arrow files, which include a hash of their sources."""
        return sha256("\0".join([*self._files(), str(len(self))]).encode()).hexdigest()

    def folder(self) -> Path | None:
        """The folder of the Arrow files; None if the data set is in memory."""
        return next((Path(file).parent for file in self._files()), None)

    def _files(self) -> list[str]:
        return [file["filename"] for file in self.dataset.cache_files]


def open_hub(name: str, root: str | Path | None, download: bool) -> Splits:
    """Open a data set, using its first column of images and its first of class labels (or a "label" of integers).

    Args:
        name: of a data set on the Hub, or path of a folder.
        root: the cache folder of Hugging Face's datasets; by default that library's own.
        download: if False, only data that is already in the cache is used, and no request is made.

    Raises:
        FileNotFoundError: if the data set is not found.
        ImportError: if Hugging Face's datasets is not installed.
        ValueError: if it lacks a split or a column, or its labels are not class indices.
    """
    datasets = import_optional("datasets", "hub")
    with _offline(datasets, not download):
        try:
            splits = datasets.load_dataset(name, cache_dir=None if root is None else str(root))
        except Exception as error:  # of the library's many kinds, for any name and any files
            how = "" if download else " pass download=True to get it from the Hub, or"
            raise FileNotFoundError(f"no data set {name}:{how} give the path of a folder ({error})") from error
    chosen = choose_splits(list(splits), name)
    image, label = _columns(name, splits["train"].features, datasets)
    data = {}
    for kind, split in chosen.items():
        encoded = splits[split].cast_column(image, datasets.Image(decode=False))
        data[kind] = HubImages(encoded, image, f"{name} ({split})", np.asarray(encoded[label]))
    stated = getattr(splits["train"].features[label], "names", None)
    names = class_names_of(name, [part.labels for part in data.values()], stated)
    ignored = tuple(f"the split {split}" for split in splits if split not in chosen.values())
    return Splits(data["train"], data.get("val"), data["test"], names, data["train"].folder(), ignored)


def _columns(name: str, features: Any, datasets: ModuleType) -> tuple[str, str]:
    """Names of the image and label columns."""
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if label is None and "int" in getattr(features.get("label"), "dtype", ""):
        label = "label"
    if image is None or label is None:
        kinds = ", ".join(f"{key} ({getattr(kind, 'dtype', kind)})" for key, kind in features.items())
        raise ValueError(f"{name} has the columns {kinds}: it needs one of images and one of class labels")
    return image, label


@contextmanager
def _offline(datasets: ModuleType, offline: bool) -> Iterator[None]:
    """Act as if HF_HUB_OFFLINE=1 were set, which both packages read only when they are imported."""
    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    with ExitStack() as stack:
        for place in places:
            stack.callback(setattr, place, "HF_HUB_OFFLINE", place.HF_HUB_OFFLINE)
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or offline
        yield
