"""int8 files: scales per group and output channel, little loss, and no file where the loss is larger."""

import copy
import dataclasses
import itertools
import json
import sys
import zipfile

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import ConcatDataset, Subset

import repmlp
from needs import ONNX, needs
from repmlp.data import load_data
from repmlp.deploy import (
    calibration_images,
    export,
    export_metadata,
    load_exported,
    quantization,
    quantize,
    split_groups,
)
from repmlp.deploy.engines.onnx import cpu_lacks_vnni
from repmlp.deploy.quantization import SplitLinear
from repmlp.functional import fake_quantize
from repmlp.layers import GroupedLinear, RepMLP
from repmlp.training import build_test_loader, evaluate, train
from repmlp_settings import Train
from weights import randomize

needs(*ONNX)
onnx = pytest.importorskip("onnx")

WAYS = [("onnxruntime", "static"), ("onnxruntime", "dynamic"), ("torch", "dynamic")]
SUFFIX = {"onnxruntime": ".onnx", "torch": ".torchscript"}
LABELS = ["a", "b", "c"]


NETWORKS = {
    "repmlp_cifar": {"channels": (8,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3), "groups": 4},
    "repmlp_resnet50_light": {"channels": (16, 32, 64, 128), "layers": (1, 2, 2, 1), "img_size": 64, "groups": 4},
    "repmlpnet_t224": {"channels": (8,), "depths": (1,), "share_sets": (4,), "partition_sizes": (4,), "img_size": 32},
}


def network(name="repmlp_cifar"):
    sizes = NETWORKS[name]
    cfg = {"label_names": LABELS, "input_size": (3, sizes["img_size"], sizes["img_size"]), "crop_pct": 0.9}
    torch.manual_seed(0)
    return repmlp.reparameterize(randomize(timm.create_model(name, num_classes=3, pretrained_cfg_overlay=cfg, **sizes)))


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def images():
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def labelled(model, images):
    """Images that the model is always right about."""
    with torch.no_grad():
        return [(images, model(images).argmax(1))]


def make(model, folder, images, engine="onnxruntime", method="dynamic", **options):
    options = {"max_drop": 100.0, "overwrite": True, **options}
    calibration = images if method == "static" else None
    file = folder / f"a{SUFFIX[engine]}"
    return quantize(model, file, labelled(model, images), calibration, engine=engine, method=method, **options)


@pytest.fixture(scope="module")
def files(model, images, tmp_path_factory):
    """The network in int8, in every way."""
    return {
        (engine, method): make(model, tmp_path_factory.mktemp("int8"), images, engine, method)
        for engine, method in WAYS
    }


def visible(folder):
    """All but lock files, which stay where something was written."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".repmlp-lock-"))


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def initializers(file):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.no_grad()
def test_one_fc_per_group_is_the_grouped_fc(model, images, dtype):
    whole = copy.deepcopy(model).to(dtype)
    split = split_groups(whole)
    assert not any(isinstance(m, GroupedLinear) for m in split.modules())
    assert any(isinstance(m, GroupedLinear) for m in whole.modules())  # a copy was changed
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert relative_error(split(images.to(dtype)), whole(images.to(dtype))) < tolerance
    fc = GroupedLinear(6, 9, 3, bias=False, dtype=dtype)
    x = torch.randn(5, 6, dtype=dtype)
    torch.testing.assert_close(SplitLinear(fc)(x), fc(x))


@pytest.mark.parametrize(("engine", "method"), WAYS)
@torch.no_grad()
def test_int8_is_close_to_floating_point(model, images, files, engine, method):
    exported = load_exported(files[engine, method].file)
    assert relative_error(exported(images), model(images)) < 0.02
    assert exported(images[:1]).shape == (1, 3)  # any batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine", "method"),
    [
        ("repmlp_resnet50_light", "onnxruntime", "static"),
        ("repmlp_resnet50_light", "torch", "dynamic"),
        ("repmlpnet_t224", "onnxruntime", "static"),
        ("repmlpnet_t224", "torch", "dynamic"),
    ],
)
@torch.no_grad()
def test_other_networks(tmp_path, name, engine, method):
    model = network(name)
    images = torch.randn(32, *model.pretrained_cfg["input_size"])
    done = make(model, tmp_path, images, engine, method)
    assert relative_error(load_exported(done.file)(images), model(images)) < 0.05


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_fc3_has_one_scale_per_group_and_output_channel(model, images, files, tmp_path, method, reduce_range):
    done = files["onnxruntime", method]
    if reduce_range:
        done = make(model, tmp_path, images, method=method, reduce_range=True)
    elif cpu_lacks_vnni():
        pytest.skip("this CPU gets 7-bit weights always")
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(done.file).graph.initializer}
    largest = 64 if reduce_range else 127
    fcs = {name: module for name, module in model.named_modules() if isinstance(module, GroupedLinear)}
    for name, fc in fcs.items():
        for k, weight in enumerate(fc.weight.detach().numpy()):  # (Q, I)
            # Gemm takes it as it is; for MatMul it is transposed.
            stored = f"{name}.fcs.{k}.weight{'_Transposed' if method == 'dynamic' else ''}"
            scale, integers = found[f"{stored}_scale"], found[f"{stored}_quantized"]
            integers = integers.T if method == "dynamic" else integers
            assert scale.shape == (weight.shape[0],)
            np.testing.assert_allclose(scale, np.abs(weight).max(1) / largest, rtol=1e-5)
            assert integers.dtype == np.int8
            assert np.all(np.abs(integers * scale[:, None] - weight) <= 0.501 * scale[:, None])
    assert len(fcs) == 2
    assert done.weight_bits == (7 if reduce_range else 8)
    assert load_exported(done.file).metadata["int8"]["weight_bits"] == (7 if reduce_range else 8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network trained on the digits, converted; and the data."""
    settings = Train(
        output=str(tmp_path_factory.mktemp("runs") / "digits"),
        model_args={"channels": [8, 16], "partition_size": 4, "kernel_sizes": [1, 3]},
        img_size=8,
        hflip=0.0,
        crop_padding=1,
        epochs=15,
        batch_size=64,
        lr=0.1,
        cpu=True,
    )
    run = train(settings)
    assert run.test.accuracy > 0.9
    return repmlp.reparameterize(repmlp.load_model(run.folder)), load_data("digits"), run


def every_image(model, data):
    """All 1797 digits: one of the 360 test images alone would be 0.28 points."""
    return build_test_loader(model, dataclasses.replace(data, test=ConcatDataset([data.train, data.test])), 128)


@pytest.mark.parametrize(("engine", "method"), WAYS)
def test_a_trained_network_loses_at_most_half_a_point(digits, tmp_path, engine, method):
    model, data, _ = digits
    calibration = calibration_images(model, data, 128) if method == "static" else None
    test = every_image(model, data)
    done = quantize(model, tmp_path / f"a{SUFFIX[engine]}", test, calibration, engine=engine, method=method)
    assert done.num_images == 1797
    assert done.num_correct_float32 >= 0.9 * 1797
    assert done.drop == pytest.approx(100 * (done.num_correct_float32 - done.num_correct) / 1797)
    assert done.drop <= 0.5
    assert done.num_agree >= 0.985 * 1797
    assert done.size == done.file.stat().st_size
    assert done.size_float32 == 4 * sum(p.numel() for p in model.parameters())
    assert load_exported(done.file).metadata["label_names"] == [str(i) for i in range(10)]


@pytest.mark.parametrize("engine", SUFFIX)
def test_a_file_that_loses_more_is_not_written_and_an_earlier_one_stays(model, images, tmp_path, engine):
    file = tmp_path / f"a{SUFFIX[engine]}"
    file.write_text("earlier")
    with pytest.raises(ValueError, match=rf"int8 \({engine}, dynamic\) loses \S+ points of top-1, more than the -101"):
        make(model, tmp_path, images, engine, max_drop=-101)
    assert visible(tmp_path) == [file.name]
    assert file.read_text() == "earlier"


def test_the_loss_is_what_the_predictions_say(model, images, tmp_path, monkeypatch):
    class Wrong(nn.Module):
        """As the model, but for the first 16 images."""

        def forward(self, x):
            logits = model(x).clone()
            logits[:16] = logits[:16].roll(1, 1)
            return logits

    monkeypatch.setattr(quantization, "load_exported", lambda file: Wrong())
    monkeypatch.setattr(quantization, "write_check_files", lambda *args: 0.0)
    with pytest.raises(ValueError, match=r"loses 25\.00 points of top-1, more than the 24\.9 allowed: 100\.00% -> 75"):
        make(model, tmp_path, images, "torch", max_drop=24.9)
    done = make(model, tmp_path, images, "torch", max_drop=25.0)
    assert (done.num_images, done.num_correct_float32, done.num_correct, done.num_agree) == (64, 64, 48, 48)


@torch.no_grad()
def with_groups_of_very_different_magnitude(model, factor=1000.0):
    """The same network: FC3's group k divided by factor^k, which the conv after it makes up for (ReLU lies between)."""
    model = copy.deepcopy(model)
    layers = [layer for stage in model.stages for layer in stage if not isinstance(layer, nn.ReLU | nn.MaxPool2d)]
    for block, conv in itertools.pairwise(layers):
        if isinstance(block, RepMLP):
            fc3 = block.partition_perceptron.fc3
            divisors = factor ** torch.arange(fc3.groups).float()
            fc3.weight.div_(divisors.view(-1, 1, 1))
            fc3.bias.div_(divisors.repeat_interleave(len(fc3.bias) // fc3.groups))
            conv.conv.weight.mul_(divisors.repeat_interleave(block.out_channels // fc3.groups).view(1, -1, 1, 1))
    return model


@torch.no_grad()
def with_one_scale_for_all_groups(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, GroupedLinear):
            module.weight.copy_(fake_quantize(module.weight.flatten()).view_as(module.weight))
    return model


@pytest.mark.parametrize("engine", SUFFIX)
def test_groups_of_very_different_magnitude_keep_their_accuracy(digits, tmp_path, engine):
    model, data, _ = digits
    scaled = with_groups_of_very_different_magnitude(model)
    test = every_image(model, data)
    done = quantize(scaled, tmp_path / f"a{SUFFIX[engine]}", test, engine=engine, method="dynamic")
    assert done.num_correct_float32 >= 0.95 * 1797
    assert done.drop <= 0.5
    one_scale = evaluate(with_one_scale_for_all_groups(scaled), test, Accelerator(cpu=True))
    assert (
        done.num_correct_float32 - one_scale.correct > 180
    )  # ten points and more are lost with one scale for all groups


@pytest.mark.parametrize(("engine", "method"), WAYS)
def test_a_file_says_what_an_exported_file_says_and_how_it_was_rounded(model, files, engine, method):
    metadata = load_exported(files[engine, method].file).metadata
    bits = 7 if cpu_lacks_vnni() and engine == "onnxruntime" else 8
    assert metadata.pop("int8") == {"engine": engine, "method": method, "weight_bits": bits}
    assert metadata == json.loads(json.dumps(export_metadata(model)))
    assert metadata["label_names"] == LABELS


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_an_onnx_file_needs_standard_operators_only(files, method):
    written = onnx.load(files["onnxruntime", method].file)
    onnx.checker.check_model(written, full_check=True)
    assert [(opset.domain, opset.version) for opset in written.opset_import] == [("", 20)]
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("MatMulInteger" if method == "dynamic" else "Gemm") == 2 * (4 + 2) + 1  # FC3, FC1, FC2; head
    assert written.graph.node[-1].op_type != "DequantizeLinear"  # logits are not rounded


def test_a_torchscript_file_has_every_fc_in_int8(files):
    graph = str(torch.jit.load(files["torch", "dynamic"].file).inlined_graph)
    assert "quantized::linear_dynamic" in graph
    assert "aten::bmm" not in graph  # the grouped FC
    assert "aten::linear" not in graph


@pytest.mark.parametrize("engine", SUFFIX)
def test_a_file_names_nothing_of_the_machine(files, engine):
    file = files[engine, "dynamic"].file
    if engine == "torch":
        with zipfile.ZipFile(file) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    else:
        parts = [file.read_bytes()]
    for package in (repmlp, timm, torch):
        folder = package.__file__.removesuffix("/__init__.py").encode()
        assert not any(folder in part for part in parts)


def test_7_bits_where_sums_of_16_bits_overflow(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert cpu_lacks_vnni()
    assert make(model, tmp_path, images).weight_bits == 7
    assert make(model, tmp_path, images, "torch").weight_bits == 8
    for flag in ("avx512_vnni", "avx_vnni"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flag=flag: {flag: True}, raising=False)
        assert not cpu_lacks_vnni()
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not cpu_lacks_vnni()


def test_the_model_stays_as_it_is(model, images, tmp_path):
    before = copy.deepcopy(model).state_dict()
    make(model, tmp_path, images, "torch")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_timm_network_is_quantized_too(tmp_path):
    model = timm.create_model("test_resnet", num_classes=4).eval()
    images = torch.randn(16, 3, 160, 160)
    done = quantize(model, tmp_path / "a.onnx", labelled(model, images), images, max_drop=100)
    with torch.no_grad():
        assert relative_error(load_exported(done.file)(images), model(images)) < 0.1


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("a.onnx", {"engine": "tensorrt"}, "unknown engine 'tensorrt': use torch, onnxruntime, openvino"),
        ("a.torchscript", {"engine": "torch", "method": "static"}, "torch does not support 'static' int8: use dynamic"),
        ("a.pt2", {}, "end it in .onnx"),
        ("a.onnx", {"engine": "torch"}, "end it in .torchscript"),
        ("a.onnx", {"calibration": None}, r"calibrated on images \(N, 3, 8, 8\), but got none"),
        ("a.onnx", {"calibration": torch.rand(5, 3, 9, 8)}, r"but got \[5, 3, 9, 8\]"),
        ("a.onnx", {"calibration": torch.rand(0, 3, 8, 8)}, r"but got \[0, 3, 8, 8\]"),
        ("a.onnx", {"test": [], "method": "dynamic"}, "no images to measure the accuracy on"),
    ],
)
def test_arguments_that_do_not_fit(model, images, tmp_path, file, options, message):
    options = {"test": [(images, torch.zeros(64))], "calibration": images, **options}
    with pytest.raises(ValueError, match=message):
        quantize(model, tmp_path / file, **options)
    assert visible(tmp_path) == []


def test_calibration_images_are_training_images_prepared_for_the_model(digits):
    model, data, _ = digits
    images = calibration_images(model, data, 40)
    assert images.shape == (40, 1, 8, 8)
    assert torch.equal(images, calibration_images(model, data, 40))
    assert not torch.equal(images, calibration_images(model, data, 40, seed=1))
    assert abs(images.mean().item()) < 0.2  # normalized
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"cannot calibrate on {count} images: use 1 or more"):
            calibration_images(model, data, count)
    few = dataclasses.replace(data, train=Subset(data.train, range(5)))
    assert len(calibration_images(model, few, 40)) == 5
    with pytest.raises(ValueError, match="takes images of 3 channels, the data has 1"):
        calibration_images(network(), data, 5)


def test_the_training_form_an_existing_file_and_a_missing_package(model, images, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"training form: .*repmlp\.reparameterize"):
        quantize(timm.create_model("repmlp_cifar"), tmp_path / "a.onnx", [], method="dynamic")
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        make(model, tmp_path, images, overwrite=False)
    with pytest.raises(ValueError, match="torchscript files are for int8 only"):
        export(model, tmp_path / "a.torchscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[onnx\]'"):
        make(model, tmp_path, images)


def test_a_pytorch_without_int8_is_an_error_that_names_the_other_engine(model, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(ValueError, match="cannot quantize this CifarNet, use onnxruntime: "):
        make(model, tmp_path, images, "torch")
    assert visible(tmp_path) == []
