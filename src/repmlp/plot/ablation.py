"""Plot an ablation: the accuracy of every run, and whether the training loss had flattened."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ..ablation import ImagesStudy, Summary
from ..ablation.jobs import TRAINING
from .curves import use_log_scale
from .saving import save_figure, style_axes

#: One color per row, distinguishable with any color vision (Paul Tol's "bright", and black).
COLORS = {
    "pure-mlp": "#000000",
    "no-local": "#ee6677",
    "no-global": "#ccbb44",
    "conv9-for-fc3": "#228833",
    "conv9": "#66ccee",
    "wide-convnet": "#aa3377",
}


def plot_ablation(summary: Summary, image: Path) -> Path:
    """Draw an ablation into an image file; returns its path.

    Left, test accuracy: a point per seed and a bar at their mean. Right, training loss over the epochs: the mean over
    the seeds as a line, the range over the seeds shaded.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    for place, line in enumerate(summary.lines):
        color = COLORS[line.name]
        accuracies = list(line.accuracies.values())
        left.plot(accuracies, [place] * len(accuracies), "o", color=color, markersize=6, alpha=0.7, markeredgewidth=0)
        if line.accuracy:
            left.plot([line.accuracy.mean] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2)
    left.set_yticks(range(len(summary.lines)), [line.title for line in summary.lines])
    left.set_ylim(len(summary.lines) - 0.5, -0.5)
    left.set(title="each seed, and their mean", xlabel="top-1 accuracy on the test images, %")

    trained = {line.name: line for line in reversed(summary.lines) if line.curves}  # row A has the pure MLP's curves
    for line in reversed(trained.values()):
        curves = list(zip(*line.curves.values(), strict=True))  # [epoch][seed]
        epochs, color = range(1, len(curves) + 1), COLORS[line.name]
        marker = "" if len(curves) > 1 else "o"
        right.fill_between(epochs, [min(c) for c in curves], [max(c) for c in curves], color=color, alpha=0.2, lw=0)
        right.plot(epochs, [statistics.mean(c) for c in curves], color=color, marker=marker, label=line.title)
    right.set(title="mean and range over the seeds", xlabel="epoch", ylabel="training loss")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    use_log_scale(right)
    if trained:
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.title.set_fontsize(9)
        style_axes(axes)
    figure.suptitle(summary.title, fontsize=11)
    return save_figure(figure, image)


def plot_images_study(study: ImagesStudy, image: Path) -> Path:
    """Draw accuracy against the number of training images into an image file; returns its path.

    One line per row, the mean over its seeds; error bars show one sample standard deviation.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for title, own in study.lines().items():
        points = [(images, line.accuracy) for images, line in own.items() if line.accuracy]
        line = next(iter(own.values()))
        axes.errorbar(
            [images for images, _ in points],
            [spread.mean for _, spread in points],
            yerr=[spread.std or 0 for _, spread in points],
            color=COLORS[line.name],
            linestyle="--" if line.form == TRAINING else "-",
            marker="o",
            markersize=4,
            capsize=3,
            label=title,
        )
    axes.set_xscale("log")
    numbers = sorted(study.summaries)
    axes.set_xticks(numbers, [f"{images:,}" for images in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="training images", ylabel="top-1 accuracy on the test images, %")
    axes.set_title(f"{study.steps} steps each; mean and standard deviation over the seeds", fontsize=9)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8)
    return save_figure(figure, image)
