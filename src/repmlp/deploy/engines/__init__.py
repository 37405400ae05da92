"""The engines that run exported files, one per file of this folder; all that depends on one asks this registry."""

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from .engine import INPUT, METADATA, OUTPUT, Engine, Metadata, Run, engine_errors, output_names, root_cause
from .onnx import OPSET

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


def find_engines() -> Iterator[Engine]:
    """An instance of every engine that a module of this folder defines."""
    for info in iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        classes = [value for value in own if inspect.isclass(value) and issubclass(value, Engine)]
        yield from (engine() for engine in classes if not inspect.isabstract(engine))


#: The first whose suffix a file name ends with opens that file: .aoti.pt2 comes before .pt2.
ENGINES = tuple(sorted(find_engines(), key=lambda engine: -len(engine.suffix)))
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
