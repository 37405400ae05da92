"""Plot how one token weighs all others: a row of a token-mixing FC, drawn as a map."""

import copy
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..layers import TokenMixing
from ..layers.token_mixing import grouped_weight
from .maps import draw_maps, first_and_last
from .saving import save_figure

TITLES = ("before training", "after training: the FC alone", "after the merge: FC + convs")


@torch.no_grad()
def mixing_row(fc: nn.Module, layer: TokenMixing, token: tuple[int, int]) -> Tensor:
    """The weights of an FC for each token of the grid, for its output at ``token``.

    For an FC with several maps or groups, the weights from its first map to its first map; a class token is omitted.

    Args:
        fc: ``layer`` itself, or its plain form.
        layer: gives the grid of the tokens.
        token: (y, x).

    Returns:
        (H, W).
    """
    (H, W), first, (y, x) = layer.grid, int(layer.class_token), token
    row = grouped_weight(fc)[0, first + y * W + x]  # (first + I*T)
    return row[first : first + H * W].view(H, W)


@torch.no_grad()
def plot_token_mixing(
    initial: nn.Module, trained: nn.Module, image: Path, token: tuple[int, int] | None = None
) -> Path:
    """Draw one row of the first and the last token-mixing FC of a model into an image file; returns its path.

    Three maps each, on the same color scale: before training, after it without the convs, and with them merged in.

    Args:
        initial: the model before training, with or without convs, which start at zero.
        trained: the model after training, in training form, with the convs of :func:`repmlp.inject_locality`.
        image: to write.
        token: (y, x) of the row's output; by default the middle of the grid.

    Raises:
        ValueError: if no FC of ``trained`` has convs in parallel, or ``initial`` is another model.
    """
    layers = {name: module for name, module in trained.named_modules() if isinstance(module, TokenMixing)}
    if not layers:
        raise ValueError("no FC of the trained model has convs in parallel: pass the model in training form")
    before: dict[str, Any] = dict(initial.named_modules())
    shown = first_and_last(layers)
    figure = Figure(figsize=(9, 3.1 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False)
    for row, (name, layer) in zip(grid, shown, strict=True):
        if name not in before or before[name].weight.shape != layer.weight.shape:
            raise ValueError(f"the initial model has no FC {name} of this size: pass the same model before training")
        merged = copy.deepcopy(layer)
        merged.reparameterize()
        at = token or (layer.grid[0] // 2, layer.grid[1] // 2)
        fcs = dict(zip(TITLES, (before[name], layer, merged), strict=True))
        draw_maps(row, {title: mixing_row(fc, layer, at) for title, fc in fcs.items()}, at, "weight", signed=True)
        row[0].set_ylabel(name, fontsize=9)
    figure.suptitle("How strongly one token (square) weighs each token of the grid: one row of the FC", fontsize=10)
    return save_figure(figure, image)
