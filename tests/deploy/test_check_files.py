"""The check next to a file passes for that file on this machine, and fails for any other or broken one."""

import copy
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch

import repmlp
from needs import ONNX, OPENVINO, needs
from repmlp.deploy import export, quantize
from repmlp.deploy.engines import EXPORTERS, QUANTIZERS
from weights import randomize

needs(*ONNX, *OPENVINO)

#: Written, by format or by engine and method of int8.
WAYS = ["onnx", "openvino", "torch", ("onnxruntime", "static"), ("torch", "dynamic")]
SLOW = ("openvino", ("onnxruntime", "static"))
ODD_NAME = "ein Netz (1) 'zwölf' 模型"


def network():
    sizes = {"channels": (8,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3), "groups": 2}
    torch.manual_seed(0)
    return repmlp.reparameterize(randomize(timm.create_model("repmlp_cifar", num_classes=3, **sizes)))


def write(way, model, folder, name=ODD_NAME):
    if isinstance(way, str):
        return export(model, folder / f"{name}{EXPORTERS[way].suffix}", overwrite=True).file
    engine, method = way
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    test = [(images, model(images).argmax(1))]
    file = folder / f"{name}{QUANTIZERS[engine].suffix}"
    return quantize(model, file, test, images, engine=engine, method=method, max_drop=100, overwrite=True).file


def check(file):
    """Run the script in this process, whose environment stays; returns its exit status."""
    with mock.patch.dict(os.environ):
        return runpy.run_path(str(file.with_name(f"{file.name}.check.py")))["main"]()


@torch.no_grad()
def different(model, factor):
    """The same network with one group of the last FC3 scaled."""
    model = copy.deepcopy(model)
    [*_, fc3] = [module for name, module in model.named_modules() if name.endswith("fc3")]
    fc3.weight[0] *= factor
    return model


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS], ids=str)
def test_the_check_finds_another_network_in_the_file(tmp_path, way, capsys):
    model = network()
    file = write(way, model, tmp_path)
    assert check(file) == 0
    assert "logits: error" in capsys.readouterr().out
    other = different(model, 0.999 if isinstance(way, str) else 0.5)  # int8 rounds
    written = write(way, other, tmp_path / "other")
    for part in [file, file.with_suffix(".bin")] if way == "openvino" else [file]:
        shutil.copy(written.with_name(part.name), part)
    assert check(file) == 1
    shown = capsys.readouterr().out
    assert "DOES NOT COMPUTE THE SAME" in shown
    assert file.name in shown


@pytest.mark.parametrize("way", ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "torch"])
def test_the_check_finds_a_damaged_and_a_missing_file(tmp_path, way, capsys):
    file = write(way, network(), tmp_path)
    data = file.with_suffix(".bin") if way == "openvino" else file
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    assert check(file) == 1
    data.unlink()
    assert check(file) == 1
    assert "DOES NOT RUN" in capsys.readouterr().out


def test_the_check_finds_a_flipped_weight(tmp_path):
    """What no loader sees: a bit of one float in the file."""
    file = write("openvino", network(), tmp_path)
    weights = file.with_suffix(".bin")
    floats = np.fromfile(weights, np.float32, count=weights.stat().st_size // 4)
    largest = int(np.nanargmax(np.where(np.abs(floats) < 100, np.abs(floats), 0)))
    floats[largest] *= -1
    weights.write_bytes(floats.tobytes())
    assert check(file) == 1


def test_the_script_needs_only_numpy_and_the_engine_and_runs_from_anywhere(tmp_path):
    folder = tmp_path / "a folder"
    file = write("onnx", network(), folder)
    script = file.with_name(f"{file.name}.check.py")
    blocked = tmp_path / "blocked"
    for package in ("torch", "repmlp", "timm"):
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text("raise ImportError('not on the target machine')")
    environment = {**os.environ, "PYTHONPATH": str(blocked), "ORT_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, script], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "computes the same" in done.stdout
    assert str(tmp_path) not in script.read_text(encoding="utf-8")


def test_the_reference_is_float64_and_the_bound_is_tight(tmp_path):
    model = network()
    file = write("torch", model, tmp_path)
    data = np.load(file.with_name(f"{file.name}.check.npz"))
    assert data["images"].shape == (8, 3, 8, 8)
    assert data["images"].dtype == np.float32
    assert data["output:logits"].dtype == np.float64
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.from_numpy(data["images"]).double())
    np.testing.assert_array_equal(data["output:logits"], expected.numpy())
    assert 1e-5 <= float(data["bound"]) < 1e-3  # of how much the logits differ between images
    rounded = write(("onnxruntime", "static"), model, tmp_path)
    bound = float(np.load(rounded.with_name(f"{rounded.name}.check.npz"))["bound"])
    assert bound > 1e-3  # of the rounding


def test_check_files_that_exist_are_not_overwritten_silently(tmp_path):
    mine = tmp_path / "a.pt2.check.py"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.pt2\.check\.py exists already"):
        export(network(), tmp_path / "a.pt2")
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    export(network(), tmp_path / "b.pt2")
    assert Path(tmp_path / "b.pt2.check.py").is_file()
