"""The table, against figures computed by hand from runs with known contents."""

import json
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch

import repmlp
from planted import MACHINE, RECIPE, plant
from repmlp.ablation import ROWS, Result, Spread, choose_rows, plan_jobs, summarize
from repmlp.ablation.results import measure, to_lines
from repmlp.plot import plot_ablation

THREE = choose_rows(["pure-mlp", "no-local", "wide-convnet"])
#: Right of 200 test images, by row and seed; training loss and seconds of each epoch.
RUNS = {
    ("pure-mlp", 0): (180, [2.0, 1.0, 0.5, 0.4, 0.3], [9.0, 2.0, 2.0, 2.0, 2.0]),
    ("pure-mlp", 1): (184, [2.0, 1.0, 0.5, 0.4, 0.2], [3.0, 3.0, 3.0, 3.0, 3.0]),
    ("pure-mlp", 2): (182, [2.0, 1.0, 0.5, 0.4, 0.4], [2.0, 2.0, 2.0, 2.0, 2.0]),
    ("no-local", 0): (160, [2.0, 1.0, 0.8, 0.8, 0.6], [1.0, 1.0, 1.0, 1.0, 1.0]),
    ("no-local", 2): (166, [2.0, 1.0, 0.8, 0.8, 0.6], [1.0, 1.0, 1.0, 1.0, 1.0]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("planted")
    for job in plan_jobs(RECIPE, output, THREE, [0, 1, 2]):
        if run := RUNS.get((job.row.name, job.settings.seed)):
            plant(job, *run, before=181 if job.name == "pure-mlp/seed-0" else -1)
    return output


@pytest.fixture(scope="module")
def summary(folder):
    return summarize(plan_jobs(RECIPE, folder, THREE, [0, 1, 2]), RECIPE, folder, rounds=2, warmup=1)


def test_a_spread_is_mean_and_sample_standard_deviation():
    assert Spread.of([1.0, 2.0, 4.0, 5.0]) == Spread(3.0, pytest.approx((10 / 3) ** 0.5), 4)  # (4+1+1+4) / (4-1)
    assert Spread.of([7.0]) == Spread(7.0, None, 1)
    assert Spread.of([]) is None


def test_accuracy_and_its_spread(summary):
    pure, not_converted, no_local, wide = summary.lines
    assert pure.accuracies == {0: 90.0, 1: 92.0, 2: 91.0}
    assert pure.accuracy == Spread(91.0, 1.0, 3)
    assert no_local.accuracy == Spread(81.5, pytest.approx(4.5**0.5), 2)  # 80 and 83
    assert wide.accuracy is None
    assert not_converted.accuracies == {0: 90.5, 1: 92.0, 2: 91.0}  # seed 0: one image more than converted


def test_the_difference_is_taken_seed_by_seed_over_the_seeds_that_both_rows_have(summary):
    pure, not_converted, no_local, wide = summary.lines
    assert no_local.difference == Spread(-9.0, pytest.approx(2**0.5), 2)  # 80-90 and 83-91; seed 1 has no pair
    assert not_converted.difference == Spread(pytest.approx(1 / 6), pytest.approx(0.5 / 3**0.5), 3)  # 0.5, 0, 0
    assert pure.difference == Spread(0.0, 0.0, 3)
    assert wide.difference is None


def test_without_the_first_row_no_difference_is_told():
    own = Result("no-local", 0, 200, {"training form": 1, "deploy form": 1}, (1.0,), (1.0,), MACHINE)
    assert [line.difference for line in to_lines([own], THREE)] == [None] * 4


def test_training_loss_seconds_and_how_flat_the_curve_is(summary):
    pure, not_converted, no_local, _ = summary.lines
    assert pure.loss.mean == pytest.approx(0.3)
    assert pure.still_falling == pytest.approx((0.25 + 0.5 + 0.0) / 3)  # of 5 epochs the last: 0.4 -> 0.3, 0.2, 0.4
    assert no_local.still_falling == pytest.approx(0.25)
    assert pure.epoch_seconds == 2.0  # the median of 15
    assert (not_converted.loss, not_converted.epoch_seconds) == (pure.loss, pure.epoch_seconds)


@pytest.mark.parametrize(
    ("losses", "fell"),
    [
        ([1.0], None),
        ([1.0, 0.5], 0.5),
        ([9.0] * 6 + [8.0, 7.0, 6.0, 4.0], 3 / 7),  # the last two of ten: 7 -> 4
        ([9.0] * 4 + [1.0, 2.0], -1.0),
    ],
)
def test_the_last_fifth_of_the_epochs(losses, fell):
    result = Result("conv9", 0, 1, {}, tuple(losses), (), MACHINE)
    assert result.still_falling == (None if fell is None else pytest.approx(fell))


def test_every_row_is_measured_in_the_form_that_the_table_says(summary, folder):
    model = repmlp.load_model(folder / "pure-mlp" / "seed-0")
    pure, not_converted, _, wide = summary.lines
    assert not_converted.complexity == repmlp.complexity(model)
    assert pure.complexity == repmlp.complexity(repmlp.reparameterize(model))
    assert pure.complexity.macs < not_converted.complexity.macs
    assert pure.batch_seconds.fastest <= pure.batch_seconds.median <= pure.batch_seconds.slowest
    assert (wide.complexity, wide.batch_seconds) == (None, None)


def test_inference_is_timed_on_whole_batches_of_the_recipe(folder, monkeypatch):
    shapes = []
    monkeypatch.setattr("repmlp.ablation.results._run", lambda model, x: shapes.append((model.training, *x.shape)))
    lines = to_lines([], THREE[:1])
    measure(lines, {"pure-mlp": folder / "pure-mlp" / "seed-1"}, replace(RECIPE, batch_size=3), rounds=2, warmup=1)
    assert shapes == [(False, 3, 1, 8, 8)] * 6  # 2 forms, 3 calls of each


def test_the_table_as_text(summary):
    pure, not_converted, no_local, wide = summary.rows()
    assert pure[:7] == ["Pure MLP", "91.00±1.00", "3", "", "91.11%", "0.3000", "25.0%"]
    assert no_local[:7] == ["B: no Local Perceptron", "81.50±2.12", "2", "-9.00±1.41", "-8.5", "0.6000", "25.0%"]
    assert not_converted[:4] == ["A: not converted", "91.17±0.76", "3", "+0.17±0.29"]
    assert not_converted[9] == "2.0"
    assert wide == ["Wide ConvNet", "", "0", "", "+0.88", *[""] * 6]
    assert {len(row) for row in summary.rows()} == {len(summary.header)}
    assert summary.header[-1] == "ms per\nbatch\nof 32"


def test_what_is_missing_is_told_by_name(summary):
    names = "no-local/seed-1, wide-convnet/seed-0, wide-convnet/seed-1, wide-convnet/seed-2"
    assert ", ".join(summary.missing) == names
    assert summary.remarks()[0] == f"Not finished, and not in the table: {names}."


def test_a_summary_without_a_finished_run(tmp_path):
    summary = summarize(plan_jobs(RECIPE, tmp_path, THREE, [0]), RECIPE, tmp_path)
    assert [row[2] for row in summary.rows()] == ["0"] * 4
    assert len(summary.missing) == 3
    plot_ablation(summary, tmp_path / "empty.png")
    summary.write(tmp_path)


def test_the_table_takes_in_what_other_processes_trained(folder):
    summary = summarize(plan_jobs(RECIPE, folder, THREE[1:2], [2]), RECIPE, folder, rounds=1, warmup=0)
    assert [line.title for line in summary.lines] == ["Pure MLP", "A: not converted", "B: no Local Perceptron"]
    assert len(summary.results) == 5
    assert summary.missing == []


def test_markdown_holds_the_table_every_run_and_the_settings(summary):
    lines = summary.to_markdown().splitlines()
    assert lines[0] == "# Ablation on digits, 1 epoch"
    header = next(line for line in lines if "test accuracy, %" in line)
    assert header.count("|") == 12
    assert any(line.startswith("| B: no Local Perceptron | 81.50±2.12 | 2 | -9.00±1.41 | -8.5 |") for line in lines)
    assert "| B: no Local Perceptron | 80.00 |  | 83.00 |" in lines  # seed 1 is missing
    settings = next(line for line in lines if "batch_size" in line)
    assert "batch_size: 32" in settings
    assert "seed" not in settings
    assert "momentum" not in settings  # as usual
    assert f"torch {torch.__version__}" in lines[-1]
    assert "- Pure MLP and A are the same runs. Trained on a CPU, 1 thread." in lines


def test_json_holds_what_the_table_is_made_of(summary, tmp_path):
    summary.write(tmp_path)
    told = json.loads((tmp_path / "ablation.json").read_text())
    assert told["lines"][2]["difference"] == {"mean": -9.0, "std": pytest.approx(2**0.5), "n": 2}
    assert told["runs"][0]["losses"] == [2.0, 1.0, 0.5, 0.4, 0.3]
    assert told["recipe"]["model_args"] == RECIPE.model_args
    assert told["missing"] == summary.missing
    assert {"cpu", "threads", "torch", "timm", "repmlp", "device", "date", "rounds"} <= set(told["about"])
    assert (tmp_path / "ablation.md").read_text() == summary.to_markdown()


def test_the_figure_is_drawn_from_the_results(summary, tmp_path):
    def pixels(summary):
        return matplotlib.image.imread(plot_ablation(summary, tmp_path / "ablation.png"))

    first = pixels(summary)
    assert first.shape[2] == 4
    assert np.array_equal(first, pixels(summary))
    pure, *others = summary.lines
    for other in (
        replace(pure, accuracies={**pure.accuracies, 0: 90.7}),
        replace(pure, curves={**pure.curves, 0: (2.0, 1.0, 0.5, 0.4, 0.35)}),
    ):
        assert not np.array_equal(first, pixels(replace(summary, lines=[other, *others])))


def test_every_row_has_a_color_of_its_own():
    from repmlp.plot.ablation import COLORS

    assert list(COLORS) == [row.name for row in ROWS]
    assert len(set(COLORS.values())) == len(ROWS)
