"""The picture of `repmlp bench` shows every measurement."""

import pytest
from matplotlib.figure import Figure

from repmlp.counting import Complexity
from repmlp.deploy.benchmarking import Measurement
from repmlp.deploy.timing import Timing
from repmlp.plot import throughput

COUNTED = Complexity(10, 20)


def measured(model, engine, speed, complexity=COUNTED, accuracy=None, batch=1):
    timing = Timing(1 / speed, 1 / speed, 1 / speed)
    return Measurement(model, engine, "float32", batch, timing, speed, None, 0.0, complexity, accuracy)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws measurements; returns the figure."""
    figures: list[Figure] = []
    monkeypatch.setattr(throughput, "save_figure", lambda figure, image: figures.append(figure))

    def draw(*measurements):
        throughput.plot_throughput(measurements, tmp_path / "bench.png")
        return figures[-1]

    return draw


def test_a_point_for_each_measurement_in_the_panel_of_its_batch_size(drawn):
    figure = drawn(measured("a", "pytorch", 5), measured("b", "onnxruntime", 7), measured("b", "pytorch", 9, batch=16))
    points = [[tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata())] for axes in figure.axes]
    assert points == [[(20e-6, 5.0), (20e-6, 7.0)], [(20e-6, 9.0)]]


def test_a_file_whose_macs_are_unknown_is_drawn_too(drawn):
    figure = drawn(measured("run", "pytorch", 5), measured("deploy.onnx", "onnxruntime", 7, complexity=None))
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [5, 7]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "run, pytorch, batch 1",
        "deploy.onnx, onnxruntime, batch 1",
    ]
