"""Write a network in deploy form as one file that runs without this package, and prove that it computes the same."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion import deviation, example_inputs, needs_reparameterize
from ..files import atomic_file, ensure_can_write
from .runtime import INPUT, METADATA, OUTPUT, SUFFIXES, describe, format_of, load_exported, reason, require

#: Of ONNX files: the oldest with GELU as one operator. The exporter of PyTorch writes 18 and later.
OPSET, OLDEST_OPSET = 20, 18
#: Batches that an exported file is tried on. An export that fixed the batch, or took 1 for a special case, fails.
BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        file, format: which.
        size: bytes, all files of it.
        opset: of ONNX; None for other formats.
        errors: relative error against PyTorch (norm over norm), by what was put in.
        metadata: what the file says of itself, :func:`~repmlp.deploy.describe`.
    """

    file: Path
    format: str
    size: int
    opset: int | None
    errors: dict[str, float]
    metadata: dict[str, Any]


def export(
    model: Any,
    file: str | Path,
    format: str | None = None,
    opset: int | None = None,
    images: Tensor | None = None,
    tolerance: float = 1e-4,
    overwrite: bool = False,
) -> Exported:
    """Write a network for another engine; the file is there only if it gives what the network gives.

    The file takes batches of any size, of images of the one size that the network states, in float32,
    whatever the dtype of the model. It says what it is (:func:`~repmlp.deploy.describe`). It is run
    on random images, and on ``images``, before it gets its name.

    Args:
        model: made by ``timm.create_model``, in deploy form; a network with nothing to convert is taken too.
        file: to write. OpenVINO's is a pair, the .xml named here and a .bin.
        format: onnx, openvino, torch (an exported program) or aoti (that program compiled for CPUs like
            this one; needs a C++ compiler); by default the one that the name of the file ends for.
        opset: of ONNX; by default :data:`OPSET`.
        images: (N, C, H, W), real ones, normalized, to compare on too.
        tolerance: largest relative error, norm over norm.
        overwrite: replace a file that exists.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is off.
        ImportError: if the format's package is not installed.
        ValueError: if the model is in training form; the format cannot express the network; or what was
            written computes something else.
    """
    file = Path(file)
    format = check_target(file, format, opset, overwrite)
    if needs_reparameterize(model):
        raise ValueError(
            f"this {type(model).__name__} is in training form: its file would run every conv and batch norm that the "
            f"deploy form has merged into FCs, only to give the same outputs; convert it first, with "
            f"repmlp.reparameterize(model) or by leaving --no-convert out"
        )
    opset = (opset or OPSET) if format == "onnx" else None
    metadata = describe(model)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    with atomic_file(file) as partial:
        _write(model, partial, format, metadata, opset)
        errors = compare(model, _open(partial), images)
        bad = {inputs: error for inputs, error in errors.items() if not error <= tolerance}
        if bad:
            found = ", ".join(f"{error:.1e} on {inputs}" for inputs, error in bad.items())
            raise ValueError(
                f"the {format} file does not compute what the network computes, and is not kept: "
                f"relative error {found}, allowed {tolerance:.0e}"
            )
        size = sum(part.stat().st_size for part in partial.parent.iterdir())
    return Exported(file, format, size, opset, errors, metadata)


def check_target(file: Path, format: str | None, opset: int | None, overwrite: bool) -> str:
    """The format to write, if it may be written there: before anything that takes time.

    Raises:
        FileExistsError, ValueError: as :func:`export`.
    """
    if format is not None and format not in SUFFIXES:
        raise ValueError(f"unknown format {format!r}: there are {', '.join(SUFFIXES)}")
    if "torchscript" in (format, format_of(file)):
        raise ValueError("TorchScript files are for int8 only: `repmlp quantize --engine torch` writes them")
    if format not in (None, format_of(file)):
        raise ValueError(f"{file} ends as {format_of(file)} files do: end it in {SUFFIXES[format]} for {format}")
    format = format_of(file)
    if opset is not None and format != "onnx":
        raise ValueError(f"{format} files have no opset: leave it out, or export to onnx")
    if opset is not None and opset < OLDEST_OPSET:
        raise ValueError(
            f"ONNX opset {opset} is too old for this exporter: use {OLDEST_OPSET} or later, {OPSET} if unsure"
        )
    for module in {"onnx": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}.get(format, ()):
        require(module, format)
    for part in (file, file.with_suffix(".bin")) if format == "openvino" else (file,):
        ensure_can_write(part, overwrite=overwrite)
    return format


def compare(model: nn.Module, exported: nn.Module, images: Tensor | None = None) -> dict[str, float]:
    """Relative error (norm over norm) of ``exported`` against ``model``, by what was put in.

    Args:
        model: the reference; a timm model in eval mode.
        exported: anything that maps images to a tensor.
        images: (N, C, H, W), to compare on besides random batches of :data:`BATCHES`.
    """
    inputs = {f"random images, batch {n}": example_inputs(model, n) for n in BATCHES}
    if images is not None:
        inputs[f"{len(images)} given images"] = images
    errors = {}
    with torch.no_grad():
        for name, x in inputs.items():
            try:
                output = exported(x)
            except Exception as error:  # of whatever engine
                raise ValueError(f"the exported network does not run on {name}: {reason(error)}") from error
            errors[name] = deviation(model(x), output).relative
    return errors


def _open(file: Path) -> nn.Module:
    try:
        return load_exported(file)
    except ValueError as error:  # an operator that the engine lacks
        raise ValueError(f"the engine cannot run the {format_of(file)} file just written: {reason(error)}") from error


def _write(model: nn.Module, file: Path, format: str, metadata: dict[str, Any], opset: int | None) -> None:
    text = json.dumps(metadata)
    try:
        program = trace(model)
        if format == "onnx":
            assert opset is not None
            _write_onnx(program, file, text, opset)
        elif format == "openvino":
            _write_openvino(program, file, text, metadata["input_size"])
        elif format == "torch":
            torch.export.save(program, file, extra_files={f"{METADATA}.json": text})
        else:
            _write_aoti(program, file, text)
    except Exception as error:  # each exporter has its own kinds
        raise ValueError(f"{format} cannot express this {type(model).__name__}: {reason(error)}") from error


@torch.no_grad()
def trace(model: nn.Module) -> torch.export.ExportedProgram:
    """A network as a program of PyTorch's operators that takes batches of any size: what all formats are made of."""
    example = example_inputs(model, batch_size=2)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which would get into the file
    return program


def _write_onnx(program: torch.export.ExportedProgram, file: Path, text: str, opset: int) -> None:
    onnx = torch.onnx.export(
        program,
        (),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: "batch"},),
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert onnx is not None
    written = onnx.model.opset_imports[""]
    if written != opset:  # the exporter only warns of it
        raise ValueError(f"the exporter cannot write opset {opset}, only {written}")
    for node in onnx.model.graph:
        node.metadata_props.clear()  # how it came from PyTorch's graph: as long as the graph itself
    onnx.model.metadata_props[METADATA] = text
    onnx.save(file, external_data=False)


def _write_openvino(program: torch.export.ExportedProgram, file: Path, text: str, size: tuple[int, ...]) -> None:
    openvino = require("openvino", "openvino")
    model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    model.reshape([-1, *size])  # -1: any batch; the converter leaves H and W open too
    model.set_rt_info(text, [METADATA])
    openvino.save_model(model, file, compress_to_fp16=False)


def _write_aoti(program: torch.export.ExportedProgram, file: Path, text: str) -> None:
    from torch._inductor import aoti_compile_and_package

    configs = {
        "aot_inductor.metadata": {METADATA: text},
        "cpp.dynamic_threads": True,  # or the number of threads of this process is compiled in
    }
    aoti_compile_and_package(program, package_path=str(file), inductor_configs=configs)
