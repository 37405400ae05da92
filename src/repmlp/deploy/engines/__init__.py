"""The engines that run exported files, one per file; everything that depends on an engine asks this registry."""

from collections.abc import Mapping
from pathlib import Path

from .aoti import AOTI
from .engine import INPUT, METADATA, OUTPUT, Engine, Metadata, Run, engine_errors, output_names, root_cause
from .onnx import ONNX, OPSET
from .openvino import OpenVINO
from .torch_program import TorchProgram
from .torchscript import TorchScript

__all__ = [
    "ENGINES",
    "EXPORTERS",
    "INPUT",
    "METADATA",
    "OPSET",
    "OUTPUT",
    "QUANTIZERS",
    "RUNTIMES",
    "Engine",
    "Metadata",
    "Run",
    "engine_errors",
    "engine_of",
    "find_engine",
    "output_names",
    "root_cause",
]

#: The first whose suffix a file name ends with opens that file: .aoti.pt2 comes before .pt2.
ENGINES: tuple[Engine, ...] = (ONNX(), OpenVINO(), AOTI(), TorchProgram(), TorchScript())
#: What `export` writes, by format; what `quantize` writes and what `bench` runs, by runtime.
EXPORTERS = {engine.format: engine for engine in ENGINES if engine.format}
QUANTIZERS = {engine.runtime: engine for engine in ENGINES if engine.int8_methods}
RUNTIMES = {engine.runtime: engine for engine in EXPORTERS.values()}


def find_engine(engines: Mapping[str, Engine], name: str, kind: str = "engine") -> Engine:
    """Look an engine up in one of the tables above.

    Raises:
        ValueError: if it is not there; the message lists what is.
    """
    if name not in engines:
        raise ValueError(f"unknown {kind} {name!r}: use {', '.join(engines)}")
    return engines[name]


def engine_of(file: str | Path) -> Engine:
    """The engine of an exported file, by its suffix.

    Raises:
        ValueError: if no engine has it.
    """
    for engine in ENGINES:
        if Path(file).name.endswith(engine.suffix):
            return engine
    suffixes = ", ".join(engine.suffix for engine in ENGINES)
    raise ValueError(f"cannot tell the format of {file}: exported files end in {suffixes}")
