"""README.md beside the weights that a command writes."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

import repmlp
from repmlp.files import is_sealed
from repmlp_cli import main

TINY = ["--img-size=8", "--model_args.channels=[4]", "--model_args.partition_size=4", "--model_args.kernel_sizes=[1,3]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(folder), "--epochs=1", "--train-images=100", "--lr=0.01", *TINY]) == 0
    return folder


def card(folder: Path) -> str:
    assert is_sealed(folder / "README.md")
    return (folder / "README.md").read_text()


def test_quantize_describes_int8(run, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    file = tmp_path / "int8.onnx"
    assert main(["quantize", str(run), str(file), "--method=weights", "--data=digits", "--max-drop=100"]) == 0
    text = card(tmp_path)
    assert "onnxruntime, weights, 8-bit weights" in text
    assert re.search(r"\| top-1 \| [\d.]+% \(\d+/360\) \| [\d.]+% \(\d+/360\) \|", text)
    assert "load_exported('int8.onnx')" in text


def test_train_convert_and_export_describe_what_they_write(run, capsys, monkeypatch):
    accuracy = json.loads((run / "test.json").read_text())["accuracy"]
    assert f"at the end of training, in training form: {accuracy:.2%} of 360." in card(run / "model")
    assert main(["convert", str(run)]) == 0
    assert "equal within" in card(run / "deploy")
    (run / "deploy" / "README.md").write_text(
        card(run / "deploy").replace("---\n", "---\nlicense: mit\n", 1)
    )  # theirs now
    assert main(["convert", str(run), "--overwrite"]) == 0
    assert "kept" in capsys.readouterr().out
    assert yaml.safe_load((run / "deploy" / "README.md").read_text().split("---\n")[1])["license"] == "mit"
    repmlp.load_model(run / "deploy")
    assert main(["export", str(run / "deploy"), str(run / "deploy.pt2"), "--format=torch"]) == 0
    text = card(run)
    assert "license: mit" in text
    assert "| random images, batch 5 |" in text
    assert str(run) not in text
    monkeypatch.chdir(run)
    Image.new("L", (8, 8)).save("image.png")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, {})
    assert "tensor([[" in capsys.readouterr().out
    Path("image.png").unlink()
    assert main(["train", str(run), "--epochs=1", "--train-images=100", "--overwrite", *TINY]) == 2
    assert "deploy/README.md" in capsys.readouterr().err  # the user's
    Path("deploy/README.md").unlink()
    assert main(["train", str(run), "--epochs=1", "--train-images=100", "--overwrite", *TINY]) == 0
    assert not Path("README.md").exists()  # it described files that are gone
    assert "deploy form" in card(run / "model")
