"""What an engine is: it writes a network as a file, and opens that file to run it.

To add one: a file here with a subclass of :class:`Engine`, its names in the settings of the commands and its suffixes
in ``repmlp_settings.EXPORTED``, its extra in pyproject.toml, and its test.
"""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...conversion import example_inputs
from ...extras import import_optional

#: Names of the one input (batch, C, H, W), of which only the batch is free, and of a classifier's one output.
INPUT, OUTPUT = "images", "logits"
#: Every file carries one JSON object under this name: :func:`repmlp.deploy.export_metadata`.
METADATA = "repmlp"

#: Runs images (N, C, H, W), contiguous float32 on the CPU, and returns the network's outputs in their order.
Run = Callable[[Tensor], Sequence[Tensor]]
Program = torch.export.ExportedProgram
Metadata = dict[str, Any]
#: As PyTorch runs it: images to one output or several.
Forward = Callable[[Tensor], Tensor | Sequence[Tensor]]


class Engine(ABC):
    """One file format and what runs it. Instances have no state.

    Attributes:
        format: name of the format, which ``export`` takes; None for files that only ``quantize`` writes.
        runtime: name of what runs the file, which ``quantize`` and ``bench`` take.
        suffix: how the names of its files end.
        extra: the extra of this package that it needs, if any.
        writers, readers: packages of that extra that writing and reading a file take.
        precisions: what its files of float32 weights can be run in, besides float32.
        int8_methods: of ``quantize``, the default first.
        check: source of ``run(file, images)``, which runs a file with NumPy and the engine only and returns the
            outputs as arrays: the part of the check script that depends on the engine.
    """

    format: ClassVar[str | None]
    runtime: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str] = ""
    writers: ClassVar[tuple[str, ...]] = ()
    readers: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ()
    int8_methods: ClassVar[tuple[str, ...]] = ()
    check: ClassVar[str]

    @property
    def name(self) -> str:
        """What errors call its files."""
        return self.format or self.suffix.removeprefix(".")

    def load_package(self, module: str) -> Any:
        """Import a module of the extra; engines turn their telemetry off here.

        Raises:
            ImportError: if it is not installed; the message names the extra.
        """
        return import_optional(module, self.extra)

    def load_writers(self, int8: bool = False) -> None:
        """Import what writing a file takes, to know early that it is there."""
        for module in self.writers:
            self.load_package(module)

    def parts(self, file: Path) -> tuple[Path, ...]:
        """All files that ``file`` consists of."""
        return (file,)

    def resolve_opset(self, opset: int | None) -> int | None:
        """The ONNX opset to write; None for formats that have none.

        Raises:
            ValueError: if the format does not have that opset.
        """
        if opset is not None:
            raise ValueError(f"{self.name} files have no opset: omit it, or export to onnx")
        return None

    def write(self, program: Program, file: Path, metadata: Metadata, opset: int | None = None) -> None:
        """Write a float32 network; not abstract, since an engine may have int8 files only."""
        raise NotImplementedError

    @abstractmethod
    def open(self, file: Path, threads: int | None, precision: str = "float32") -> tuple[Run, str]:
        """How to run a file, and the metadata in it, "" if there is none.

        Args:
            file: what :meth:`write` or :meth:`quantize` wrote.
            threads: None for the engine's own choice.
            precision: float32 or one of ``precisions``.
        """

    def weight_bits(self, method: str, reduce_range: bool) -> int:
        """Bits of an int8 weight, 7 where 8 could overflow."""
        return 8

    def quantize(self, model: nn.Module, file: Path, metadata: Metadata, calibration: Tensor | None) -> None:
        """Write a network in int8; not abstract, since an engine may have float32 files only.

        Args:
            model: float32, on the CPU; its FCs are ``nn.Linear``, one per group.
            file: to write.
            metadata: with the key ``int8``: engine, method, weight_bits.
            calibration: images for the static method.
        """
        raise NotImplementedError


class TorchEngine(Engine):
    """What the formats have in common that PyTorch itself runs: zip archives, threads of the process."""

    @abstractmethod
    def load(self, file: Path) -> tuple[Forward, str]:
        """What is in the archive: a callable and the metadata."""

    def open(self, file: Path, threads: int | None, precision: str = "float32") -> tuple[Run, str]:
        if not zipfile.is_zipfile(file):  # PyTorch says so too, but with a traceback in its log
            raise ValueError("it is not a zip archive")
        if threads:
            torch.set_num_threads(threads)
        call, metadata = self.load(file)

        def run(x: Tensor) -> Sequence[Tensor]:
            outputs = call(x)
            return [outputs] if isinstance(outputs, Tensor) else list(outputs)

        return run, metadata


@torch.no_grad()
def trace(model: nn.Module) -> Program:
    """Trace a network into a program of PyTorch's operators, for batches of any size: all formats are made from it."""
    example = example_inputs(model, batch_size=2)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which would get into the file
    return program


def output_names(metadata: Metadata) -> list[str]:
    """Of a classifier one, of a ``features_only`` network one per map."""
    names = metadata["output"]
    return [names] if isinstance(names, str) else list(names)


def root_cause(error: BaseException) -> str:
    """The first 400 characters of the error at the root of an engine's error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


@contextmanager
def engine_errors(message: str) -> Iterator[None]:
    """Turn what an engine raises into a ValueError: each has its own exceptions, without a common base.

    Errors of disk and memory pass: they say nothing about the network or the file.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if "inline_container" in str(error):  # PyTorch cannot write its archive
            raise
        raise ValueError(f"{message}: {root_cause(error)}") from error
