"""`repmlp quantize`, `repmlp eval` and `predict` on what it wrote, and `repmlp train --qat`."""

import json
import re

import pytest
import yaml

import repmlp
from needs import ONNX, needs
from repmlp.data import load_data
from repmlp.deploy import load_exported
from repmlp_cli import main

needs(*ONNX)

TINY = ["--img-size=8", "--model_args.channels=[4]", "--model_args.partition_size=4", "--model_args.kernel_sizes=[1,3]"]
DATA = ["--data", "digits", "--max-drop=100"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", str(folder), "--epochs=3", "--hflip=0", "--crop-padding=1", "--lr=0.1", *TINY]) == 0
    assert main(["convert", str(folder)]) == 0
    return folder


def say(capsys, arguments):
    assert main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("engine", "options", "file", "told"),
    [
        ("onnxruntime", [], "int8.onnx", "onnxruntime, static"),
        ("torch", ["--engine=torch"], "int8.torchscript", "torch, dynamic"),
    ],
)
def test_a_file_is_measured_written_and_run(run, tmp_path, capsys, monkeypatch, engine, options, file, told):
    shown = say(capsys, ["quantize", str(run), *DATA, *options])
    correct = json.loads((run / "test.json").read_text())["correct"]
    assert "converted first: relative error" in shown
    assert f"{told}, " in shown
    assert "points lost" in shown
    assert f"next: repmlp eval {run / file} digits" in shown
    assert load_exported(run / file).metadata["int8"]["engine"] == engine
    before, right = re.findall(r"\((\d+)/360\)", shown)
    assert int(before) == correct
    assert f"{right} of 360 correct" in say(capsys, ["eval", str(run / file), "digits"])
    monkeypatch.chdir(tmp_path)
    load_data("digits").test[0][0].resize((20, 24)).save("digit.png")
    assert "digit.png" in say(capsys, ["predict", str(run / file), "digit.png"])


def test_a_deploy_form_is_taken_as_it_is_and_dynamic_needs_no_calibration(run, tmp_path, capsys):
    file = tmp_path / "a.onnx"
    options = ["--method=dynamic", "--calibration-images=0", "--reduce-range"]
    shown = say(capsys, ["quantize", str(run / "deploy"), str(file), *DATA, *options])
    assert "converted first" not in shown
    assert "onnxruntime, dynamic, 7-bit weights" in shown
    assert load_exported(file).metadata["int8"]["weight_bits"] == 7


def test_fewer_calibration_images_than_asked_for_are_all_taken_and_that_is_said(run, tmp_path, capsys):
    shown = say(capsys, ["quantize", str(run), str(tmp_path / "a.onnx"), *DATA, "--calibration-images=5000"])
    assert "calibrating on all 1437 images of the training split: fewer than 5000" in shown
    shown = say(capsys, ["quantize", str(run), str(tmp_path / "b.onnx"), *DATA, "--calibration-images=30"])
    assert "calibrating" not in shown


def test_errors_say_what_to_do(run, tmp_path, capsys):
    def error(*arguments):
        assert main(["quantize", *(str(argument) for argument in arguments)]) == 2
        return capsys.readouterr().err

    new = tmp_path / "new.onnx"
    drop = ["--data=digits", "--method=dynamic", "--max-drop=-101"]
    assert "points of top-1, more than the -101 allowed" in error(run, new, *drop)
    assert "cannot calibrate on 0 images" in error(run, new, *DATA, "--calibration-images=0")
    assert "torch does not support 'static' int8" in error(
        run, tmp_path / "a.torchscript", *DATA, "--engine=torch", "--method=static"
    )
    assert "end it in .onnx" in error(run, tmp_path / "a.xml", *DATA)
    assert "there is no model folder" in error(tmp_path / "nothing", new, *DATA)
    new.write_text("mine")
    assert "pass --overwrite" in error(run, new, *DATA)
    assert "pass --data, or --method weights" in error(run, tmp_path / "other.onnx")


def test_training_for_int8(tmp_path, capsys):
    """The last epochs move no running statistics, and one of them is kept."""
    options = ["--hflip=0", "--crop-padding=1", "--lr=0.05", "--cpu", *TINY]
    folder = tmp_path / "qat"
    assert main(["train", str(folder), "--epochs=4", "--qat", "--qat-fraction=0.5", *options]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["qat"] is True
    assert json.loads((folder / "test.json").read_text())["epoch"] in (3, 4)
    steps = 1293 // 128 * 2  # of the first two epochs
    state = repmlp.load_model(folder).state_dict()
    tracked = [value.item() for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert set(tracked) == {steps}
    assert "top-1" in say(capsys, ["quantize", str(folder), *DATA, "--engine=torch"])


@pytest.mark.parametrize("fraction", ["0", "1.5"])
def test_a_fraction_that_is_none(tmp_path, capsys, fraction):
    assert main(["train", str(tmp_path / "r"), "--qat", f"--qat-fraction={fraction}"]) == 2
    assert "but has to be more than 0 and at most 1" in capsys.readouterr().err


def test_qat_of_a_network_without_blocks(tmp_path, capsys):
    arguments = ["train", str(tmp_path / "r"), "--model=test_resnet", "--img-size=32", "--qat", "--epochs=9"]
    assert main(arguments) == 2
    assert "this ResNet has no RepMLP block" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()  # found before anything was trained
