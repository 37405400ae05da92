"""Write a network in deploy form in int8, and measure what that costs in accuracy.

Weights are rounded symmetrically with one scale per output, of FC3 one per group and output: groups
differ in magnitude, and one scale for all would take the small ones' bits. Engines know a batched
matrix product only as a whole, with one scale. So FC3 is written as one FC per group.

Activations are 8-bit unsigned, with one scale per tensor: measured on calibration images (static), or
of each input while the network runs (dynamic).
"""

import copy
import json
import platform
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..conversion import needs_reparameterize
from ..data import ImageData, Transformed, eval_transform
from ..files import atomic_file, ensure_can_write
from ..layers import GroupedLinear
from .exporting import OPSET, export
from .runtime import INPUT, METADATA, SUFFIXES, describe, load_exported, reason, require

#: The engines, what each can do (the first by default), and the format of its file.
METHODS = {"onnxruntime": ("static", "dynamic"), "torch": ("dynamic",)}
FORMATS = {"onnxruntime": "onnx", "torch": "torchscript"}
#: What static int8 of onnxruntime takes in: products and what lies between them; not batch norms, which would round
#: their four vectors to 8 bits each.
STATIC_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Sigmoid", "AveragePool", "GlobalAveragePool", "MaxPool"),
    *("Concat", "Split", "Reshape", "Transpose", "Pad"),
)


@dataclass(frozen=True)
class Quantized:
    """An int8 file that was written, and how it compares with the network in floating point.

    Attributes:
        file, engine, method: which.
        reduce_range: weights have 7 bits.
        images: of the data set; ``correct_before`` and ``correct`` of them are right, in floating point
            and in int8; ``agree`` have the same prediction.
        size_before, size: bytes of the float32 weights, and of the file.
    """

    file: Path
    engine: str
    method: str
    reduce_range: bool
    images: int
    correct_before: int
    correct: int
    agree: int
    size_before: int
    size: int

    @property
    def drop(self) -> float:
        """Points of top-1 accuracy that int8 loses; negative if it gains."""
        return 100 * (self.correct_before - self.correct) / self.images


def quantize(
    model: Any,
    file: str | Path,
    test: Iterable[tuple[Tensor, Tensor]],
    calibration: Tensor | None = None,
    engine: str = "onnxruntime",
    method: str | None = None,
    max_drop: float = 0.5,
    reduce_range: bool = False,
    overwrite: bool = False,
) -> Quantized:
    """Write a network in int8; the file is there only if it is accurate enough.

    It takes and says what an exported file does (:func:`repmlp.deploy.export`), and is opened by
    :func:`~repmlp.deploy.load_exported`.

    With onnxruntime, static: convs, FCs and what is between them are in int8, logits in float32;
    dynamic: FCs only. With torch, dynamic: FCs only.

    Args:
        model: made by ``timm.create_model``, in deploy form; a network with nothing to convert is taken too.
        file: to write, .onnx or, for torch, .torchscript.
        test: batches of images (N, C, H, W) and labels (N) to measure accuracy on.
        calibration: for static: images (N, C, H, W) to measure the range of activations on.
        engine: onnxruntime or torch.
        method: static or dynamic; by default static where the engine has it.
        max_drop: points of top-1 that int8 may lose.
        reduce_range: round weights to 7 bits, for files that may run on x86 CPUs without VNNI. There the
            sum of two 8-bit products overflows 16 bits, and results are silently wrong. Always so if
            this CPU is one of them. (Not for torch, which takes that bit from the activations.)
        overwrite: replace a file that exists.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is off.
        ImportError: if the engine is not installed.
        ValueError: if the model is in training form; the engine lacks the method; calibration images do
            not fit; or accuracy drops by more than ``max_drop``: nothing is written.
    """
    file = Path(file)
    method = check_target(file, engine, method, overwrite)
    if needs_reparameterize(model):
        raise ValueError(
            f"this {type(model).__name__} is in training form, in which FC3 is not yet what will be deployed: "
            f"convert it first, with repmlp.reparameterize(model)"
        )
    if method == "static":
        _check_calibration(model, calibration)
    reduce_range = engine == "onnxruntime" and (reduce_range or saturates())
    scheme = {"engine": engine, "method": method, "weight_bits": 7 if reduce_range else 8}
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    metadata = {**describe(model), "int8": scheme}
    with atomic_file(file) as whole, tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / file.name
        if engine == "onnxruntime":
            _quantize_onnx(split_groups(model), partial, metadata, calibration, reduce_range)
        else:
            _quantize_torch(split_groups(model), partial, metadata)
        images, before, after, agree = _count(model, load_exported(partial), test)
        size_before = sum(4 * parameter.numel() for parameter in model.parameters())
        size = partial.stat().st_size
        done = Quantized(file, engine, method, reduce_range, images, before, after, agree, size_before, size)
        if done.drop > max_drop:
            raise ValueError(
                f"int8 ({engine}, {method}) loses {done.drop:.2f} points of top-1, more than the {max_drop:g} allowed: "
                f"{before / images:.2%} -> {after / images:.2%} of {images} images; nothing is written. Try another "
                f"method or engine, more calibration images, or training with qat"
            )
        shutil.copyfile(partial, whole)
    return done


def check_target(file: Path, engine: str, method: str | None, overwrite: bool) -> str:
    """The method, if the engine has it and the file may be written: before anything that takes time.

    Raises:
        FileExistsError, ValueError: as :func:`quantize`.
    """
    if engine not in METHODS:
        raise ValueError(f"unknown engine {engine!r}: there are {', '.join(METHODS)}")
    method = method or METHODS[engine][0]
    if method not in METHODS[engine]:
        raise ValueError(f"{engine} has no {method!r} int8 here, only {' and '.join(METHODS[engine])}")
    suffix = SUFFIXES[FORMATS[engine]]
    if file.suffix != suffix:
        raise ValueError(f"{file} does not end as int8 files of {engine} do: end it in {suffix}")
    if engine == "onnxruntime":
        for module in ("onnxruntime", "onnx", "onnxscript"):
            require(module, "onnx")
    ensure_can_write(file, overwrite=overwrite)
    return method


def calibration_images(model: Any, data: ImageData, count: int, seed: int = 0) -> Tensor:
    """Training images, chosen at random, prepared as ``model`` states that it wants them: (count, C, H, W).

    Raises:
        ValueError: if the data has no so many, or images of other channels than the model's.
    """
    train: Any = data.train
    config = resolve_data_config(model=model)
    if not 0 < count <= len(train):
        raise ValueError(f"cannot calibrate on {count} images: the data has {len(train)} to train on, take 1 or more")
    if data.in_chans != config["input_size"][0]:
        raise ValueError(
            f"the model takes images of {config['input_size'][0]} channels, the data has {data.in_chans}: "
            f"calibrate on the data that the model was trained for"
        )
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    images = Transformed(train, eval_transform(config), chosen)
    return torch.stack([images[i][0] for i in range(count)])


def saturates() -> bool:
    """Whether this is an x86 CPU without VNNI, or one of which PyTorch does not say that it has it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False  # ARM's and others' products have 32-bit sums
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


class SplitLinear(nn.Module):
    """A :class:`~repmlp.layers.GroupedLinear` as one ``nn.Linear`` per group.

    Shape: (M, in_features) -> (M, out_features).
    """

    def __init__(self, grouped: GroupedLinear) -> None:
        super().__init__()
        self.groups = grouped.groups
        biases = [None] * self.groups if grouped.bias is None else grouped.bias.detach().chunk(self.groups)
        self.fcs = nn.ModuleList(
            _linear(weight, bias) for weight, bias in zip(grouped.weight.detach(), biases, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(self.groups, 1)  # g of (M, I)
        outputs = []
        for i, fc in enumerate(self.fcs):
            outputs.append(fc(parts[i]))  # (M, Q)
        return torch.cat(outputs, 1)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous())
    linear.bias = None if bias is None else nn.Parameter(bias.contiguous())  # type: ignore[assignment]
    return linear


def split_groups(model: nn.Module) -> nn.Module:
    """A copy of a model in which every :class:`~repmlp.layers.GroupedLinear` is a :class:`SplitLinear`."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GroupedLinear):
                setattr(module, name, SplitLinear(child))
    return model


def _check_calibration(model: Any, images: Tensor | None) -> None:
    size = tuple(get_model_input_config(model)["input_size"])
    if images is None or images.dim() != 4 or len(images) == 0 or tuple(images.shape[1:]) != size:
        raise ValueError(
            f"static int8 is calibrated on images (N, {', '.join(str(n) for n in size)}), but got "
            f"{'none' if images is None else list(images.shape)}: pass images that the model was trained for"
        )


def _quantize_onnx(
    model: nn.Module, file: Path, metadata: dict[str, Any], calibration: Tensor | None, reduce_range: bool
) -> None:
    """Static if there are calibration images, otherwise dynamic."""
    onnx = require("onnx", "onnx")
    quantization = require("onnxruntime.quantization", "onnx")
    plain, prepared = file.with_name("float32.onnx"), file.with_name("prepared.onnx")
    export(model, plain, "onnx", OPSET)
    options = {"per_channel": True, "reduce_range": reduce_range, "weight_type": quantization.QuantType.QInt8}
    static = metadata["int8"]["method"] == "static"
    try:
        quantization.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        if static:
            assert calibration is not None
            quantization.quantize_static(
                prepared,
                file,
                _Batches(calibration),
                op_types_to_quantize=list(STATIC_OPERATORS),
                activation_type=quantization.QuantType.QUInt8,
                # An FC's output is rounded where the next layer wants it so; logits stay as they are.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
                **options,
            )
        else:
            # Convs have no dynamic kernel with a scale per channel.
            quantization.quantize_dynamic(prepared, file, op_types_to_quantize=["MatMul", "Gemm"], **options)
    except Exception as error:  # of onnx, onnxruntime, or plain Python's
        raise ValueError(f"onnxruntime cannot quantize this {type(model).__name__}: {reason(error)}") from error
    written = onnx.load(file)
    used = {node.domain for node in written.graph.node}
    opsets = [opset for opset in written.opset_import if opset.domain in used]
    del written.opset_import[:], written.metadata_props[:]
    written.opset_import.extend(opsets)
    written.metadata_props.add(key=METADATA, value=json.dumps(metadata))
    onnx.save(written, file)


class _Batches:
    """Calibration images as onnxruntime reads them."""

    def __init__(self, images: Tensor, size: int = 32) -> None:
        self.batches: Iterator[Tensor] = iter(images.float().split(size))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def _quantize_torch(model: nn.Module, file: Path, metadata: dict[str, Any]) -> None:
    """A TorchScript file: torch.export has no way to write the packed weights of PyTorch's int8 layers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch would drop both, and has nothing instead that is as fast on CPUs
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

            quantized = quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig})
            script = torch.jit.script(quantized)
            whole = file.with_name("whole.torchscript")
            torch.jit.save(script, whole, _extra_files={f"{METADATA}.json": json.dumps(metadata)})
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
            for name in source.namelist():
                if not name.endswith(".debug_pkl"):  # where lines of code lay on this machine
                    target.writestr(name, source.read(name))
    except Exception as error:
        raise ValueError(
            f"PyTorch {torch.__version__} cannot quantize this {type(model).__name__}, use onnxruntime: {reason(error)}"
        ) from error


@torch.no_grad()
def _count(model: nn.Module, quantized: nn.Module, test: Iterable[tuple[Tensor, Tensor]]) -> tuple[int, int, int, int]:
    """Of how many images; how many both get right, each; how many predictions agree."""
    images, before, after, agree = 0, 0, 0, 0
    for x, labels in test:
        ours, theirs = model(x).argmax(1), quantized(x).argmax(1)
        images += len(labels)
        before += int((ours == labels).sum())
        after += int((theirs == labels).sum())
        agree += int((ours == theirs).sum())
    if not images:
        raise ValueError("there are no images to measure the accuracy on")
    return images, before, after, agree
