"""Plot the training curves of a run."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ..training.records import read_rows
from .saving import save_figure, style_axes

TRAIN, VAL = "#4477aa", "#cc6677"


def plot_curves(metrics: Path, image: Path) -> Path:
    """Draw loss and accuracy over the epochs of a metrics.csv into an image file; returns its path."""
    rows = read_rows(metrics)
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, quantity, unit in ((left, "loss", 1), (right, "accuracy", 100)):
        for part, color in (("train", TRAIN), ("val", VAL)):
            values = [row[f"{part}_{quantity}"] * unit for row in rows]
            if not all(math.isnan(value) for value in values):
                name = {"train": "training images (augmented)", "val": "validation images"}[part]
                axes.plot(epochs, values, color=color, marker="." if len(epochs) < 60 else "", label=name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style_axes(axes)
    left.set(ylabel="cross-entropy loss")
    use_log_scale(left)
    right.set(ylabel="top-1 accuracy, %")
    right.legend(frameon=False, loc="best" if len(rows) < 3 else "lower right")
    return save_figure(figure, image)


def use_log_scale(axes: Axes) -> None:
    """Log axis for a loss, with plain-number labels between powers of ten: it may span less than one or several."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
