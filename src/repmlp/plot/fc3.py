"""Plot FC3's weights around one output pixel, before and after the merge (v1, Fig. 5)."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..layers import RepMLP
from ..layers.partitioned import FC3Block
from .maps import draw_maps, first_and_last
from .saving import save_figure


@torch.no_grad()
def weights_around(weight: Tensor, block: FC3Block, pixel: tuple[int, int]) -> Tensor:
    """How strongly one output pixel weighs each input pixel of its partition.

    The mean of ``|W[(o, y, x), (c, y', x')]|`` over all pairs of an output channel o and an input channel c that FC3
    connects.

    Args:
        weight: of FC3, (g, O/g*h*w, C/g*h*w).
        block: the block with this FC3.
        pixel: (y, x) of the output pixel.

    Returns:
        (h, w).
    """
    (h, w), (y, x) = block.partition_size, pixel
    fc3 = weight.view(weight.shape[0], -1, h, w, weight.shape[2] // (h * w), h, w)  # (g, O/g, y, x, C/g, y', x')
    return fc3[:, :, y, x].abs().mean(dim=(0, 1, 2))


@torch.no_grad()
def plot_fc3(model: nn.Module, image: Path) -> Path:
    """Draw FC3 of the first and the last block before and after the merge, into an image file; returns its path.

    Args:
        model: in training form, with at least one block that has a Local Perceptron.

    Raises:
        ValueError: if there is no such block, so nothing to merge.
    """
    blocks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RepMLP) and module.local_perceptron is not None
    }
    if not blocks:
        raise ValueError("no block of the model has a Local Perceptron: pass a model in training form")
    shown = first_and_last(blocks)
    figure = Figure(figsize=(6.8, 3.1 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for row, (name, block) in zip(grid, shown, strict=True):
        pixel = (block.partition_size[0] // 2, block.partition_size[1] // 2)
        before, _ = block.partition_perceptron.equivalent_fc3()  # FC3 and its BN only
        after, _ = block.equivalent_fc3()
        kernels = {f"block {name}, before the merge: FC3": before, f"block {name}, after: FC3 + convs": after}
        maps = {title: weights_around(kernel, block, pixel) for title, kernel in kernels.items()}
        draw_maps(row, maps, pixel, "mean |weight|")
    figure.suptitle("How strongly one output pixel (cyan square) weighs its partition", fontsize=10)
    return save_figure(figure, image)
