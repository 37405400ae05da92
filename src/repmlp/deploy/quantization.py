"""Write a network in deploy form in int8, and measure what that costs in accuracy.

Weights are rounded symmetrically, with one scale per output; FC3 has one per group and output. Groups differ in
magnitude, and with one scale for all of them the small ones would lose their bits. Engines treat a batched matrix
product as one operator with one scale, so FC3 is written as one FC per group.

Activations stay in float32 (weights), or are 8-bit unsigned with one scale per tensor, which is measured on calibration
images (static) or for each input while the network runs (dynamic).
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..data import ImageData, Transformed, eval_transform
from ..files import atomic_file
from ..layers import GroupedLinear
from ..training.evaluation import classify
from .check_files import write_check_files
from .engines import QUANTIZERS, Engine, find_engine
from .exporting import OnProgress, claim_exported, ensure_can_export, float32_copy, in_deploy_form
from .metadata import export_metadata
from .runtime import load_exported

#: Largest relative error of the outputs where there are no labelled images to measure accuracy on.
MAX_ERROR = 0.1


@dataclass(frozen=True)
class Quantized:
    """An int8 file that was written, and how it compares with the network in float32.

    Attributes:
        file, engine, method: the file, what runs it, how it was rounded.
        weight_bits: 8, or 7 for x86 CPUs without VNNI.
        error: relative error of the outputs (norm over norm) for eight random images.
        num_images: labelled images that it was tried on; 0 if there were none.
        num_correct_float32, num_correct: how many of them are classified correctly, in float32 and in int8.
        num_agree: how many get the same prediction.
        size_float32, size: bytes of the float32 weights, and of the file or files.
    """

    file: Path
    engine: str
    method: str
    weight_bits: int
    error: float
    num_images: int
    num_correct_float32: int
    num_correct: int
    num_agree: int
    size_float32: int
    size: int

    @property
    def drop(self) -> float:
        """Points of top-1 accuracy that int8 loses; negative if it gains; NaN without labelled images."""
        return 100 * (self.num_correct_float32 - self.num_correct) / self.num_images if self.num_images else math.nan


def quantize(
    model: nn.Module,
    file: str | Path,
    test: Iterable[tuple[Tensor, Tensor]] | None = None,
    calibration: Tensor | None = None,
    *,
    engine: str = "onnxruntime",
    method: str | None = None,
    max_drop: float = 0.5,
    reduce_range: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Quantized:
    """Write a network in int8; there is no file unless it is accurate enough.

    It takes and describes what an exported file does (:func:`repmlp.deploy.export`), is opened by
    :func:`~repmlp.deploy.load_exported`, and has its two check files next to it.

    Args:
        model: made by ``timm.create_model``, in deploy form or with nothing to convert.
        file: to write, with the suffix of the engine's files.
        test: batches of images (N, C, H, W) and labels (N) to measure accuracy on. Needed unless the method is weights.
        calibration: for static: images (N, C, H, W) to measure the range of activations on.
        engine: onnxruntime, openvino or torch.
        method: static (convs, FCs and what is between them in int8; logits in float32), dynamic (only FCs) or weights
            (only the weights of FCs); by default the engine's first.
        max_drop: points of top-1 that int8 may lose.
        reduce_range: round weights to 7 bits, for files that may run on x86 CPUs without VNNI. There the sum of two
            8-bit products overflows 16 bits, and results are silently wrong. Always so if this CPU is one of them.
            (Not for torch, which takes that bit from the activations.)
        overwrite: replace a file that exists.
        on_progress: see ``repmlp.deploy.exporting.OnProgress``.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is False.
        BlockingIOError: if another process is writing the file.
        ImportError: if the engine is not installed.
        ValueError: if the model is in training form; the engine lacks the method; images are missing or do not fit;
            or accuracy drops by more than ``max_drop``: nothing is written.
    """
    file = Path(file)
    writer, method = check_target(file, engine, method, overwrite)
    model = in_deploy_form(model, "its FC3 is not yet the one that is deployed")
    if method == "static":
        _check_calibration(model, calibration)
    if test is None and method != "weights":
        raise ValueError(f"{method} int8 needs labelled images to measure accuracy on: pass test, or method='weights'")
    bits = writer.weight_bits(method, reduce_range)
    metadata = {**export_metadata(model), "int8": {"engine": engine, "method": method, "weight_bits": bits}}
    reference, model = model, float32_copy(model)
    with claim_exported(file, writer, overwrite), atomic_file(file) as partial:
        on_progress("rounding", 0, 0)
        writer.quantize(split_groups(model), partial, metadata, calibration)
        exported = load_exported(partial)
        error = write_check_files(partial, writer, reference, exported)
        counts = _count(model, exported, test, on_progress) if test is not None else (0, 0, 0, 0)
        done = Quantized(
            file,
            engine,
            method,
            bits,
            error,
            *counts,
            size_float32=sum(4 * parameter.numel() for parameter in model.parameters()),
            size=sum(part.stat().st_size for part in writer.parts(partial)),
        )
        _check_accuracy(done, max_drop)
    return done


def _check_accuracy(done: Quantized, max_drop: float) -> None:
    if done.drop > max_drop:
        n = done.num_images
        raise ValueError(
            f"int8 ({done.engine}, {done.method}) loses {done.drop:.2f} points of top-1, more than the {max_drop:g} "
            f"allowed: {done.num_correct_float32 / n:.2%} -> {done.num_correct / n:.2%} of {n} images; nothing is "
            f"written. Try another method or engine, more calibration images, or training with qat"
        )
    if not done.num_images and not done.error <= MAX_ERROR:
        raise ValueError(
            f"int8 ({done.engine}, {done.method}) changes the outputs for random images by {done.error:.1%}, more than "
            f"the {MAX_ERROR:.0%} allowed; nothing is written. Pass labelled images, to judge it by its accuracy"
        )


def check_target(file: Path, engine: str, method: str | None, overwrite: bool) -> tuple[Engine, str]:
    """The engine and the method, if the file may be written: to call before anything that takes time.

    Raises:
        FileExistsError, ImportError, ValueError: as :func:`quantize`.
    """
    writer = find_engine(QUANTIZERS, engine)
    method = method or writer.int8_methods[0]
    if method not in writer.int8_methods:
        raise ValueError(f"{engine} does not support {method!r} int8: use {' or '.join(writer.int8_methods)}")
    ensure_can_export(file, writer, overwrite, int8=True)
    return writer, method


def calibration_images(model: nn.Module, data: ImageData, count: int, seed: int = 0) -> Tensor:
    """Training images chosen at random, prepared as ``model`` takes them: (count, C, H, W), or all if there are fewer.

    Raises:
        ValueError: if ``count`` is not positive, or the images have another number of channels than the model takes.
    """
    train: Any = data.train
    config = resolve_data_config(model=model)
    if count <= 0:
        raise ValueError(f"cannot calibrate on {count} images: use 1 or more, 256 if unsure")
    if data.in_chans != config["input_size"][0]:
        raise ValueError(
            f"the model takes images of {config['input_size'][0]} channels, the data has {data.in_chans}: "
            f"calibrate on the data that the model was trained for"
        )
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    images = Transformed(train, eval_transform(config), chosen)
    return torch.stack([images[i][0] for i in range(len(chosen))])


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
    """A copy of a model in which every :class:`~repmlp.layers.GroupedLinear` is a ``SplitLinear``."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GroupedLinear):
                setattr(module, name, SplitLinear(child))
    return model


def _check_calibration(model: nn.Module, images: Tensor | None) -> None:
    size = tuple(get_model_input_config(model)["input_size"])
    if images is None or images.dim() != 4 or len(images) == 0 or tuple(images.shape[1:]) != size:
        raise ValueError(
            f"static int8 is calibrated on images (N, {', '.join(str(n) for n in size)}), but got "
            f"{'none' if images is None else list(images.shape)}: pass images that the model was trained for"
        )


def _count(
    model: nn.Module, int8: nn.Module, test: Iterable[tuple[Tensor, Tensor]], on_progress: OnProgress
) -> tuple[int, int, int, int]:
    """Number of images, of correct predictions of either network, and of equal predictions."""
    batches = len(test) if isinstance(test, Sized) else 0

    def reported() -> Iterator[tuple[Tensor, Tensor]]:
        for i, batch in enumerate(test):
            on_progress("measuring accuracy", i, batches)
            yield batch

    (float32, rounded), agree = classify([model, int8], reported())
    if not float32.images:
        raise ValueError("there are no images to measure the accuracy on")
    return float32.images, int(float32.correct), int(rounded.correct), agree
