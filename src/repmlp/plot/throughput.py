"""Plot images per second against MACs or accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..deploy.benchmarking import Measurement
from .saving import save_figure, style_axes

MARKERS = "osD^vPX"


def plot_throughput(measurements: Sequence[Measurement], image: Path) -> Path:
    """Draw throughput against test accuracy if it is known for all networks, else against MACs; returns the path.

    One panel per batch size; a color per network, a marker per engine and precision. If a model is a file, whose MACs
    are unknown, throughput is drawn alone, one row for each measurement.
    """
    if not all(m.complexity for m in measurements):
        return _plot_rows(measurements, image)
    batches = sorted({m.batch for m in measurements})
    models = list(dict.fromkeys(m.model for m in measurements))
    engines = list(dict.fromkeys(map(_kind, measurements)))
    shown: list[Any] = list(measurements)
    by_accuracy = all(m.accuracy is not None for m in shown)
    figure = Figure(figsize=(4.6 * len(batches), 4.4), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        for m in shown:
            if m.batch == batch:
                x = 100 * m.accuracy if by_accuracy else m.complexity.macs / 1e6
                color, marker = f"C{models.index(m.model)}", MARKERS[engines.index(_kind(m)) % len(MARKERS)]
                axes.plot(x, m.images_per_second, marker, color=color, markersize=8)
        axes.set(title=f"batch {batch}", xlabel="top-1 accuracy, %" if by_accuracy else "million MACs per image")
        axes.set_ylabel("images per second")
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax)
        style_axes(axes)
    names = [(f"C{i}", "s", name) for i, name in enumerate(models)]
    kinds = [("gray", MARKERS[i % len(MARKERS)], engine) for i, engine in enumerate(engines)]
    for color, marker, label in (*names, *kinds):
        axes.plot([], [], marker, color=color, label=label)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return save_figure(figure, image)


def _plot_rows(measurements: Sequence[Measurement], image: Path) -> Path:
    """A bar for each measurement, in their order, from top to bottom."""
    models = list(dict.fromkeys(m.model for m in measurements))
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(measurements)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{m.model}, {_kind(m)}, batch {m.batch}" for m in measurements]
    colors = [f"C{models.index(m.model)}" for m in measurements]
    axes.barh(range(len(labels)), [m.images_per_second for m in measurements], color=colors)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("images per second")
    style_axes(axes)
    return save_figure(figure, image)


def _kind(measurement: Measurement) -> str:
    engine, precision = measurement.engine, measurement.precision
    return engine if precision == "float32" else f"{engine} {precision}"
