"""What opening a data set of image files comes to, wherever they lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images import EncodedImages

#: Names of the images to test on, in the order in which they are looked for: as folders, in names of shards, as splits.
HELD_OUT = ("val", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """Image files to train on and to test on.

    Attributes:
        class_names: in the order of the indices.
        folder: where a file of what was found out about the images belongs; None for nowhere.
    """

    train: EncodedImages
    test: EncodedImages
    class_names: tuple[str, ...]
    folder: Path | None


def class_names_of(
    where: str, train: np.ndarray, test: np.ndarray, names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The class names, as stated or else the numbers 0 .. the highest label to train on.

    Raises:
        ValueError: for labels, to train or to test on, that are not among them.
    """
    names = [str(i) for i in range(int(train.max()) + 1)] if names is None else names
    labels = np.unique(np.concatenate([train, test]))
    outside = [int(label) for label in labels if not 0 <= label < len(names)]
    if outside:
        raise ValueError(
            f"{where} has the labels {', '.join(map(str, outside))}, its classes are 0 to {len(names) - 1}: "
            f"state the names of all classes, or correct the labels"
        )
    return tuple(names)
