"""The splits of a data set of image files, their class names, and how validation images are drawn from training."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..messages import count, shorten
from .images import EncodedImages

#: Names of the validation split, and of the test split, in the order of preference: of folders, in the names of
#: shards, of splits on the Hub. Where there is only one of all these, it is the test split.
VAL_SPLIT_NAMES, TEST_SPLIT_NAMES = ("val", "validation"), ("test",)
#: Classes of a data set, at most.
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class Splits:
    """The splits of a data set of image files.

    Attributes:
        val: to choose the best epoch by; None if the data set has only two splits.
        class_names: in the order of the indices.
        folder: where to keep what is computed from the images; None for nowhere.
        ignored: what was found and left out, and why, each a sentence.
    """

    train: EncodedImages
    val: EncodedImages | None
    test: EncodedImages
    class_names: tuple[str, ...]
    folder: Path | None
    ignored: tuple[str, ...] = ()


def choose_splits(names: Sequence[str], where: str) -> dict[str, str]:
    """Which of a data set's splits are ``train``, ``val`` (there may be none) and ``test``.

    Raises:
        ValueError: if there is no training or no test split.
    """
    val = next((name for name in VAL_SPLIT_NAMES if name in names), None)
    test = next((name for name in TEST_SPLIT_NAMES if name in names), None)
    if "train" not in names or not (val or test):
        wanted = " or ".join((*VAL_SPLIT_NAMES, *TEST_SPLIT_NAMES))
        raise ValueError(f"{where} has the splits {', '.join(names) or 'none'}: it needs train, and {wanted}")
    chosen = {"train": "train", "val": val, "test": test} if val and test else {"train": "train", "test": val or test}
    return {kind: name for kind, name in chosen.items() if name}


def class_names_of(where: str, labels: Sequence[np.ndarray], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The given class names, or the numbers 0 .. the highest label to train on.

    Args:
        labels: of each split, those to train on first.

    Raises:
        ValueError: for labels outside of these classes, and for more than MAX_CLASSES of them.
    """
    highest = int(labels[0].max(initial=0))
    if names is None and highest >= MAX_CLASSES:
        raise ValueError(f"{where} has the label {highest}: labels are class indices, less than {MAX_CLASSES}")
    names = [str(i) for i in range(highest + 1)] if names is None else names
    outside = [int(label) for label in np.unique(np.concatenate(labels)) if not 0 <= label < len(names)]
    if outside:
        raise ValueError(
            f"{where} has the labels {shorten(outside)}, its classes are 0 to {len(names) - 1}: "
            f"state the names of all classes, or correct the labels"
        )
    return tuple(names)


def split_train_val(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Draw a ``fraction`` of the training images to validate on, in equal parts of each class.

    A class always keeps one image to train on, so one with a single image is not validated. The total is
    ``fraction`` of all images, rounded; where the parts of the classes are not whole numbers, those with
    the largest remainders get one image more.

    Args:
        labels: class index of each image (N).
        class_names: if given, a warning names the classes that have no validation image.

    Returns:
        Indices to train on, and to validate on, each in ascending order.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, in random order within a class
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    wanted = counts * fraction
    take = np.minimum(np.floor(wanted), counts - 1).astype(int)
    by_remainder = np.lexsort((generator.random(len(counts)), take - wanted))
    more = [c for c in by_remainder if take[c] < counts[c] - 1][: max(0, round(len(labels) * fraction) - take.sum())]
    take[more] += 1
    val = np.concatenate([order[start : start + n] for start, n in zip(starts, take, strict=True)])
    absent = np.setdiff1d(labels, labels[val])
    if len(class_names) and len(val) and len(absent):
        names = shorten([class_names[label] for label in absent])
        warnings.warn(
            f"too few images to validate on in {count(len(absent), 'class', 'classes')}, only trained on: {names}",
            stacklevel=2,
        )
    return np.setdiff1d(order, val).tolist(), np.sort(val).tolist()


def draw_train_val(images: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """As :func:`split_train_val`, whatever the classes: for runs that earlier versions started."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = round(images * fraction)
    return sorted(order[held_out:]), sorted(order[:held_out])
