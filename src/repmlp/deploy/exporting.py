"""Write a network in deploy form as one file that runs without this package, and check that it computes the same."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..conversion import example_inputs, needs_reparameterize, unwrap_model
from ..conversion.rounding import largest_deviation
from ..files import atomic_file, claim, ensure_can_write
from .check_files import CHECK_SUFFIXES, outputs_of, write_check_files
from .engines import EXPORTERS, Engine, Metadata, engine_errors, engine_of, find_engine, output_names, root_cause
from .engines.engine import trace
from .metadata import export_metadata
from .runtime import ExportedModel, load_exported

#: Batch sizes that an exported file is tried on. An export that fixed the batch, or took 1 for a special case, fails.
BATCHES = (1, 2, 5)

#: Called with what is being done, how much of it is done and how much there is.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        file, format: the file and its format.
        size: bytes of the network's file, or files.
        opset: of ONNX; None for other formats.
        errors: relative error against PyTorch (norm over norm), by input.
        metadata: what the file says about itself, :func:`~repmlp.deploy.export_metadata`.
    """

    file: Path
    format: str
    size: int
    opset: int | None
    errors: dict[str, float]
    metadata: Metadata


def export(
    model: nn.Module,
    file: str | Path,
    format: str | None = None,
    opset: int | None = None,
    images: Tensor | None = None,
    *,
    tolerance: float = 1e-4,
    overwrite: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Exported:
    """Write a network for another engine; there is no file unless it computes what the network computes.

    The file takes batches of any size, of images of the network's one size, in float32 whatever the dtype of the model.
    It describes itself (:func:`~repmlp.deploy.export_metadata`). It gets its name once it has run on random images and
    on ``images``. Next to it are two files to check it on another machine, FILE.check.py and FILE.check.npz.

    Args:
        model: made by ``timm.create_model``, in deploy form or with nothing to convert; also with ``features_only``,
            where each map is an output named as in ``feature_info``. Wrappers are unwrapped.
        file: to write. OpenVINO's is a pair, the .xml named here and a .bin.
        format: onnx, openvino, torch (a program of ``torch.export``) or aoti (that program compiled for CPUs like
            this one; needs a C++ compiler); by default what the suffix of the file says.
        opset: of ONNX; by default ``engines.OPSET``.
        images: (N, C, H, W), real ones, normalized, to compare on too.
        tolerance: largest relative error, norm over norm.
        overwrite: replace a file that exists.
        on_progress: called with what is being done, how much of it is done and how much there is.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is False.
        BlockingIOError: if another process is writing the file.
        ImportError: if the format's package is not installed.
        ValueError: if the model is in training form; the format cannot express the network; or what was written
            computes something else.
    """
    file = Path(file)
    engine, opset = check_target(file, format, opset, overwrite)
    model = in_deploy_form(
        model,
        "its file would run every conv and batch norm that the deploy form has merged into FCs, only to give the same "
        "outputs",
    )
    metadata = export_metadata(model)
    reference, model = model, float32_copy(model)
    with claim_exported(file, engine, overwrite), atomic_file(file) as partial:
        _check_outputs(model, output_names(metadata))
        on_progress("tracing the network and writing it", 0, 0)
        write(model, engine, partial, metadata, opset)
        exported = open_written(partial)
        errors = compare(model, exported, images, on_progress)
        bad = {inputs: error for inputs, error in errors.items() if not error <= tolerance}
        if bad:
            found = ", ".join(f"{error:.1e} on {inputs}" for inputs, error in bad.items())
            raise ValueError(
                f"the {engine.name} file does not compute what the network computes, and is not kept: "
                f"relative error {found}, allowed {tolerance:.0e}"
            )
        size = sum(part.stat().st_size for part in engine.parts(partial))
        write_check_files(partial, engine, reference, exported)
    return Exported(file, engine.name, size, opset, errors, metadata)


def in_deploy_form(model: nn.Module, why: str) -> nn.Module:
    """The model without wrappers; raise ValueError, with the reason ``why``, if it is in training form."""
    model = unwrap_model(model)
    if needs_reparameterize(model):
        raise ValueError(
            f"this {type(model).__name__} is in training form: {why}; "
            f"convert it first, with repmlp.reparameterize(model)"
        )
    return model


def float32_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


def check_target(file: Path, format: str | None, opset: int | None, overwrite: bool) -> tuple[Engine, int | None]:
    """The engine and the opset to write with, if the file may be written: to call before anything that takes time.

    Raises:
        FileExistsError, ImportError, ValueError: as :func:`export`.
    """
    engine = engine_of(file) if format is None else find_engine(EXPORTERS, format, "format")
    if engine.format is None:
        raise ValueError(
            f"{engine.suffix} files are for int8 only: "
            f"repmlp.deploy.quantize(model, file, engine={engine.runtime!r}) writes them"
        )
    ensure_can_export(file, engine, overwrite)
    return engine, engine.resolve_opset(opset)


def ensure_can_export(file: Path, engine: Engine, overwrite: bool, int8: bool = False) -> None:
    """Raise unless the engine can write this file: its suffix, its packages, what is there already."""
    if not file.name.endswith(engine.suffix) or engine_of(file) is not engine:
        raise ValueError(f"{file} does not end as files for {engine.runtime} do: end it in {engine.suffix}")
    engine.load_writers(int8)
    for part in (*engine.parts(file), *(file.with_name(file.name + suffix) for suffix in CHECK_SUFFIXES)):
        ensure_can_write(part, overwrite=overwrite)


@contextmanager
def claim_exported(file: Path, engine: Engine, overwrite: bool) -> Iterator[None]:
    """Claim a file, unless another process has just written it."""
    with claim(file):
        ensure_can_export(file, engine, overwrite)
        yield


def write(model: nn.Module, engine: Engine, file: Path, metadata: Metadata, opset: int | None = None) -> None:
    """Write a float32 network, unchecked."""
    with engine_errors(f"{engine.name} cannot express this {type(model).__name__}"):
        engine.write(trace(model), file, metadata, opset)


def open_written(file: Path) -> ExportedModel:
    """Open a file that was just written."""
    try:
        return load_exported(file)
    except ValueError as error:  # an operator that the engine lacks
        name = engine_of(file).name
        raise ValueError(f"the engine cannot run the {name} file just written: {root_cause(error)}") from error


@torch.no_grad()
def _check_outputs(model: nn.Module, names: list[str]) -> None:
    outputs = outputs_of(model(example_inputs(model, 1)))
    if len(outputs) != len(names):
        raise ValueError(
            f"this {type(model).__name__} returns {len(outputs)} tensors, but {len(names)} is expected "
            f"({', '.join(names)}): export one that returns logits, or maps with features_only"
        )


def compare(
    model: nn.Module,
    exported: nn.Module,
    images: Tensor | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> dict[str, float]:
    """Relative error (norm over norm) of ``exported`` against ``model``, by input; the largest over all outputs.

    Args:
        model: the reference; a timm model in eval mode.
        exported: anything that maps images to a tensor, or to a list of tensors.
        images: (N, C, H, W), to compare on besides random batches of ``BATCHES`` sizes.
        on_progress: called with what is being done, how much of it is done and how much there is.
    """
    inputs = {f"random images, batch {n}": example_inputs(model, n) for n in BATCHES}
    if images is not None:
        inputs[f"{len(images)} given images"] = images
    errors: dict[str, float] = {}
    with torch.no_grad():
        for name, x in inputs.items():
            on_progress("comparing with PyTorch", len(errors), len(inputs))
            with engine_errors(f"the exported network does not run on {name}"):
                outputs = outputs_of(exported(x))
            errors[name] = largest_deviation(outputs_of(model(x)), outputs).relative
    return errors
