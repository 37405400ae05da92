"""Do two models compute the same? Measured module by module and for the whole network."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .comparison import Comparison, run, run_wide
from .float32 import full_float32
from .preparation import copied
from .probing import ROWS, Arguments, cast, dtype_of
from .report import NETWORK, BlockDeviation, EquivalenceReport
from .rounding import (
    LIMIT,
    Tally,
    largest_deviation,
    note_on_infinity,
    paired_tensors,
    rounded_copy,
    tensors_of,
    wide_copy,
)


@contextlib.contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """Without autocast, inference mode, or the rounding of float32 convs and products to fewer bits."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(full_float32())
        yield


@_plain_arithmetic()
def verify(
    a: nn.Module,
    b: nn.Module | Callable[..., object],
    inputs: object = None,
    tolerance: float | None = None,
    names: Mapping[str, str] | None = None,
) -> EquivalenceReport:
    """Compare two models, ``a`` the reference, both in eval mode. Neither is changed.

    Weights of the same name and shape are compared first. Every block, and the smallest module around any other
    difference, is then run on random inputs of its own, in both models; and the whole models on ``inputs``.

    The verdict is made in float64, for each output channel: the difference may not exceed ``LIMIT`` times what
    one rounding of the weights to their dtype does to that channel, which is measured by rounding them at random.
    So float64 models must be equal to about 1e-15, and a badly conditioned float32 model is not called different.

    Args:
        a: the reference.
        b: a model in the same or another dtype; or any callable on tensors, for example a session of an exported
            file or a compiled model, which is compared as a whole and with the rounding of its arithmetic.
        inputs: a tensor (N, C, H, W); or a tuple of positional or a dict of keyword arguments, with tensors of any
            dtype. By default 8 random images of the size that ``a`` specifies.
        tolerance: largest relative deviation (norm over norm) of each block and the network, instead of that.
        names: names of modules in ``b`` for those in ``a``, where they differ: ``{"stages.0": "layer1"}``.

    Raises:
        ValueError: if there are no inputs and ``a`` specifies no input size, if outputs differ in structure or shape,
            if the tolerance is negative, or if a copy would not compute with its own weights (a wrapper, or a
            ``forward`` assigned to a module).
    """
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}, but has to be 0 or more")
    args, kwargs = _arguments(example_inputs(a) if inputs is None else inputs)
    batch = next((len(t) for _, t in tensors_of([args, kwargs]) if t.dim()), 1)
    if batch == 0:
        raise ValueError("inputs have zero images: pass one or more")
    few = cast(_some_rows((args, kwargs), batch), torch.float64)
    a = copied(a)
    if any(t.is_meta for t in (*a.parameters(), *a.buffers())):
        raise ValueError(f"{type(a).__name__} is on the meta device, which has no numbers: load its weights first")
    modules: tuple[BlockDeviation, ...] = ()
    if isinstance(b, nn.Module) and not _is_compiled(b):
        b = copied(b)
        comparison = Comparison(a, b, names or {}, tolerance)
        tally, ours, theirs = comparison.network(*few)
        _ensure_numbers(tally, a)
        rows = comparison.modules()
        root = rows.pop("", None)
        modules, whole = tuple(rows.values()), comparison.whole
    else:
        tally, ours, theirs = _compare_callable(a, b, few)
        _ensure_numbers(tally, a)
        root, whole = None, True
    exact = largest_deviation(ours, theirs)
    ours, theirs = (_call(model, args, kwargs, dtype_of(a)) for model in (a, b))
    verdict = tally.verdict()
    network = BlockDeviation(NETWORK, largest_deviation(ours, theirs), exact, **vars(verdict))
    if root is not None and root.ratio > network.ratio:
        network = replace(root, name=NETWORK, native=network.native, float64=exact)
    scatter = tally.relative_rounding()
    if whole and LIMIT * scatter > 0.5 and not network.note and network.ratio > 0:
        note = (
            f"one rounding of the weights moves the outputs by {scatter:.1%}, too much to tell models apart as a whole"
        )
        network = replace(network, ratio=math.inf, note=note)
    note = next(filter(None, (note_on_infinity(*pair) for _, pair in paired_tensors(ours, theirs))), "")
    if note and not network.note:  # it overflows in its own dtype only
        network = replace(network, ratio=math.inf, note=f"in its own dtype, {note}")
    agree, images = (0, 0) if network.note else _agreement(ours, theirs)
    dtype = max(dtype_of(a), dtype_of(b) if isinstance(b, nn.Module) else dtype_of(a), key=lambda d: torch.finfo(d).eps)
    return EquivalenceReport(modules, network, agree, images, str(dtype).removeprefix("torch."), tolerance)


def example_inputs(model: nn.Module, batch_size: int = 8) -> Tensor:
    """Random images (seeded) of the size that a timm model or a block specifies, in its dtype, on its device.

    Raises:
        ValueError: if the model specifies no input size, or ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"cannot make {batch_size} images: ask for one or more")
    if hasattr(model, "pretrained_cfg"):
        size = get_model_input_config(model)["input_size"]
    elif hasattr(model, "feature_size") and hasattr(model, "in_channels"):
        size = (model.in_channels, *model.feature_size)  # type: ignore[misc]
    else:
        raise ValueError(f"{type(model).__name__} does not state its input size: pass inputs, a tensor (N, C, H, W)")
    generator = torch.Generator().manual_seed(0)
    like = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    return torch.randn(batch_size, *size, generator=generator).to(like.device, like.dtype)


def _compare_callable(a: nn.Module, b: Callable[..., object], few: Arguments) -> tuple[Tally, object, object]:
    """Compare a model with something that has no weights to round: its arithmetic is judged by that of ``a``."""
    args, kwargs = few
    wide = run_wide(wide_copy(a), args, kwargs)
    native, theirs = (_call(model, args, kwargs, dtype_of(a)) for model in (a, b))
    tally = Tally()
    tally.add(wide, theirs, [(wide, run(rounded_copy(a, 0), args, kwargs)), (wide, native)])
    return tally, wide, theirs


def _ensure_numbers(tally: Tally, model: nn.Module) -> None:
    if not tally.sums:
        raise ValueError(f"{type(model).__name__} returns no numbers to compare")


def _arguments(inputs: object) -> Arguments:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _is_compiled(model: nn.Module) -> bool:
    """Whether a module is one in name only: made by torch.compile or TorchScript, for one dtype."""
    return isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod")


def _some_rows(values: Any, batch: int) -> Any:
    """At most :data:`ROWS` rows, evenly spread, of each tensor that has as many as the batch."""
    step = max(1, -(-batch // ROWS))
    return tree_map(lambda v: v[::step] if isinstance(v, Tensor) and v.dim() and len(v) == batch else v, values)


def _call(model: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> object:
    if isinstance(model, nn.Module):
        dtype = dtype_of(model, dtype)
    return model(*cast(args, dtype), **cast(kwargs, dtype))


def _agreement(a: object, b: object) -> tuple[int, int]:
    """Agreeing top-1 predictions, and images that were compared, if the outputs are class logits (N, classes)."""
    if isinstance(a, Tensor) and a.dim() == 2 and a.shape[1] > 1:
        ((_, (ours, theirs)),) = paired_tensors(a, b)
        return int((ours.argmax(1) == theirs.argmax(1)).sum()), len(ours)
    return 0, 0
