"""Plot how local FC3 is: the share of its energy near the output pixel, before and after the merge."""

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..functional import to_double
from ..layers import RepMLP
from .ablation import COLORS
from .saving import save_figure, style_axes


@torch.no_grad()
def energy_within(weight: Tensor, partition_size: tuple[int, int]) -> Tensor:
    """Share of FC3's energy, the sum of its squared weights, within each distance of the output pixel.

    The distance of two pixels is ``max(|y - y'|, |x - x'|)``: a conv of size 2d+1 reaches distance d.

    Args:
        weight: of FC3, (g, O/g*h*w, C/g*h*w).
        partition_size: (h, w).

    Returns:
        (max(h, w)), in float64: the share within distance 0, 1, ...; the last one is 1.
    """
    h, w = partition_size
    fc3 = to_double(weight).view(weight.shape[0], -1, h, w, weight.shape[2] // (h * w), h, w)
    energy = fc3.square().sum((0, 1, 4))  # (y, x, y', x')
    y, x = (torch.arange(n, device=weight.device) for n in (h, w))
    dy, dx = (y[:, None] - y).abs(), (x[:, None] - x).abs()  # (y, y'), (x, x')
    distance = torch.maximum(dy[:, None, :, None], dx[None, :, None, :])  # (y, x, y', x')
    within = energy.new_zeros(max(h, w)).index_add_(0, distance.flatten(), energy.flatten()).cumsum(0)
    return within / within[-1]


@torch.no_grad()
def plot_energy(models: Mapping[str, nn.Module], image: Path, titles: Mapping[str, str] | None = None) -> Path | None:
    """Draw ``energy_within`` of each model, the mean over its blocks, into an image file; returns its path.

    Dashed: FC3 with its own BN merged; solid: FC3 with the convs merged as well; gray: an FC3 whose weights all have
    the same magnitude.

    Args:
        models: in training form, by the names of their rows.
        image: to write.
        titles: of the rows, for the legend.

    Returns:
        ``image``, or None if no model has a block with an FC3 and nothing is drawn.
    """
    blocks = {
        name: [module for module in model.modules() if isinstance(module, RepMLP)] for name, model in models.items()
    }
    blocks = {name: own for name, own in blocks.items() if own}
    if not blocks:
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, own in blocks.items():
        color, title = COLORS.get(name, "#4477aa"), (titles or {}).get(name, name)
        before = [energy_within(b.partition_perceptron.equivalent_fc3()[0], b.partition_size) for b in own]
        after = [energy_within(b.equivalent_fc3()[0], b.partition_size) for b in own]
        for shares, style, label in ((before, "--", None), (after, "-", title)):
            mean = torch.stack(shares).mean(0)
            axes.plot(range(len(mean)), mean.cpu().numpy(), style, color=color, marker=".", label=label)
    fc3 = own[0].partition_perceptron.fc3.weight
    uniform = energy_within(torch.ones_like(fc3), own[0].partition_size)
    label = "all weights of the same size"
    axes.plot(uniform.cpu().numpy(), "-", color="lightgray", linewidth=7, zorder=0, label=label)
    axes.set(
        xlabel="distance from the output pixel, in pixels", ylabel="share of FC3's energy within it", ylim=(0, 1.02)
    )
    axes.set_title("mean over the blocks; dashed: FC3 before the merge, solid: as deployed", fontsize=9)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return save_figure(figure, image)
