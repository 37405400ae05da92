"""What the page shows, without a page."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import repmlp
from compare import assert_same
from pictures import picture
from repmlp.data import load_data
from repmlp.layers import RepMLP
from repmlp_app import views
from repmlp_cli import main
from repmlp_cli.info import forms_of, open_model
from repmlp_settings import Info
from weights import randomize

FROZEN = Path(__file__).parents[1] / "frozen"
SIZE = {"img_size": 8, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]}


@pytest.fixture(scope="module")
def forms():
    return forms_of(repmlp.load_model(FROZEN / "model"))


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return randomize(RepMLP(4, 6, (4, 6), (2, 3), (1,), groups=2).double())


def test_both_forms_predict_the_same(forms):
    rows, sentence = views.predict(forms, picture())
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "ms"]
    assert all(row[1] == row[2] for row in rows[:5])
    assert sentence.startswith("Both forms predict the same class")
    changed, _ = views.break_weight(forms["deploy form"], views.block_names(forms)[-1], {})
    rows, sentence = views.predict(views.with_broken_deploy_form(forms, changed), picture())
    assert float(re.search(r"logit: (\S+),", sentence)[1]) > 1e-5


def test_a_model_with_one_form_is_predicted_too(forms):
    rows, sentence = views.predict({"deploy form": forms["deploy form"]}, picture(), top=20)
    assert [len(row) for row in rows] == [2] * 11  # all ten classes, and the time
    assert "nothing to compare" in sentence


@pytest.mark.parametrize("name", ["repvgg_a0", pytest.param("mobileone_s0", marks=pytest.mark.slow)])
def test_the_blocks_of_timms_networks(name):
    forms = forms_of(timm.create_model(name, num_classes=3))
    names = views.block_names(forms)
    assert len(names) > 20
    changed, _ = views.break_weight(forms["deploy form"], names[0], {})
    assert next(iter(changed)).startswith(names[0])
    assert views.fc3_blocks(forms) == {}


def test_both_forms_of_a_network_by_name_are_in_eval_mode():
    forms = forms_of(open_model(Info("repmlp_cifar", {"channels": [4], "partition_size": 8, "kernel_sizes": [1]})))
    assert len(forms) == 2
    assert not any(module.training for form in forms.values() for module in form.modules())


def test_a_broken_weight_is_in_the_copy_only_and_is_found(forms):
    training, deploy = forms.values()
    before = {name: tensor.clone() for name, tensor in deploy.state_dict().items()}
    images = views.images_to_compare(training, 2, None)
    assert repmlp.verify(training, views.with_changes(deploy, {}), images)
    for name in views.block_names(forms)[:2]:
        once, sentence = views.break_weight(deploy, name, {})
        tensor = re.match(r"Changed (.*)\[", sentence)[1]
        twice, _ = views.break_weight(deploy, name, once)
        assert (twice[tensor] != before[tensor]).sum() in (1, 2)
        report = repmlp.verify(training, views.with_changes(deploy, once), images)
        assert report.first_difference.tensor == tensor
    for name, tensor in deploy.state_dict().items():
        assert_same(tensor, before[name])


def test_ink_is_bright_where_the_training_images_are_dark(forms):
    drawing = Image.new("L", (8, 8), 255)
    for empty in (drawing, None):
        with pytest.raises(ValueError, match="the drawing is empty: draw something first"):
            views.drawn_image(forms["training form"], empty)
    drawing.putpixel((1, 2), 0)
    image = views.drawn_image(forms["training form"], drawing)
    assert (image.getpixel((1, 2)), image.getpixel((0, 0))) == (255, 0)
    light = timm.create_model("repmlp_cifar", **SIZE, in_chans=1, pretrained_cfg_overlay={"mean": (0.7,), "std": (1,)})
    assert views.drawn_image(light, drawing).getpixel((1, 2)) == 0


def test_images_of_a_data_set_are_prepared_for_the_model(forms):
    pytest.importorskip("sklearn")
    model, data = forms["training form"], load_data("digits")
    assert views.is_gray(model)
    assert views.images_to_compare(model, 3, data).shape == (3, 1, 8, 8)
    assert len(views.images_to_compare(model, 10**6, data)) == len(data.test)
    assert not views.is_gray(timm.create_model("repmlp_cifar", **SIZE))


def test_the_kernels_add_up_and_their_parts_are_those_of_the_channels(block):
    kernels = views.fc3_kernels(block)
    assert list(kernels) == ["FC3 alone", "convs as an FC", "merged kernel"]
    torch.testing.assert_close(kernels["FC3 alone"] + kernels["convs as an FC"], kernels["merged kernel"])
    assert views.channels_of(kernels, block) == (2, 3, 2)
    merged = kernels["merged kernel"]
    assert views.chosen_channels(merged, block, None, None, None).shape == (2, 18, 12)
    part = views.chosen_channels(merged, block, 1, 2, 1)
    assert_same(part, merged.view(2, 3, 6, 2, 6)[1:, 2, :, 1])
    deployed = randomize(RepMLP(4, 6, (4, 6), (2, 3), (1,), groups=2, deploy=True))
    assert list(views.fc3_kernels(deployed)) == ["merged kernel"]


def test_pictures_share_a_scale_and_mark_the_pixel(block):
    kernels = views.fc3_kernels(block)
    pictures, rows, sentence = views.fc3_pictures(kernels, block, (1, 2))
    convs = np.asarray(pictures["convs as an FC"])
    side = views.PICTURE // 3
    assert convs.shape == (2 * side, 3 * side, 3)
    centers = convs[side // 2 :: side, side // 2 :: side]
    black = [(y, x) for y in range(2) for x in range(3) if centers[y, x].sum() < 10]
    assert black == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]  # a 1x1 conv draws from its own pixel only
    assert tuple(convs[side, 2 * side]) == (0, 255, 255)
    brightest = max(np.asarray(p)[side // 2 :: side, side // 2 :: side].sum(-1).max() for p in pictures.values())
    assert brightest > 600
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[2] for row in rows] == ["100.0%"] * 3
    assert "(1, 2)" in sentence


@pytest.mark.parametrize("size", [(2, 3), (7, 7), (300, 2)])
def test_a_position_in_a_picture_is_its_pixel(size):
    image = views.enlarged(Image.fromarray(np.arange(size[0] * size[1], dtype=np.int32).reshape(size)))
    for x in range(0, image.width, max(1, image.width // 40)):
        for y in range(0, image.height, max(1, image.height // 40)):
            row, column = views.pixel_at((x, y), size)
            assert image.getpixel((x, y)) == row * size[1] + column
    assert views.pixel_at((10**4, 10**4), size) == (size[0] - 1, size[1] - 1)


def test_the_curves_of_a_run(tmp_path):
    assert views.curves(tmp_path) == (None, "No epoch is finished yet.")
    shutil.copy(FROZEN / "stopped" / "metrics.csv", tmp_path)
    image, sentence = views.curves(tmp_path)
    assert image.width > 900
    assert sentence == "The run is not finished. Epochs so far: 1."
    (tmp_path / "test.json").touch()
    assert views.curves(tmp_path)[1].startswith("The run is finished.")


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for module in ("repmlp_app.page", "repmlp_cli.explore"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert main(["explore", str(FROZEN / "model")]) == 2
    assert "pip install '.[app]'" in capsys.readouterr().err
