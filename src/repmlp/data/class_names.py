"""The classes of a data set and those of a model: matched by name, or by index if asked to."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..messages import shorten
from .sets import ImageData


def match_labels(
    data: ImageData, names: Sequence[str] | None, labels: Literal["by-name", "by-index"] = "by-name"
) -> ImageData:
    """A data set with the classes of a model, in the model's order.

    Args:
        names: of the model's classes, in the order of its logits; None if they are not known, and then classes
            are matched by index.
        labels: "by-index" takes class ``i`` of the data set as class ``i`` of the model, whatever their names.

    Raises:
        ValueError: if there are as many classes in both, but with other names. (Other numbers of classes are
            the caller's to judge.)
    """
    if not names or tuple(names) == data.class_names or len(names) != len(data.class_names) or labels == "by-index":
        return data
    if len(set(names)) < len(names) or set(names) != set(data.class_names):
        here, there = sorted(set(data.class_names) - set(names)), sorted(set(names) - set(data.class_names))
        differ = f"{shorten(here)} in the data, {shorten(there)} in the model" if here else "some occur twice"
        raise ValueError(
            f"the class names of the data set and the model differ ({differ}): rename the classes, or pass "
            f"labels='by-index' if class i of the one is class i of the other"
        )
    new = [list(names).index(name) for name in data.class_names]
    return replace(
        data,
        train=data.train.relabeled(new),
        test=data.test.relabeled(new),
        val=data.val.relabeled(new) if data.val else None,
        class_names=tuple(names),
    )
