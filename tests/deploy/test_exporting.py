"""Exported files compute what the network computes, say what they are, and are not there if they do not."""

import copy
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

import repmlp
from needs import ONNX, OPENVINO, needs
from repmlp.deploy import compare, export, exporting, load_exported
from repmlp.deploy.engines import EXPORTERS
from weights import randomize

needs(*ONNX, *OPENVINO)
onnx = pytest.importorskip("onnx")

FORMATS = ("onnx", "openvino", "torch")
SUFFIXES = {format: engine.suffix for format, engine in EXPORTERS.items()}
LABELS = ["cat", 'an "odd" <one> & so on', "zwölf\n"]
NETWORKS = {
    "repmlp_cifar": {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3)},  # P = 4
    # 8x8 and 4x4 in c3 and c4, padded to partitions of 7x7: P = 4 and 1
    "repmlp_resnet50_light": {"img_size": 64, "channels": (16, 32, 64, 128), "layers": (1, 2, 2, 1)},
    "repmlpnet_t224": {
        "img_size": 64,
        "channels": (8, 16),
        "depths": (1, 1),
        "share_sets": (1, 4),
        "partition_sizes": (16, 4),  # the maps are 16x16 and 8x8: P = 1 and 4
    },
}


def deployed(name: str = "repmlp_cifar", **changes) -> nn.Module:
    size = NETWORKS[name]["img_size"]
    cfg = {"label_names": LABELS, "input_size": (3, size, size), "mean": (0.1, 0.2, 0.3), "crop_pct": 0.9}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, pretrained_cfg_overlay=cfg, **{**NETWORKS[name], **changes})
    return repmlp.reparameterize(randomize(model))


@pytest.fixture(scope="module")
def networks():
    return {name: deployed(name) for name in NETWORKS}


#: The networks; `make test-deploy` takes the first one only.
EACH = [name if i == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(NETWORKS)]


class Files(dict[tuple[str, str], Path]):
    """Networks in formats, by both their names; written when asked for."""

    def __init__(self, networks: dict[str, nn.Module], folder: Path) -> None:
        self.networks, self.folder = networks, folder

    def __missing__(self, key: tuple[str, str]) -> Path:
        name, format = key
        self[key] = export(self.networks[name], self.folder / f"{name}{SUFFIXES[format]}").file
        return self[key]


@pytest.fixture(scope="module")
def files(networks, tmp_path_factory):
    return Files(networks, tmp_path_factory.mktemp("exported"))


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def size_of(model):
    return timm.models.get_model_input_config(model)["input_size"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_a_file_computes_what_the_network_computes(networks, files, name, format):
    model, exported = networks[name], load_exported(files[name, format], threads=1)
    for n in (1, 2, 5):
        x = torch.randn(n, *size_of(model))
        assert exported(x).shape == (n, 3)
        assert relative_error(exported(x), model(x)) < 1e-4
    assert exported(x.double()).dtype == torch.float32  # what the files compute in


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_says_how_to_prepare_images_and_what_the_outputs_mean(networks, files, format):
    model, exported = networks["repmlp_cifar"], load_exported(files["repmlp_cifar", format])
    assert exported.num_classes == 3
    assert exported.metadata["label_names"] == LABELS
    assert exported.metadata["architecture"] == "repmlp_cifar"
    assert exported.metadata["made_by"] == f"repmlp {repmlp.__version__}"
    assert resolve_data_config(model=exported) == resolve_data_config(model=model)
    assert exported.metadata["mean"] == [0.1, 0.2, 0.3]
    assert "format=" + format in repr(exported)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", EACH)
def test_a_file_is_one_file_and_names_nothing_of_the_machine(files, name, format):
    file = files[name, format]
    parts = sorted(path.suffix for path in file.parent.glob(f"{name}.*") if format_by(path) == format)
    assert parts == ([".bin", ".xml"] if format == "openvino" else [file.suffix])
    assert str(Path(repmlp.__file__).parents[1]).encode() not in file.read_bytes()
    assert str(Path(timm.__file__).parents[1]).encode() not in file.read_bytes()


def format_by(path):
    return {".onnx": "onnx", ".pt2": "torch", ".xml": "openvino", ".bin": "openvino"}.get(path.suffix)


def visible(folder):
    """All but lock files, which stay where something was written."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".repmlp-lock-"))


@pytest.mark.parametrize("name", EACH)
def test_the_onnx_file_has_the_names_that_are_promised(files, networks, name):
    model = onnx.load(files[name, "onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    (images,), (logits,) = model.graph.input, model.graph.output
    batch, *size = images.type.tensor_type.shape.dim
    assert (images.name, batch.dim_param) == ("images", "batch")
    assert [d.dim_value for d in size] == list(size_of(networks[name]))
    assert (logits.name, logits.type.tensor_type.shape.dim[0].dim_param) == ("logits", "batch")
    assert [entry.key for entry in model.metadata_props] == ["repmlp"]
    assert not any(node.metadata_props for node in model.graph.node)  # the exporter's notes


def test_the_onnx_file_has_the_opset_asked_for(networks, tmp_path):
    done = export(networks["repmlp_cifar"], tmp_path / "a.onnx", opset=18)
    assert done.opset == onnx.load(done.file).opset_import[0].version == 18


def test_the_onnx_file_of_a_pure_mlp_has_no_conv_larger_than_1x1_and_no_batch_norm(files):
    graph = onnx.load(files["repmlp_cifar", "onnx"]).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    convs = [shapes[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert convs
    assert all(kernel[2:] == [1, 1] for kernel in convs)
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


@pytest.mark.parametrize("name", EACH)
def test_the_openvino_file_has_the_names_that_are_promised(files, networks, name):
    import openvino

    model = openvino.Core().read_model(files[name, "openvino"])
    assert model.input("images").partial_shape == openvino.PartialShape([-1, *size_of(networks[name])])
    assert model.output("logits").partial_shape == openvino.PartialShape([-1, 3])


@pytest.mark.parametrize("format", ["torch", "openvino"])
def test_real_images_are_compared_too(networks, tmp_path, format):
    images = torch.rand(3, *size_of(networks["repmlp_cifar"]))
    done = export(networks["repmlp_cifar"], tmp_path / f"a{SUFFIXES[format]}", images=images)
    wanted = ["random images, batch 1", "random images, batch 2", "random images, batch 5", "3 given images"]
    assert list(done.errors) == wanted
    assert max(done.errors.values()) < 1e-4
    assert done.format == format
    parts = [name for name in visible(tmp_path) if ".check." not in name]
    assert done.size == sum((tmp_path / name).stat().st_size for name in parts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_file_is_float32_whatever_the_model_is(tmp_path, dtype):
    model = deployed().to(dtype)
    exported = load_exported(export(model, tmp_path / "a.pt2").file)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(exported(x), model.float()(x)) < 1e-6
    assert next(deployed().to(dtype).parameters()).dtype == dtype  # the model itself is not changed


def test_a_timm_model_that_has_nothing_to_convert_is_exported_as_it_is(tmp_path):
    model = timm.create_model("test_resnet", num_classes=4).eval()
    done = export(model, tmp_path / "a.pt2")
    assert max(done.errors.values()) < 1e-4
    assert "label_names" not in done.metadata


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_computes_something_else_is_not_kept(networks, tmp_path, monkeypatch, format):
    """The last bias of what is exported is off by a thousandth of the outputs."""
    trace = exporting.trace

    @torch.no_grad()
    def trace_another(model):
        other = copy.deepcopy(model)
        other.head.fc.bias += 1e-3 * model(torch.randn(8, 3, 8, 8)).abs().mean()
        return trace(other)

    monkeypatch.setattr(exporting, "trace", trace_another)
    file = tmp_path / f"a{SUFFIXES[format]}"
    with pytest.raises(ValueError, match=r"does not compute what the network computes, .* allowed 1e-04"):
        export(networks["repmlp_cifar"], file)
    assert visible(tmp_path) == []


def test_nan_is_not_agreement(networks, tmp_path, monkeypatch):
    broken = deployed()
    with torch.no_grad():
        broken.head.fc.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="relative error inf on random images, batch 1"):
        export(broken, tmp_path / "a.pt2")
    assert compare(networks["repmlp_cifar"], broken)["random images, batch 2"] == float("inf")


def test_a_failed_export_leaves_the_earlier_file(networks, tmp_path, monkeypatch):
    file = export(networks["repmlp_cifar"], tmp_path / "a.pt2").file
    before = file.read_bytes()
    with pytest.raises(ValueError, match="not kept"):
        export(networks["repmlp_cifar"], file, tolerance=-1.0, overwrite=True)
    assert file.read_bytes() == before
    assert visible(tmp_path) == ["a.pt2", "a.pt2.check.npz", "a.pt2.check.py"]


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "openvino", "torch"])
def test_the_same_network_gives_the_same_bytes(networks, files, tmp_path, format):
    first = files["repmlp_cifar", format]
    again = export(networks["repmlp_cifar"], tmp_path / first.name).file
    for part in EXPORTERS[format].parts(first):
        assert part.read_bytes() == (again.parent / part.name).read_bytes()


def test_existing_files(networks, tmp_path):
    file = tmp_path / "a.pt2"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="pass overwrite=True to replace it"):
        export(networks["repmlp_cifar"], file)
    assert file.read_text() == "mine"
    export(networks["repmlp_cifar"], file, overwrite=True)
    load_exported(file)


def test_existing_weights_of_another_file_and_a_folder_are_not_overwritten(networks, tmp_path):
    (tmp_path / "a.bin").write_text("mine")
    (tmp_path / "b.onnx").mkdir()
    with pytest.raises(FileExistsError, match=r"a\.bin exists already"):
        export(networks["repmlp_cifar"], tmp_path / "a.xml")
    with pytest.raises(FileExistsError, match=r"b\.onnx is a folder"):
        export(networks["repmlp_cifar"], tmp_path / "b.onnx", overwrite=True)


def test_the_training_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"training form: .* merged into FCs.*repmlp\.reparameterize"):
        export(timm.create_model("repmlp_cifar"), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (
            "a.tflite",
            {},
            r"cannot tell the format of .*a\.tflite: exported files end in .*\.aoti\.pt2, .onnx, .xml, .pt2",
        ),
        ("a.xml", {"format": "onnx"}, "does not end as files for onnxruntime do: end it in .onnx"),
        ("a.pt2", {"format": "aoti"}, "end it in .aoti.pt2"),
        ("a.onnx", {"format": "tensorrt"}, "unknown format 'tensorrt': use aoti, onnx, openvino, torch"),
        ("a.pt2", {"opset": 20}, "torch files have no opset"),
        ("a.onnx", {"opset": 17}, "opset 17 is too old for this exporter: use 18 or later"),
    ],
)
def test_arguments_that_do_not_fit(networks, tmp_path, file, options, message):
    with pytest.raises(ValueError, match=message):
        export(networks["repmlp_cifar"], tmp_path / file, **options)


def test_an_opset_that_the_exporter_does_not_know(networks, tmp_path):
    with pytest.raises(ValueError, match="the exporter cannot write opset 99, only 18"):
        export(networks["repmlp_cifar"], tmp_path / "a.onnx", opset=99)


def test_a_model_that_is_not_of_timm(tmp_path):
    with pytest.raises(ValueError, match=r"which images Sequential takes, .* pass a model made by timm\.create_model"):
        export(nn.Sequential(nn.Flatten()), tmp_path / "a.onnx")


class Eigenvalues(nn.Module):
    """An operator that ONNX and OpenVINO lack."""

    def forward(self, x):
        return torch.linalg.eigvals(x.reshape(-1, 4, 4)).real


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


@pytest.mark.parametrize(
    ("head", "format", "message"),
    [
        (Eigenvalues(), "onnx", r"onnx cannot express this CifarNet: .*linalg_eig"),
        (Eigenvalues(), "openvino", r"openvino cannot express this CifarNet: .*linalg_eig|view_as_real"),
        (FixedBatch(), "torch", r"torch cannot express this CifarNet: .*batch"),
    ],
)
def test_an_operator_that_a_format_lacks(tmp_path, head, format, message):
    model = deployed()
    model.head = head
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / f"a{SUFFIXES[format]}")
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    ("module", "file", "extra"),
    [
        ("onnxruntime", "a.onnx", "onnx"),
        ("onnx", "a.onnx", "onnx"),
        ("onnxscript", "a.onnx", "onnx"),
        ("openvino", "a.xml", "openvino"),
    ],
)
def test_a_package_that_is_not_installed(networks, tmp_path, monkeypatch, module, file, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}, which cannot be imported.*pip install '\.\[{extra}\]'"):
        export(networks["repmlp_cifar"], tmp_path / file)
