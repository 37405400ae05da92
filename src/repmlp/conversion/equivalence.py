"""Do two forms of a model compute the same? Measured block by block and for the whole network."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from .contract import iter_reparameterizable

#: Largest relative error (norm of the difference over norm of the reference) that rounding explains, by the
#: dtype of the weights: twenty and more times what randomized networks show, room for badly conditioned ones.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}
#: What is left of that in float64, where the arithmetic is exact and only the weights are rounded: the sharper test.
FLOAT64_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Error:
    """How far an output is from its reference: ``relative`` is norm over norm, ``maximum`` is absolute."""

    maximum: float
    relative: float


@dataclasses.dataclass(frozen=True)
class BlockError:
    """Error of one block, given the same input: in the model's dtype, and with all weights cast to float64."""

    name: str
    native: Error
    float64: Error


@dataclasses.dataclass(frozen=True)
class EquivalenceReport:
    """What :func:`verify` found. ``str(report)`` is a table; ``bool(report)`` is the verdict.

    Attributes:
        blocks: the error of every block on the input that it gets inside the first model.
        network: the error of the whole model.
        agree, images: how many top-1 predictions are the same, of how many (0 of 0 if the model is no classifier).
        dtype: of the weights, the coarser one of the two models.
        tolerance: what no relative error in the model's dtype may exceed, and a tenth of it in float64.
    """

    blocks: tuple[BlockError, ...]
    network: BlockError
    agree: int
    images: int
    dtype: str
    tolerance: float

    @property
    def equal(self) -> bool:
        return all(
            row.native.relative <= self.tolerance and row.float64.relative <= self.tolerance * FLOAT64_SHARE
            for row in (*self.blocks, self.network)
        )

    def __bool__(self) -> bool:
        return self.equal

    @property
    def worst_block(self) -> BlockError | None:
        return max(self.blocks, key=lambda block: block.native.relative, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "equal": self.equal}

    def rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Name, max abs and relative error in the model's dtype, max abs and relative error in float64."""
        for row in (*self.blocks, self.network):
            errors = (row.native.maximum, row.native.relative, row.float64.maximum, row.float64.relative)
            yield row.name, *(f"{error:.1e}" for error in errors)  # type: ignore[misc]

    def verdict(self) -> str:
        agree = f", {self.agree} of {self.images} top-1 predictions agree" if self.images else ""
        word = "equal" if self.equal else "NOT EQUAL"
        bounds = f"{self.tolerance:.0e} ({self.dtype}) and {self.tolerance * FLOAT64_SHARE:.0e} (float64)"
        return f"{word} within a relative error of {bounds}{agree}"

    def __str__(self) -> str:
        header = ("block", "max abs", "relative", "max abs (float64)", "relative (float64)")
        lines = [header, *self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        table = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([*table, self.verdict()])


@torch.no_grad()
def verify(
    a: nn.Module, b: nn.Module, inputs: Tensor | None = None, tolerance: float | None = None
) -> EquivalenceReport:
    """Compare two forms of a model, ``a`` the reference, both in eval mode. Neither is changed.

    Every block of ``a`` is compared with the module of the same name in ``b``, on the very input
    that it gets inside ``a``: so each error is that block's own. The whole models are compared on
    ``inputs``. All is done twice: as the models are, and in float64, where what is left of an error
    comes from rounding the converted weights, not from arithmetic.

    Args:
        a, b: the models, in the same or different dtypes.
        inputs: (N, C, H, W); by default 8 random images of the size that ``a`` states.
        tolerance: on the relative errors, a tenth of it on those in float64; by default that of the coarser
            dtype in :data:`TOLERANCES`.

    Raises:
        ValueError: if ``inputs`` is not given and ``a`` states no input size, or the outputs differ in shape.
    """
    if inputs is None:
        inputs = example_inputs(a)
    a, b = copy.deepcopy(a).eval(), copy.deepcopy(b).eval()
    dtype = max((_dtype(a), _dtype(b)), key=lambda dtype: torch.finfo(dtype).eps)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # by default it rounds float32 convs to 10 bits
        native, agree, images = _compare(a, b, inputs)
    float64, _, _ = _compare(a.double(), b.double(), inputs)
    rows = [BlockError(name, native[name], float64[name]) for name in native]
    return EquivalenceReport(
        blocks=tuple(rows[:-1]),
        network=rows[-1],
        agree=agree,
        images=images,
        dtype=str(dtype).removeprefix("torch."),
        tolerance=TOLERANCES[dtype] if tolerance is None else tolerance,
    )


def example_inputs(model: nn.Module, batch_size: int = 8) -> Tensor:
    """Random images (seeded) of the size that a timm model or a block states, in its dtype, on its device.

    Raises:
        ValueError: if the model states no input size.
    """
    if hasattr(model, "pretrained_cfg"):
        size = get_model_input_config(model)["input_size"]
    elif hasattr(model, "feature_size") and hasattr(model, "in_channels"):
        size = (model.in_channels, *model.feature_size)  # type: ignore[misc]
    else:
        raise ValueError(f"{type(model).__name__} does not state its input size: pass inputs, a tensor (N, C, H, W)")
    generator = torch.Generator().manual_seed(0)
    parameter = next(model.parameters())
    return torch.randn(batch_size, *size, generator=generator).to(parameter.device, parameter.dtype)


def _compare(a: nn.Module, b: nn.Module, inputs: Tensor) -> tuple[dict[str, Error], int, int]:
    """Errors by block name, the whole network's last; agreeing top-1 predictions; images that were compared."""
    errors: dict[str, Error] = {}
    dtype_a, dtype_b = _dtype(a), _dtype(b)
    others = dict(b.named_modules())

    def compare_block(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            theirs = others[name](*(arg.to(dtype_b) for arg in args))
            error = _error(output, theirs)
            errors[name] = max(errors.get(name, error), error, key=lambda e: e.relative)

        return hook

    handles = [
        module.register_forward_hook(compare_block(name))
        for name, module in iter_reparameterizable(a)
        if name and name in others
    ]
    ours = a(inputs.to(dtype_a))
    for handle in handles:
        handle.remove()
    theirs = b(inputs.to(dtype_b))
    errors["whole network"] = max(
        (_error(x, y) for x, y in zip(_outputs(ours), _outputs(theirs), strict=True)), key=lambda e: e.relative
    )
    if isinstance(ours, Tensor) and ours.dim() == 2 and ours.shape[1] > 1:
        return errors, int((ours.argmax(1) == theirs.argmax(1)).sum()), len(ours)
    return errors, 0, 0


def _error(reference: Tensor, other: Tensor) -> Error:
    if reference.shape != other.shape:
        raise ValueError(
            f"outputs differ in shape, {list(reference.shape)} and {list(other.shape)}: not the same model"
        )
    reference, other = reference.double(), other.double()
    difference, norm = (reference - other).norm().item(), reference.norm().item()
    if difference == 0:
        return Error(0.0, 0.0)
    relative = difference / norm if norm else math.inf
    if not math.isfinite(relative):  # a NaN would compare false with everything, also with the tolerance
        return Error(math.inf, math.inf)
    return Error((reference - other).abs().max().item(), relative)


def _outputs(output: Any) -> list[Tensor]:
    """A network gives a tensor, or a list of feature maps."""
    return [output] if isinstance(output, Tensor) else list(output)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
