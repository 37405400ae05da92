"""Commands on images that a person brings: class names in another order, rotated photos, nothing to list."""

import pytest
import timm
import torch
from PIL import Image

import repmlp
from needs import ONNX, needs
from pictures import picture
from repmlp_cli import main

SIZES = {"channels": [4], "img_size": 8, "partition_size": 4, "kernel_sizes": [1, 3]}


@pytest.fixture
def model(tmp_path):
    """A network that takes every image for a dog, its first class."""
    network = timm.create_model("repmlp_cifar", num_classes=2, **SIZES)
    with torch.no_grad():
        network.get_classifier().bias.copy_(torch.tensor([100.0, 0.0]))
    repmlp.save_model(network, tmp_path / "model", label_names=["dog", "cat"])
    return str(tmp_path / "model")


@pytest.fixture
def photos(tmp_path):
    """Two cats and two dogs to train on; one cat and three dogs to test on."""
    seeds = iter(range(8))
    for split, name, count in (("train", "cat", 2), ("train", "dog", 2), ("val", "cat", 1), ("val", "dog", 3)):
        (tmp_path / "photos" / split / name).mkdir(parents=True)
        for i in range(count):
            picture(next(seeds)).save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path / "photos"


def test_classes_are_matched_by_name(model, photos, capsys):
    assert main(["eval", model, f"folder:{photos}"]) == 0
    assert "3 of 4 correct" in capsys.readouterr().out
    assert main(["eval", model, f"folder:{photos}", "--labels", "by-index"]) == 0
    assert "1 of 4 correct" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["eval", "verify", "quantize", "export"])
def test_other_class_names_are_refused(model, photos, capsys, command):
    if command in ("quantize", "export"):
        needs(*ONNX)
    for split in ("train", "val"):
        (photos / split / "dog").rename(photos / split / "a_dog")
    data = f"folder:{photos}"
    arguments = {"eval": [data], "quantize": ["--data", data, "--calibration-images", "2"]}.get(
        command, ["--data", data]
    )
    assert main([command, model, *arguments]) == 2
    error = capsys.readouterr().err
    assert "a_dog in the data, dog in the model" in error
    assert "pass --labels" in error
    if command in ("eval", "verify"):
        assert main([command, model, *arguments, "--labels", "by-index"]) == 0


def test_eval_says_how_many_photos_it_turned(model, photos, capsys):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(0).save(photos / "val" / "dog" / "1.png", exif=exif)
    assert main(["eval", model, f"folder:{photos}"]) == 0
    assert "1 image was rotated according to the EXIF orientation" in capsys.readouterr().out
    picture(0).save(photos / "val" / "dog" / "1.png")
    assert main(["eval", model, f"folder:{photos}"]) == 0
    assert "turned" not in capsys.readouterr().out


def test_predict_lists_as_many_labels_as_asked_for(model, photos, capsys):
    image = str(photos / "val" / "cat" / "0.png")
    for top, count in ((1, 1), (2, 2), (9, 2)):
        assert main(["predict", model, image, "--top", str(top)]) == 0
        shown = capsys.readouterr().out
        assert shown.count("%") == count
        assert "dog" in shown
    assert main(["predict", model, image, "--top", "0"]) == 2
    assert "--top=0 lists no labels: use 1 or more" in capsys.readouterr().err


def test_predict_without_a_classifier(tmp_path, photos, capsys):
    repmlp.save_model(timm.create_model("repmlp_cifar", num_classes=0, **SIZES), tmp_path / "headless")
    assert main(["predict", str(tmp_path / "headless"), str(photos / "val" / "cat" / "0.png")]) == 2
    assert "has no classifier (num_classes is 0), so it predicts no labels" in capsys.readouterr().err


def test_predict_and_eval_see_the_same_pixels(model, photos, capsys, monkeypatch):
    """A 16-bit gray image, transparent or turned, is what it was in training."""
    seen = []
    forward = torch.nn.Module.__call__

    def watched(self, *args, **kwargs):
        if type(self).__name__ == "CifarNet":
            seen.append(args[0].detach().clone())
        return forward(self, *args, **kwargs)

    exif = Image.Exif()
    exif[0x0112] = 6
    path = photos / "val" / "cat" / "0.png"
    image = picture(3, 16, 16).convert("RGBA")
    image.putalpha(128)
    image.save(path, exif=exif)
    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    assert main(["eval", model, f"folder:{photos}", "--batch-size", "1"]) == 0
    assert main(["predict", model, str(path)]) == 0
    assert torch.equal(seen[0], seen[-1])
