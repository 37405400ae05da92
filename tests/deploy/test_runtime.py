"""Exported files are read by their engine alone; what cannot be read is refused by name."""

import os
import shutil
import sys

import pytest
import timm
import torch

import repmlp
from needs import ONNX, OPENVINO, needs
from repmlp.deploy import export, load_any, load_exported
from repmlp.deploy.engines import EXPORTERS
from weights import randomize

needs(*ONNX, *OPENVINO)
onnx = pytest.importorskip("onnx")

FORMATS = ("onnx", "openvino", "torch")
SUFFIXES = {format: engine.suffix for format, engine in EXPORTERS.items()}


@pytest.fixture(scope="module")
def network():
    args = {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3), "num_classes": 3}
    return repmlp.reparameterize(randomize(timm.create_model("repmlp_cifar", **args)))


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The network in each format."""
    folder = tmp_path_factory.mktemp("exported")
    return {format: export(network, folder / f"net{SUFFIXES[format]}").file for format in FORMATS}


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def test_reading_needs_only_the_engine(files, monkeypatch):
    for module in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, module, None)
    load_exported(files["onnx"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[onnx\]'"):
        load_exported(files["onnx"])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[openvino\]'"):
        load_exported(files["openvino"])


def test_no_engine_reports_its_use(files):
    """onnxruntime and openvino send statistics, unless they are told otherwise before they are imported."""
    load_exported(files["openvino"])
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert sys.modules["openvino.tools.ovc.convert_impl"].tm.__name__ == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_file(files, tmp_path, format):
    whole = files[format].read_bytes()
    file = tmp_path / f"a{SUFFIXES[format]}"
    for content in (whole[: len(whole) // 2], whole[:10], b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a{SUFFIXES[format]} is damaged, or its format is not {format}"):
            load_exported(file)


@pytest.mark.parametrize("kept", [0, 100])
def test_openvino_weights_that_are_missing_or_cut_short(files, tmp_path, kept):
    file = shutil.copy(files["openvino"], tmp_path / "a.xml")
    if kept:
        weights = files["openvino"].with_suffix(".bin").read_bytes()
        (tmp_path / "a.bin").write_bytes(weights[:kept])
    with pytest.raises(ValueError, match=r"a\.xml is damaged"):
        load_exported(file)


def test_a_file_of_another_origin(files, tmp_path):
    model = onnx.load(files["onnx"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="does not say which images it takes"):
        load_exported(tmp_path / "a.onnx")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no exported file .*a\.onnx"):
        load_any(tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        load_any(tmp_path / "a")


def test_load_takes_folders_and_files(network, files, tmp_path):
    repmlp.save_model(network, tmp_path / "m")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = load_any(tmp_path / "m")(x)
        assert relative_error(load_any(files["onnx"])(x), expected) < 1e-6
        assert relative_error(load_any(files["torch"]).eval().train()(x), expected) < 1e-6


def test_images_of_another_size_are_refused(files):
    for format in FORMATS:
        with pytest.raises(
            ValueError, match=r"got images of shape \[2, 3, 9, 9\], but the exported network takes \(N, 3, 8, 8\)"
        ):
            load_exported(files[format])(torch.randn(2, 3, 9, 9))


def test_threads_of_pytorch_are_set(files):
    before = torch.get_num_threads()
    try:
        load_exported(files["torch"], threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
