"""Run an exported file: one module for every engine."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_model
from .engines import ENGINES, Engine, Metadata, Run, engine_errors, engine_of
from .metadata import parse_metadata


class ExportedModel(nn.Module):
    """An exported file as a module: images (N, C, H, W) to logits (N, classes), computed on the CPU.

    It exposes ``pretrained_cfg`` and ``num_classes``, so data pipelines and evaluation treat it as a timm model. It has
    no parameters; the engine holds them. A ``features_only`` network returns a list of maps.

    Args:
        run: images to outputs, by the engine.
        metadata: what :func:`~repmlp.deploy.export_metadata` made.
        engine: which runs it.
    """

    def __init__(self, run: Run, metadata: Metadata, engine: Engine) -> None:
        super().__init__()
        self.run, self.metadata, self.format = run, metadata, engine.name
        self.input_size: tuple[int, int, int] = tuple(metadata["input_size"])
        self.pretrained_cfg = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata.items()}
        self.num_classes: int = metadata["num_classes"]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if tuple(x.shape[1:]) != self.input_size:
            raise ValueError(
                f"got images of shape {list(x.shape)}, but the exported network takes (N, "
                f"{', '.join(str(n) for n in self.input_size)}): export it again for another size"
            )
        outputs = [y.to(x.device) for y in self.run(x.to("cpu", torch.float32).contiguous())]
        return outputs[0] if isinstance(self.metadata["output"], str) else outputs

    def extra_repr(self) -> str:
        return f"format={self.format}, {self.metadata.get('architecture')}, input_size={self.input_size}"


def load_any(path: str | Path, threads: int | None = None) -> Any:
    """Load a model folder (:func:`repmlp.load_model`) or an exported file (:func:`load_exported`)."""
    path = Path(path)
    exported = not path.is_dir() and (path.is_file() or path.name.endswith(tuple(e.suffix for e in ENGINES)))
    return load_exported(path, threads) if exported else load_model(path)


def load_exported(file: str | Path, threads: int | None = None, precision: str = "float32") -> ExportedModel:
    """Open a file that :func:`repmlp.deploy.export` or :func:`repmlp.deploy.quantize` wrote.

    Open .aoti.pt2 and .torchscript files only if you trust their origin: they hold code.

    Args:
        file: .onnx, .xml (with its .bin in the same folder), .pt2, .aoti.pt2 or .torchscript.
        threads: by default the engine's own choice. PyTorch has one number for the whole process, so for .pt2 and
            .torchscript files this sets that.
        precision: what the engine computes in: float32, or bf16 (OpenVINO).

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if its engine is not installed.
        ValueError: if it is damaged, was not written by this package, or its engine lacks the precision.
    """
    file = Path(file)
    engine = engine_of(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no exported file {file}")
    if precision not in ("float32", *engine.precisions):
        raise ValueError(f"{engine.name} files do not run in {precision}")
    for module in engine.readers:
        engine.load_package(module)
    with engine_errors(f"{file} is damaged, or its format is not {engine.name}"):
        run, text = engine.open(file, threads, precision)
    if not text:
        raise ValueError(f"{file} does not say which images it takes: it was not written by this package")
    try:
        return ExportedModel(run, parse_metadata(text), engine)
    except ValueError as error:
        raise ValueError(f"{file} was not written by this package, or is damaged: {error}") from error
