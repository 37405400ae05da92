"""Plot FC3's weights around one output pixel, before and after the merge (v1, Fig. 5)."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..layers import RepMLP
from ..layers.partitioned import FC3Block
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
    shown = list(blocks.items())
    shown = shown if len(shown) == 1 else [shown[0], shown[-1]]
    figure = Figure(figsize=(6.8, 3.1 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for row, (name, block) in zip(grid, shown, strict=True):
        h, w = block.partition_size
        pixel = (h // 2, w // 2)
        before, _ = block.partition_perceptron.equivalent_fc3()  # FC3 and its BN only
        after, _ = block.equivalent_fc3()
        maps = [weights_around(weight, block, pixel).float().cpu().numpy() for weight in (before, after)]
        top = max(values.max() for values in maps)
        for axes, values, title in zip(row, maps, ("before the merge: FC3", "after: FC3 + convs"), strict=True):
            picture = axes.imshow(values, cmap="magma", vmin=0, vmax=top)
            axes.plot(
                pixel[1],
                pixel[0],
                marker="s",
                markersize=150 / max(h, w),
                fillstyle="none",
                color="cyan",
                markeredgewidth=1.5,
            )
            axes.set(title=f"block {name}, {title}", xticks=range(w), yticks=range(h))
            axes.title.set_fontsize(9)
            axes.tick_params(labelsize=7)
        figure.colorbar(picture, ax=list(row), label="mean |weight|", shrink=0.85)
    figure.suptitle("How strongly one output pixel (cyan square) weighs its partition", fontsize=10)
    return save_figure(figure, image)
