"""`repmlp export`, and `repmlp eval` and `predict` on what it wrote."""

import json
import sys

import pytest
import timm

import repmlp
from needs import ONNX, OPENVINO, needs
from planted import wrong_reparameterize
from repmlp.data import load_data
from repmlp.deploy import load_exported
from repmlp_cli import main

needs(*ONNX, *OPENVINO)

TINY = ["--img-size=8", "--model_args.channels=[4]", "--model_args.partition_size=4", "--model_args.kernel_sizes=[1,3]"]
FILES = {"onnx": "deploy.onnx", "openvino": "deploy.xml", "torch": "deploy.pt2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained network, its deploy form beside it, and that one exported to all formats."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", str(folder), "--epochs=1", "--hflip=0", "--lr=0.1", *TINY]) == 0
    assert main(["convert", str(folder)]) == 0
    for format in FILES:
        assert main(["export", str(folder / "deploy"), "--format", format]) == 0
    return folder


@pytest.fixture
def digit(tmp_path):
    image, _ = load_data("digits").test[0]
    image.resize((20, 24)).save(tmp_path / "digit.png")
    return str(tmp_path / "digit.png")


def say(capsys, arguments):
    assert main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("format", FILES)
def test_eval_and_predict_take_the_file_as_they_take_the_folder(run, digit, capsys, format):
    file, folder = str(run / FILES[format]), str(run / "deploy")
    correct = json.loads((run / "test.json").read_text())["correct"]
    shown = say(capsys, ["eval", file, "digits"])
    assert f"exported to {format}" in shown
    assert f"{correct} of 360 correct" in shown
    assert shown.partition("correct")[2] == say(capsys, ["eval", folder, "digits"]).partition("correct")[2]
    assert say(capsys, ["predict", file, digit]) == say(capsys, ["predict", folder, digit])
    assert load_exported(file).metadata["label_names"] == [str(i) for i in range(10)]


def test_a_training_form_is_converted_first_with_proof(run, tmp_path, capsys):
    """The suffix of the file says the format."""
    shown = say(capsys, ["export", str(run), str(tmp_path / "a.pt2"), "--data=digits", "--images=7"])
    assert "converted first: relative error" in shown
    assert "equal within" in shown
    assert "torch, float32, any batch: images (batch, 1, 8, 8) -> logits (batch, 10)" in shown
    assert "relative error against PyTorch on random images, batch 5" in shown
    assert "on 7 given images" in shown
    assert f"next: repmlp eval {tmp_path / 'a.pt2'}" in shown


def test_the_default_output_is_beside_the_model(run, capsys):
    for model in (run, run / "model", run / "deploy"):
        shown = say(capsys, ["export", str(model), "--format=torch", "--overwrite"])
        assert f"wrote {run / 'deploy.pt2'}" in shown
        assert ("converted first" in shown) == (model != run / "deploy")


@pytest.mark.parametrize(("num_classes", "shown"), [(0, "logits (batch, 4), features"), (3, "logits (batch, 3) ")])
def test_the_width_of_the_output_is_shown_even_without_a_classifier(tmp_path, capsys, num_classes, shown):
    sizes = {"img_size": 8, "channels": [4], "partition_size": 4, "kernel_sizes": [1, 3]}
    repmlp.save_model(timm.create_model("repmlp_cifar", num_classes=num_classes, **sizes), tmp_path / "model")
    assert shown in say(capsys, ["export", str(tmp_path / "model"), str(tmp_path / "a.pt2")])


@pytest.mark.parametrize("switch", [["--no-convert"], ["--no_convert", "true"]])
def test_no_convert_refuses_a_training_form_and_says_why(run, tmp_path, capsys, switch):
    assert main(["export", str(run), str(tmp_path / "a.onnx"), *switch]) == 2
    error = capsys.readouterr().err
    assert "is in training form: its file would run every conv and batch norm" in error
    assert "convert it first" in error
    assert main(["export", str(run / "deploy"), str(tmp_path / "a.pt2"), "--format=torch", *switch]) == 0


def test_nothing_is_written_if_the_forms_differ(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("repmlp_cli.convert.reparameterize", wrong_reparameterize)
    assert main(["export", str(run), str(tmp_path / "a.onnx")]) == 1
    assert "the forms differ: nothing written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_opset_is_said(run, tmp_path, capsys):
    shown = say(capsys, ["export", str(run), str(tmp_path / "a.onnx"), "--opset=21"])
    assert "onnx opset 21, float32, any batch" in shown


def test_errors_are_one_line_that_says_what_to_do(run, tmp_path, capsys, monkeypatch):
    def error(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        return shown

    assert "deploy.onnx exists already" in error("export", run / "deploy")
    assert "there is no model folder" in error("export", tmp_path / "nothing" / "m")
    assert "end it in .onnx" in error("export", run, tmp_path / "a.xml", "--format=onnx")
    assert "use 18 or later" in error("export", run, tmp_path / "a.onnx", "--opset=9")
    assert "there is no exported file" in error("eval", tmp_path / "a.onnx", "digits")
    assert "there is no exported file" in error("predict", tmp_path / "a.pt2", "x.png")
    (tmp_path / "b.onnx").write_bytes((run / "deploy.onnx").read_bytes()[:99])
    assert "is damaged, or its format is not onnx" in error("eval", tmp_path / "b.onnx", "digits")
    (tmp_path / "c.txt").write_text("hello")
    assert "cannot tell the format of" in error("predict", tmp_path / "c.txt", "x.png")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install '.[onnx]'" in error("export", run, tmp_path / "a.onnx")
    assert "pip install '.[onnx]'" in error("eval", run / "deploy.onnx", "digits")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install '.[openvino]'" in error("export", run, tmp_path / "a.xml", "--format=openvino")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.onnx", "c.txt"]
