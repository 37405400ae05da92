"""Accuracy against the number of training images: equal steps, and a line a row."""

import json
from dataclasses import replace

import pytest
from PIL import Image, ImageColor

from planted import RECIPE, plant
from repmlp.ablation import ImagesStudy, choose_rows, plan_jobs, recipe_for_images, subset_folders, summarize
from repmlp.plot import plot_images_study
from repmlp.plot.ablation import COLORS

ROWS = choose_rows(["pure-mlp", "no-local"])


@pytest.mark.parametrize(("images", "epochs"), [(1000, 48), (5000, 9), (20, 1500), (40, 1500)])
def test_every_subset_gets_the_steps_asked_for_and_less_than_an_epoch_more(images, epochs):
    recipe = recipe_for_images(replace(RECIPE, batch_size=32), images, 1500)
    per_epoch = max(1, images // 32)
    assert (recipe.train_images, recipe.epochs) == (images, -(-1500 // per_epoch))
    assert 1500 <= recipe.epochs * per_epoch < 1500 + per_epoch
    if images >= 1000:
        assert recipe.epochs in (epochs, epochs + 1)


@pytest.mark.parametrize(("images", "steps"), [(0, 10), (10, 0), (-5, 10)])
def test_nothing_to_train_on_is_refused(images, steps):
    with pytest.raises(ValueError, match=rf"images={images} and steps={steps}"):
        recipe_for_images(RECIPE, images, steps)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    output = tmp_path_factory.mktemp("study")
    summaries = {}
    for (images, folder), correct in zip(subset_folders(output, [500, 100, 500]).items(), (150, 100), strict=True):
        recipe = recipe_for_images(RECIPE, images, 10)
        jobs = plan_jobs(recipe, folder, ROWS, [0, 1])
        for job in jobs[:-1] if images == 100 else jobs:
            plant(job, correct - 20 * (job.row.name == "no-local") + job.settings.seed, [1.0, 0.5], [1.0, 1.0])
        summaries[images] = summarize(jobs, recipe, folder, rounds=1, warmup=0)
    return ImagesStudy(summaries, steps=10)


def test_the_table_has_a_column_for_each_number_of_images_and_names_what_is_missing(study, tmp_path):
    assert study.header == ["test accuracy, %", "100 images", "500 images"]
    assert study.rows()[0] == ["Pure MLP", "50.25±0.35 (n=2)", "75.25±0.35 (n=2)"]
    assert study.rows()[-1] == ["B: no Local Perceptron", "40.00 (n=1)", "65.25±0.35 (n=2)"]
    study.write(tmp_path)
    assert "Not finished, and not in the table: 100 images: no-local/seed-1." in (tmp_path / "images.md").read_text()
    written = json.loads((tmp_path / "images.json").read_text())
    assert written["accuracy"]["Pure MLP"]["500"]["mean"] == pytest.approx(75.25)
    assert written["missing"] == ["100 images: no-local/seed-1"]


def test_the_picture_has_a_line_a_row(study, tmp_path):
    with Image.open(plot_images_study(study, tmp_path / "images.png")) as picture:
        pixels = {color for _, color in picture.convert("RGB").getcolors(maxcolors=2**24)}
    assert {name: ImageColor.getrgb(COLORS[name]) in pixels for name in ("pure-mlp", "no-local", "conv9")} == {
        "pure-mlp": True,
        "no-local": True,
        "conv9": False,
    }
