"""The look of axes; and pictures written whole or not at all."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import atomic_file


def style_axes(axes: Axes) -> None:
    """A pale grid, and no frame to the top and right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, image: Path) -> Path:
    """Write a figure as an image file, replacing what is there; returns its path."""
    with atomic_file(image) as file:
        figure.savefig(file, dpi=150)
    return image
