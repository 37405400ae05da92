"""Training: it learns, writes what it says, and can be repeated."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

import repmlp
from repmlp.data import ImageData, load_data
from repmlp.data.images import PixelImages
from repmlp.training import build_test_loader, evaluate, train
from repmlp.training.batches import count_images
from repmlp_settings import Train
from tiny import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    epochs, steps = [], []
    settings = Train(output=str(tmp_path_factory.mktemp("runs") / "tiny"), **TINY)
    return settings, train(settings, steps.append, epochs.append), steps, epochs


def test_a_run_learns_and_reports_each_step(run):
    _, done, steps, epochs = run
    assert done.test.images == 360
    assert done.test.accuracy > 0.3  # ten classes: three times chance after 60 steps
    assert epochs[2].train_loss < epochs[0].train_loss
    assert [step.step for step in steps] == list(range(1, 61))  # 1293 images, 20 full batches of 64 an epoch
    assert {step.steps for step in steps} == {60}


def test_the_learning_rate_falls_to_zero_as_a_cosine(run):
    _, _, _, epochs = run
    assert [epoch.lr for epoch in epochs] == pytest.approx([0.075, 0.025, 0.0])  # 0.1 * (1 + cos(pi*t)) / 2


def test_the_run_folder_holds_settings_metrics_and_the_best_model(run):
    settings, done, _, epochs = run
    assert sorted(path.name for path in done.folder.iterdir()) == ["config.yaml", "metrics.csv", "model", "test.json"]
    assert Train(**yaml.safe_load((done.folder / "config.yaml").read_text())) == settings
    with (done.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == [epoch.val_accuracy for epoch in epochs]
    assert json.loads((done.folder / "test.json").read_text())["correct"] == done.test.correct


def test_the_model_folder_gives_the_reported_test_accuracy_in_both_forms(run):
    _, done, _, _ = run
    model = repmlp.load_model(done.folder)
    for form in (model, repmlp.reparameterize(model)):
        loader = build_test_loader(form, load_data("digits"), batch_size=100)
        assert evaluate(form, loader, Accelerator(cpu=True)).correct == done.test.correct


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(run, tmp_path):
    _, done, _, _ = run
    again = train(Train(output=str(tmp_path / "again"), **TINY))
    other = train(Train(output=str(tmp_path / "other"), seed=1, **TINY))
    first, second, third = (repmlp.load_model(r.folder).state_dict() for r in (done, again, other))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.fc.weight"], third["head.fc.weight"])


def test_without_held_out_images_the_last_epoch_is_kept(tmp_path):
    done = train(Train(output=str(tmp_path / "r"), val_fraction=0.0, **TINY))
    assert done.epoch == 3


def test_a_plain_timm_network_trains_too(tmp_path):
    arguments = {**TINY, "model_args": {}, "img_size": 32, "epochs": 1, "batch_size": 512}
    done = train(Train(output=str(tmp_path / "r"), model="test_resnet", **arguments))
    assert repmlp.load_model(done.folder).num_classes == 10


def test_a_run_folder_is_not_overwritten_silently(run):
    settings, done, _, _ = run
    before = (done.folder / "metrics.csv").read_text()
    with pytest.raises(FileExistsError, match="exists already"):
        train(settings)
    assert (done.folder / "metrics.csv").read_text() == before


@pytest.mark.parametrize("held_out", [0.1, 0.0])
def test_finite_weights_whose_loss_is_not_finite_stop_the_run(tmp_path, held_out):
    """The last step can make them, and then no loss of training shows it."""
    settings = Train(output=str(tmp_path / "r"), **{**TINY, "lr": 1e30, "epochs": 1}, val_fraction=held_out)
    settings = replace(settings, train_images=64, model_args={**TINY["model_args"], "channels": [4]})
    images = "validation" if held_out else "test"
    told = f"the loss of the {images} images became nan in epoch 1: lower lr"
    with pytest.raises(FloatingPointError, match=told) as error:
        train(settings)
    assert ("the best model so far is kept" in str(error.value)) == (tmp_path / "r" / "model").exists()
    assert not (tmp_path / "r" / "test.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(tmp_path):
    settings = Train(output=str(tmp_path / "r"), **{**TINY, "lr": 1e30})
    with pytest.raises(FloatingPointError, match="lower lr"):
        train(settings)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "repmlp_cifer"}, "unknown model 'repmlp_cifer', did you mean repmlp_cifar"),
        ({"data": "mnist"}, "unknown data set 'mnist': there are digits"),
        ({"img_size": 9}, "feature size 9x9 is not a multiple of partition 4x4"),
        ({"model_args": {"chanels": [4]}}, r"repmlp_cifar cannot be built with num_classes=10, .*chanels=\[4\]"),
        ({"model_args": {"channels": [0]}}, "repmlp_cifar cannot be built with .*channels"),
        ({"model_args": {"channels": [-4]}}, "repmlp_cifar cannot be built with .*channels"),
        ({"model_args": {"channels": [4], "partition_size": 4, "kernel_sizes": [-1]}}, "cannot be built with"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        train(Train(output=str(tmp_path / "r"), **{**TINY, **wrong}))
    assert not (tmp_path / "r").exists()


def test_data_of_another_kind_than_the_model_was_trained_for(run, tmp_path):
    _, done, _, _ = run
    model = repmlp.load_model(done.folder)
    data = load_data("digits")
    with pytest.raises(ValueError, match="the model has 10 classes and 1 channels, the data 9 and 1"):
        build_test_loader(model, type(data)(data.train, data.test, data.class_names[:9], data.mean, data.std), 10)


def counted(counts, **settings):
    """What is said at the start of a run of as many images of each class, for training and for testing."""
    images = PixelImages(torch.zeros(sum(counts), 1, 1, dtype=torch.uint8), np.repeat(np.arange(len(counts)), counts))
    data = ImageData(images, images, tuple(f"class {i}" for i in range(len(counts))), (0.5,), (0.5,))
    return count_images(Train(output="run", **settings), data).split("\n")


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        (
            {"val_fraction": 1 / 3},
            ["800 training images: class 0 (798), class 1 (2)", "400 validation images: class 0 (399), class 1 (1)"],
        ),
        (
            {"val_fraction": 0.0, "train_images": 400},
            ["400 training images: class 0 (399), class 1 (1)", "no validation images"],
        ),
    ],
)
def test_the_images_of_each_class_are_counted_at_the_start(settings, lines):
    assert counted([1197, 3], **settings) == [*lines, "1,200 test images: class 0 (1,197), class 1 (3)"]


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ([1200, *[7] * 9, 0], "1,263 test images of 11 classes: fewest of class 10 (0), most of class 0 (1,200)"),
        ([5] * 11, "55 test images of 11 classes: 5 of each"),
    ],
)
def test_of_many_classes_the_smallest_and_the_largest_are_counted(counts, line):
    told = counted(counts, val_fraction=0.0, batch_size=55)
    assert told == [line.replace("test", "training"), "no validation images", line]
    too_large = "batch_size 2000 is more than that: each epoch is one step with all of them"
    assert counted(counts, val_fraction=0.0, batch_size=2000) == [told[0], too_large, *told[1:]]
