"""The registry is the one place that knows the engines: settings, extras and suffixes agree with it."""

import ast
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import timm
import torch

import repmlp
from repmlp.deploy import engines, export, load_exported, quantization
from repmlp.deploy.benchmarking import ENGINES as BENCHED
from repmlp.deploy.engines import ENGINES, EXPORTERS, QUANTIZERS, engine_of
from repmlp_settings import EXPORTED, Export, Quantize
from weights import randomize

ROOT = Path(__file__).parents[3]


def choices(settings, field):
    """The values that a setting accepts, without None."""
    hint = get_type_hints(settings)[field]
    options = [value for part in get_args(hint) for value in (get_args(part) or [part]) if value is not type(None)]
    return set(options)


def test_the_settings_accept_what_the_registry_has():
    assert choices(Export, "format") == set(EXPORTERS)
    assert choices(Quantize, "engine") == set(QUANTIZERS)
    assert choices(Quantize, "method") == {method for engine in ENGINES for method in engine.int8_methods}
    files = [part.name for engine in ENGINES for part in engine.parts(Path(f"deploy{engine.suffix}"))]
    assert {name.removeprefix("deploy") for name in files} == set(EXPORTED)
    assert {"training", "pytorch", "channels_last", "compile", "onnxruntime", "openvino"} <= set(BENCHED)


def test_every_extra_is_declared_and_installs_what_the_engine_imports():
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    for engine in ENGINES:
        packages = re.search(rf"^{engine.extra} = \[(.*)\]$", declared, re.MULTILINE) if engine.extra else None
        for module in (*engine.readers, *engine.writers):
            assert packages, engine
            assert f'"{module}>=' in packages[1]


def test_a_file_belongs_to_the_engine_whose_suffix_it_has():
    for engine in ENGINES:
        assert engine_of(f"some/net.v2{engine.suffix}") is engine
    assert len({engine.name for engine in ENGINES}) == len({engine.suffix for engine in ENGINES}) == len(ENGINES)
    with pytest.raises(ValueError, match=r"cannot tell the format of net\.tflite: exported files end in .*\.onnx, "):
        engine_of("net.tflite")


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_the_check_script_of_an_engine_defines_run_and_imports_little(engine):
    tree = ast.parse(engine.check)
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["run"]
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= {*engine.readers, "torch", "os", "sys"}
    assert "torch" not in imported or not engine.readers


TOY = '''
from repmlp.deploy.engines.torch_program import TorchProgram

class Toy(TorchProgram):
    """Another suffix of PyTorch's program."""

    format = "toy"
    runtime = "toybox"
    suffix = ".toy"
'''


def test_a_new_engine_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "toy_engine.py").write_text(TOY)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    found = {engine.name: engine for engine in engines.find_engines()}
    monkeypatch.setattr(engines, "ENGINES", tuple(found.values()))
    monkeypatch.setitem(EXPORTERS, "toy", found["toy"])
    args = {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3), "num_classes": 3}
    model = repmlp.reparameterize(randomize(timm.create_model("repmlp_cifar", **args)))
    done = export(model, tmp_path / "net.toy")
    assert done.format == "toy"
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_exported(done.file)(x), model(x))
    with pytest.raises(ValueError, match=r"unknown engine 'toybox': use torch, onnxruntime, openvino"):
        quantization.check_target(tmp_path / "int8.toy", "toybox", None, False)
