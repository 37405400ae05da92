"""The bench compares before it times, and times what it says."""

import json

import matplotlib.image
import pytest
import timm
import torch
from torch import nn

import repmlp
from repmlp.deploy import benchmarking
from repmlp.deploy.benchmarking import bench, deploy_form
from repmlp_cli import main
from weights import randomize

SMALL = {"img_size": 16, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = randomize(timm.create_model("repmlp_cifar", **SMALL))
    return repmlp.save_model(model, tmp_path_factory.mktemp("bench") / "small")


def test_every_form_and_engine_of_every_network_is_measured_at_every_batch(folder):
    rows = bench([str(folder), "test_resnet"], ["training", "pytorch", "channels_last"], [1, 3], rounds=2, warmup=1)
    small, reference = str(folder), "test_resnet"
    engines = [(small, "training"), (small, "pytorch"), (small, "channels_last")]
    engines += [(reference, "training"), (reference, "pytorch"), (reference, "channels_last")]
    assert [(row.model, row.engine, row.batch) for row in rows] == [(*e, b) for b in (1, 3) for e in engines]
    for row in rows:
        assert row.seconds.fastest <= row.seconds.median <= row.seconds.slowest
        assert row.images_per_second == row.batch / row.seconds.median
        assert row.error < 1e-5
    assert rows[1].complexity.macs < rows[0].complexity.macs


def test_a_reference_runs_with_its_batch_norms_folded_and_gives_the_same():
    model = randomize(timm.create_model("test_resnet"))
    folded = deploy_form(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert (folded(x) - model(x)).norm() < 1e-5 * model(x).norm()


def test_an_engine_that_computes_something_else_is_not_timed(folder, monkeypatch):
    monkeypatch.setattr(benchmarking, "_channels_last", lambda model: lambda x: model(x) * 1.01)
    with pytest.raises(ValueError, match=r"on channels_last in float32 differs by 1\.0e-02 .*: not timed"):
        bench([str(folder)], ["pytorch", "channels_last"], [1], rounds=1)


def test_unknown_engines_and_networks(folder):
    with pytest.raises(ValueError, match="unknown engine 'tensorrt': use training, pytorch"):
        bench([str(folder)], ["tensorrt"])
    with pytest.raises(ValueError, match="unknown model 'resnet5000'"):
        bench(["resnet5000"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": []}, "there is no batch size to measure: name one or more"),
        ({"engines": []}, "there is no engine to measure: name one or more"),
        ({"batches": [1, 0]}, "batch size is 0, but has to be 1 or more"),
        ({"threads": 0}, "threads is 0, but has to be 1 or more"),
        ({"threads": -1}, "threads is -1, but has to be 1 or more"),
        ({"rounds": 0}, "rounds is 0, but has to be 1 or more"),
        ({"warmup": -1}, "warmup is -1, but has to be 0 or more"),
    ],
)
def test_numbers_that_are_too_small(wrong, message):
    with pytest.raises(ValueError, match=message):
        bench(["not opened"], **wrong)


@pytest.mark.slow
def test_the_command_writes_figures_and_a_picture(folder, tmp_path):
    arguments = ["--engines", "training,pytorch", "--precisions=float32,bf16", "--rounds=2", "--memory"]
    arguments += ["--batches=1", "--output", str(tmp_path)]
    assert main(["bench", str(folder), *arguments]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["about"]["rounds"] == 2
    assert {"cpu", "threads", "torch", "date"} <= set(report["about"])
    assert len(report["results"]) == 4
    assert all(row["peak_memory"] > 2**26 for row in report["results"])  # PyTorch alone takes more than 64 MiB
    assert matplotlib.image.imread(tmp_path / "bench.png").shape[2] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_exported_engines_and_files(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    from repmlp.deploy import export

    export(repmlp.reparameterize(repmlp.load_model(folder)), file)
    rows = bench([str(folder), str(file)], ["pytorch", "onnxruntime"], [2], rounds=2, warmup=1)
    assert [(row.model, row.engine) for row in rows] == [
        (str(folder), "pytorch"),
        (str(folder), "onnxruntime"),
        (str(file), "onnx"),
    ]
    assert [row.precision for row in rows] == ["float32"] * 3


def test_each_precision_is_compared_in_itself(folder, monkeypatch):
    lines = []
    engines = ["pytorch", "channels_last"]
    rows = bench([str(folder)], engines, [2], ["float32", "bf16"], rounds=1, warmup=1, report=lines.append)
    assert [(row.engine, row.precision) for row in rows] == [(e, p) for p in ("float32", "bf16") for e in engines]
    assert rows[0].error < 1e-6 < 1e-4 < rows[2].error < 0.2
    assert not any("left out" in line for line in lines)
    monkeypatch.setitem(benchmarking.TOLERANCES, "bf16", 1e-6)
    with pytest.raises(ValueError, match=r"on pytorch in bf16 differs by .* from PyTorch in float32: not timed"):
        bench([str(folder)], ["pytorch"], [1], ["bf16"], rounds=1)


def test_an_engine_is_left_out_in_a_precision_that_it_lacks_and_that_is_said(folder):
    lines = []
    rows = bench([str(folder)], ["pytorch", "torch"], [1], ["bf16", "int8"], rounds=1, warmup=1, report=lines.append)
    assert [(row.engine, row.precision) for row in rows] == [("pytorch", "bf16"), ("torch", "int8")]
    assert lines[0] == "left out, since not supported: torch in bf16, pytorch in int8"
    with pytest.raises(ValueError, match="none of pytorch supports int8"):
        bench([str(folder)], ["pytorch"], [1], ["int8"])
    with pytest.raises(ValueError, match="unknown precision 'int4': use float32, bf16, int8"):
        bench([str(folder)], ["pytorch"], [1], ["int4"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_int8_and_bf16_of_exported_engines(folder):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    rows = bench([str(folder)], ["onnxruntime", "openvino"], [2], ["bf16", "int8"], rounds=1, warmup=1)
    assert [(row.engine, row.precision) for row in rows] == [
        ("openvino", "bf16"),
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
    ]
    assert all(1e-4 < row.error < 0.5 for row in rows[1:])
