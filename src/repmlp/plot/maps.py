"""Maps of weights side by side, on one color scale."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from torch import Tensor

T = TypeVar("T")


def first_and_last(layers: Mapping[str, T]) -> list[tuple[str, T]]:
    """The first and the last layer, with their names; one if there is only one."""
    named = list(layers.items())
    return named if len(named) == 1 else [named[0], named[-1]]


def draw_maps(
    row: Sequence[Axes], maps: Mapping[str, Tensor], pixel: tuple[int, int], label: str, signed: bool = False
) -> None:
    """Draw maps (h, w) by their titles, with a square around a pixel (y, x).

    Args:
        label: of the color scale, which ends at the largest value.
        signed: whether the scale has zero in its middle, not at its start.
    """
    top = max(values.abs().max().item() for values in maps.values())
    low, cmap, color = (-top, "RdBu_r", "black") if signed else (0, "magma", "cyan")
    for axes, (title, values) in zip(row, maps.items(), strict=True):
        h, w = values.shape
        picture = axes.imshow(values.float().cpu().numpy(), cmap=cmap, vmin=low, vmax=top)
        axes.plot(pixel[1], pixel[0], "s", markersize=140 / max(h, w), fillstyle="none", color=color)
        axes.set(title=title, xticks=range(w), yticks=range(h))
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    row[0].figure.colorbar(picture, ax=list(row), label=label, shrink=0.85)
