"""Write pictures, whole or not at all."""

from pathlib import Path

from matplotlib.figure import Figure

from ..files import atomic_file


def save_figure(figure: Figure, image: Path) -> Path:
    """Write a figure as an image file, replacing what is there; returns its path."""
    with atomic_file(image) as file:
        figure.savefig(file, dpi=150)
    return image
