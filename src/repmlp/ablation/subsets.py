"""How accuracy depends on the number of training images: one ablation per number, all with the same steps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from repmlp_settings import Train

from ..data import load_data
from ..files import atomic_write
from ..messages import markdown_table
from ..training.batches import split_train
from .results import Line
from .summary import Summary, spread_text


def recipe_for_images(recipe: Train, images: int, steps: int) -> Train:
    """The recipe on a subset of ``images``, with the fewest epochs that give at least ``steps`` steps.

    Raises:
        ValueError: unless both are positive.
    """
    if images < 1 or steps < 1:
        raise ValueError(f"images={images} and steps={steps} must be 1 or more")
    per_epoch = images // min(recipe.batch_size, images)
    return replace(recipe, train_images=images, epochs=-(-steps // per_epoch))


def check_images(recipe: Train) -> None:
    """Raise ValueError if the data set of a recipe has fewer images to train on than it asks for."""
    data = load_data(recipe.data, recipe.data_root, recipe.download, recipe.bad_images, in_memory="no")
    split_train(recipe, data)


@dataclass(frozen=True)
class ImagesStudy:
    """Accuracy of each row against the number of training images.

    Attributes:
        summaries: of each ablation, by its number of images.
        steps: requested; a run takes up to one epoch more.
    """

    summaries: Mapping[int, Summary]
    steps: int

    def lines(self) -> dict[str, dict[int, Line]]:
        """Lines of the tables in deploy form, by row title and number of images."""
        lines: dict[str, dict[int, Line]] = {}
        for images, summary in sorted(self.summaries.items()):
            for line in summary.lines:
                lines.setdefault(line.title, {})[images] = line
        return {title: own for title, own in lines.items() if any(line.accuracy for line in own.values())}

    @property
    def missing(self) -> list[str]:
        return [f"{images} images: {name}" for images, s in sorted(self.summaries.items()) for name in s.missing]

    @property
    def header(self) -> list[str]:
        return ["test accuracy, %", *(f"{images:,} images" for images in sorted(self.summaries))]

    def rows(self) -> list[list[str]]:
        """Cells as text: mean and sample standard deviation over n seeds."""

        def cell(line: Line | None) -> str:
            return f"{spread_text(line.accuracy, '.2f')} (n={line.accuracy.n})" if line and line.accuracy else ""

        numbers = sorted(self.summaries)
        return [[title, *(cell(own.get(images)) for images in numbers)] for title, own in self.lines().items()]

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "accuracy": {
                title: {images: line.accuracy and asdict(line.accuracy) for images, line in own.items()}
                for title, own in self.lines().items()
            },
            "epochs": {images: summary.recipe.epochs for images, summary in self.summaries.items()},
            "missing": self.missing,
        }

    def write(self, folder: Path) -> None:
        """Write images.md and images.json, replacing existing ones."""
        missing = [f"Not finished, and not in the table: {', '.join(self.missing)}."] if self.missing else []
        notes = ["Mean ± sample standard deviation over n seeds. Images are drawn by class and seed.", *missing]
        parts = [
            f"# Accuracy against the number of training images, {self.steps} steps each",
            markdown_table(self.header, self.rows()),
            "\n".join(notes),
            "![Accuracy of each row against the number of training images](images.png)",
        ]
        atomic_write(folder / "images.md", "\n\n".join(parts) + "\n")
        atomic_write(folder / "images.json", json.dumps(self.to_dict(), indent=1) + "\n")


def subset_folders(output: Path, numbers: Sequence[int]) -> dict[int, Path]:
    """The folder of the ablation on each number of images."""
    return {images: output / f"images-{images}" for images in dict.fromkeys(numbers)}
