"""int8 weights, float32 activations: no data needed, every FC, few errors."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import repmlp
from needs import ONNX, OPENVINO, needs
from repmlp.deploy import export, load_exported, quantization, quantize
from repmlp_cli import main
from weights import randomize

needs(*ONNX, *OPENVINO)
onnx = pytest.importorskip("onnx")

FILES = {"onnxruntime": "a.onnx", "openvino": "a.xml"}


@pytest.fixture(scope="module")
def model():
    sizes = {"channels": (16,), "img_size": 16, "partition_size": 4, "kernel_sizes": (1, 3), "groups": 2}
    torch.manual_seed(0)
    return repmlp.reparameterize(randomize(timm.create_model("repmlp_cifar", num_classes=3, **sizes)))


@torch.no_grad()
def rounded(model):
    """The network with the weights of every FC rounded, by the definition."""
    model = quantization.split_groups(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.abs().amax(1, keepdim=True) / 127
            module.weight.copy_((module.weight / scale).round() * scale)
    return model


def relative_difference(outputs, expected):
    return ((outputs - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
@torch.no_grad()
def test_fc_weights_are_rounded_and_nothing_else(model, tmp_path, engine):
    done = quantize(model, tmp_path / FILES[engine], engine=engine, method="weights")
    assert (done.num_images, done.weight_bits) == (0, 8)
    assert np.isnan(done.drop)
    x = torch.randn(5, 3, 16, 16)
    exported, expected = load_exported(done.file, threads=1)(x), rounded(model)(x)
    # Both engines also round blocks of the input of such an FC, OpenVINO on CPUs with int8 instructions (VNNI).
    assert relative_difference(exported, expected) < 1e-2
    if engine == "openvino":
        import openvino

        whole_input = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        outputs = openvino.Core().compile_model(done.file, "CPU", whole_input)(x.numpy())
        assert relative_difference(torch.from_numpy(outputs[0]), expected) < 1e-5
    assert 1e-4 < done.error < 0.05
    assert done.size < 0.5 * export(model, tmp_path / "float.onnx").size


def test_the_onnx_file_holds_int8_and_standard_operators(model, tmp_path):
    done = quantize(model, tmp_path / "a.onnx", method="weights")
    graph = onnx.load(done.file)
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    expanded = [node for node in graph.graph.node if node.op_type == "DequantizeLinear"]
    fcs = sum(isinstance(module, nn.Linear) for module in quantization.split_groups(model).modules())
    assert len(expanded) == fcs
    assert all(constants[node.input[0]].data_type == onnx.TensorProto.INT8 for node in expanded)
    assert not any(node.op_type == "Gemm" for node in graph.graph.node)
    floats = [tensor for tensor in constants.values() if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(len(tensor.dims) != 2 or 1 in tensor.dims for tensor in floats)


def test_a_row_of_zeros_stays_zero(tmp_path):
    sizes = {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3)}
    model = repmlp.reparameterize(randomize(timm.create_model("repmlp_cifar", num_classes=3, **sizes)))
    with torch.no_grad():
        model.head.fc.weight[1] = 0
        model.head.fc.bias[1] = 2.0
    done = quantize(model, tmp_path / "a.onnx", method="weights")
    np.testing.assert_allclose(load_exported(done.file)(torch.randn(4, 3, 8, 8))[:, 1], 2.0)


@pytest.mark.slow
def test_without_images_outputs_that_change_too_much_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "MAX_ERROR", 1e-6)
    with pytest.raises(ValueError, match=r"changes the outputs for random images by .*, more than the 0% allowed"):
        quantize(model, tmp_path / "a.onnx", method="weights")
    assert not (tmp_path / "a.onnx").exists()
    images = torch.randn(8, 3, 16, 16)
    test = [(images, model(images).argmax(1))]
    assert quantize(model, tmp_path / "a.onnx", test, method="weights", max_drop=100).num_images == 8


def test_the_drop_limit_holds_with_images(model, tmp_path):
    test = [(torch.randn(4, 3, 16, 16), torch.zeros(4))]
    with pytest.raises(ValueError, match=r"weights\) loses .* more than the -101 allowed"):
        quantize(model, tmp_path / "a.onnx", test, method="weights", max_drop=-101)


def test_the_other_methods_need_images(model, tmp_path):
    with pytest.raises(ValueError, match=r"dynamic int8 needs labelled images .* or method='weights'"):
        quantize(model, tmp_path / "a.onnx", method="dynamic")


def test_the_command_needs_no_data(model, tmp_path, capsys):
    folder = repmlp.save_model(model, tmp_path / "m")
    assert main(["quantize", str(folder), str(tmp_path / "a.xml"), "--engine=openvino", "--method=weights"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "openvino, weights, 8-bit weights; no data" in shown
    assert "points lost" not in shown
    assert "python a.xml.check.py" in shown
    assert load_exported(tmp_path / "a.xml").metadata["int8"]["method"] == "weights"
