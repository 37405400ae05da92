"""`repmlp convert --fold`: conversion and folding in one step, proved, written and read back."""

import re

import pytest
import timm

import repmlp
from pictures import picture
from repmlp.training.config import write_settings
from repmlp_cli import main
from repmlp_settings import Train
from tiny import TINY
from weights import randomize


@pytest.fixture
def folder(tmp_path):
    def write(name):
        model = randomize(timm.create_model(name, num_classes=5))
        return str(repmlp.save_model(model, tmp_path / "model", data_config={"input_size": (3, 64, 64)}))

    return write


def norms(model):
    return [module for module in model.modules() if "BatchNorm" in type(module).__name__]


def test_fold_converts_and_folds(folder, tmp_path, capsys):
    assert main(["convert", folder("lcnetv2_small"), str(tmp_path / "deploy"), "--fold"]) == 0
    printed = capsys.readouterr().out
    assert "21 of 21 batch norms folded" in printed
    model = repmlp.load_model(tmp_path / "deploy")
    assert repmlp.is_reparameterized(model)
    assert not norms(model)
    assert main(["convert", str(tmp_path / "deploy"), str(tmp_path / "again"), "--fold"]) == 0
    assert "has nothing to convert or fold: nothing written" in capsys.readouterr().out
    assert not (tmp_path / "again").exists()


def test_a_network_without_blocks_can_be_folded(folder, tmp_path, capsys):
    model = folder("test_resnet")
    assert main(["convert", model, str(tmp_path / "deploy")]) == 2
    assert "nothing to convert" in capsys.readouterr().err
    assert main(["convert", model, str(tmp_path / "deploy"), "--fold"]) == 0
    assert not norms(repmlp.load_model(tmp_path / "deploy"))


def test_nothing_is_written_if_a_fold_goes_wrong(folder, tmp_path, capsys, monkeypatch):
    def wrong(model):
        folded = repmlp.fold_norms(model)
        folded.conv1[0].bias.data[0] += 1
        return folded

    monkeypatch.setattr("repmlp_cli.convert.fold_norms", wrong)
    assert main(["convert", folder("test_resnet"), str(tmp_path / "deploy"), "--fold"]) == 1
    assert not (tmp_path / "deploy").exists()


def test_the_authors_names_have_no_folded_form(folder, tmp_path, capsys):
    assert main(["convert", folder("test_resnet"), str(tmp_path / "x.pth"), "--fold", "--to", "official"]) == 2
    assert "leave out --fold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda val: None, ""),
        (lambda val: (val / "dog").rename(val / "dox"), "the classes of .* differ"),
        (
            lambda val: [(val.with_name(split) / "eel").symlink_to(val / "cat") for split in ("train", "val")],
            "2 classes",
        ),
        (lambda val: (val / "cat" / "0.png").write_bytes(b""), "0.png is not an image that can be read"),
        (lambda val: val.parent.rename(val.parent.with_name("moved")), "not available"),
    ],
)
def test_a_run_is_converted_although_its_data_has_changed(tmp_path, capsys, change, reason):
    run, images = tmp_path / "run", tmp_path / "images"
    for i, folder in enumerate(images / split / name for split in ("train", "val") for name in ("cat", "dog")):
        folder.mkdir(parents=True)
        picture(i).save(folder / "0.png")
    model = timm.create_model("repmlp_cifar", num_classes=2, img_size=8, **TINY["model_args"])
    repmlp.save_model(randomize(model), run / "model", ["cat", "dog"])
    write_settings(run / "config.yaml", Train(output=str(run), data=f"folder:{images}"))
    change(images / "val")
    assert main(["convert", str(run)]) == 0
    printed = capsys.readouterr().out
    assert ("compared on 2 test images" in printed) == (not reason)
    told = "compared on random images only, since the test images of folder:"
    if reason == "not available":
        told = "compared on 8 random images only: folder:"
    assert re.search(f"{told}.*{reason}", printed) or not reason
    assert repmlp.is_reparameterized(repmlp.load_model(run / "deploy"))
