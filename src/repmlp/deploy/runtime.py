"""Run an exported file: one callable for every engine, and what the file says of itself.

An exported file holds one JSON object under the name ``repmlp`` (:func:`describe`). It says how to
prepare images and what the outputs mean, so that the file needs no model folder beside it.
"""

import json
import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..checkpoint import label_names_of, load_model
from ..extras import import_optional

#: How the files of a format end. The first that fits counts.
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "aoti": ".aoti.pt2",
    "torch": ".pt2",
    "torchscript": ".torchscript",  # of int8 only
}
#: The name of the one input (batch, C, H, W), the only axis of free size being the batch, and of the one output.
INPUT, OUTPUT = "images", "logits"
METADATA = "repmlp"


class ExportedModel(nn.Module):
    """An exported file as a module: images (N, C, H, W) to logits (N, classes), computed in float32 on the CPU.

    It has what a timm model states, ``pretrained_cfg`` and ``num_classes``, so that data pipelines and
    evaluation take it as one. It has no parameters; those are the engine's.

    Args:
        run: (N, C, H, W) to (N, classes), of the engine.
        metadata: what :func:`describe` made.
        format: a key of :data:`SUFFIXES`.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], metadata: dict[str, Any], format: str) -> None:
        super().__init__()
        self.run, self.metadata, self.format = run, metadata, format
        self.input_size: tuple[int, int, int] = tuple(metadata["input_size"])
        self.pretrained_cfg = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata.items()}
        self.num_classes: int = metadata["num_classes"]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.input_size:
            raise ValueError(
                f"the exported network got images of shape {list(x.shape)}, but takes (N, "
                f"{', '.join(str(n) for n in self.input_size)}): export it again for another size"
            )
        return self.run(x.to("cpu", torch.float32).contiguous()).to(x.device)

    def extra_repr(self) -> str:
        return f"format={self.format}, {self.metadata.get('architecture')}, input_size={self.input_size}"


def describe(model: Any) -> dict[str, Any]:
    """What an exported file says of itself, to be written as JSON.

    architecture, num_classes, label_names (if known); input_size, mean, std, interpolation, crop_pct,
    crop_mode, as timm names them; input and output, the names of the two tensors; made_by.

    Raises:
        ValueError: if the model was not made by ``timm.create_model``.
    """
    if not hasattr(model, "pretrained_cfg"):
        raise ValueError(f"{type(model).__name__} was not made by timm.create_model: nothing says what it takes")
    names = label_names_of(model)
    return {
        "architecture": model.pretrained_cfg.get("architecture"),
        "num_classes": model.num_classes,
        **({"label_names": names} if names else {}),
        **resolve_data_config(model=model),
        "input_size": get_model_input_config(model)["input_size"],
        "input": INPUT,
        "output": OUTPUT,
        "made_by": f"repmlp {version('repmlp')}",
    }


def format_of(file: str | Path) -> str:
    """The format of a file, by how its name ends.

    Raises:
        ValueError: if no format's files end so.
    """
    for format, suffix in SUFFIXES.items():
        if Path(file).name.endswith(suffix):
            return format
    raise ValueError(f"{file} is no exported file by its name: those end in {', '.join(SUFFIXES.values())}")


def load(path: str | Path, threads: int | None = None) -> Any:
    """A model folder (:func:`repmlp.load_model`) or an exported file (:func:`load_exported`)."""
    exported = not Path(path).is_dir() and (Path(path).is_file() or Path(path).name.endswith(tuple(SUFFIXES.values())))
    return load_exported(path, threads) if exported else load_model(path)


def load_exported(file: str | Path, threads: int | None = None) -> ExportedModel:
    """Open a file that :func:`repmlp.deploy.export` wrote.

    Open .aoti.pt2 files only if you trust where they come from: they are machine code.

    Args:
        file: .onnx, .xml (its .bin beside it), .pt2, .aoti.pt2, or .torchscript (int8).
        threads: of the engine; by default its own choice. PyTorch has one number for the whole process,
            so for .pt2 files this sets that.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if its engine is not installed.
        ValueError: if it is damaged or was not written by this package.
    """
    file = Path(file)
    format = format_of(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no exported file {file}")
    if format in ("onnx", "openvino"):
        require(*{"onnx": ("onnxruntime", "onnx"), "openvino": ("openvino", "openvino")}[format])
    elif not zipfile.is_zipfile(file):  # PyTorch would say so too, but not without a traceback in its log
        raise ValueError(f"{file} is damaged, or no {format} file: it is not a zip archive")
    try:
        run, text = _READERS[format](file, threads)
    except Exception as error:  # each engine has its own kinds, and none a common base
        raise ValueError(f"{file} is damaged, or no {format} file: {reason(error)}") from error
    try:
        return ExportedModel(run, json.loads(text), format)
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(
            f"{file} does not say which images it takes: it was not written by `repmlp export` ({error!r})"
        ) from error


def require(module: str, extra: str) -> Any:
    """:func:`~repmlp.extras.import_optional` for engines, with their telemetry off.

    Raises:
        ImportError: if it is not installed; the message names the extra.
    """
    # Two engines report their use over the net, unless they are told not to before they are imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if module == "openvino":
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    return import_optional(module, extra)


def reason(error: BaseException) -> str:
    """The beginning of what lies at the root of an engine's error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


_Opened = tuple[Callable[[Tensor], Tensor], str]  # how to run it, and its metadata


def _open_onnx(file: Path, threads: int | None) -> _Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), metadata.get(METADATA, "")


def _open_openvino(file: Path, threads: int | None) -> _Opened:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    text = model.get_rt_info([METADATA]).astype(str) if model.has_rt_info([METADATA]) else ""
    config = {"INFERENCE_PRECISION_HINT": "f32"}  # or a CPU with bf16 instructions would round to bf16
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = core.compile_model(model, "CPU", config)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0]), text


def _open_torch(file: Path, threads: int | None) -> _Opened:
    _set_torch_threads(threads)
    extra = {f"{METADATA}.json": ""}
    force, before = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ[force] = "1"  # or PyTorch unpickles, and so may execute, what it does not know
    try:
        module = torch.export.load(file, extra_files=extra).module()
    finally:
        os.environ.pop(force) if before is None else os.environ.update({force: before})
    return lambda x: module(x), extra[f"{METADATA}.json"]  # not the module itself: it is in eval mode and stays so


def _open_torchscript(file: Path, threads: int | None) -> _Opened:
    _set_torch_threads(threads)
    extra = {f"{METADATA}.json": b""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, with nothing in its place for int8
        module = torch.jit.load(str(file), map_location="cpu", _extra_files=extra)
    return lambda x: module(x), extra[f"{METADATA}.json"].decode()


def _open_aoti(file: Path, threads: int | None) -> _Opened:
    from torch._inductor import aoti_load_package

    _set_torch_threads(threads)
    compiled = aoti_load_package(str(file))
    return compiled, compiled.get_metadata().get(METADATA, "")


def _set_torch_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


_READERS: dict[str, Callable[[Path, int | None], _Opened]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "torch": _open_torch,
    "aoti": _open_aoti,
    "torchscript": _open_torchscript,
}
