"""Batch normalization in eval mode is an affine map per channel: fold it into the layer beside it.

With ``sigma = sqrt(running_var + eps)``: ``BN(x) = scale * x + shift``, ``scale = gamma / sigma``,
``shift = beta - mu * scale`` (RepMLP v1, eq. 5; also RepVGG). All functions compute in float64 and
return float64, so that a whole merge is rounded once, at its end, by whoever asked for it. Every
one of them is differentiable.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """``x`` in float64 (in float32 on Apple's MPS, which has no float64)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def row_slices(weight: Tensor, numel: int = 2**18) -> Iterator[slice]:
    """Slices of the first axis of a weight that hold about ``numel`` numbers each: to widen it piece by piece."""
    step = max(1, numel * weight.shape[0] // max(1, weight.numel()))
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))


def norm_scale_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """The affine map ``(scale, shift)``, each (C), that a batch norm, also a frozen one, applies in eval mode.

    Raises:
        ValueError: if the norm keeps no running statistics: then it is not an affine map.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"{norm} keeps no running statistics, so its output depends on the batch and cannot be folded: "
            f"build it with track_running_stats=True"
        )
    mean, var = widen(norm.running_mean), widen(norm.running_var)
    gamma = widen(norm.weight) if norm.weight is not None else torch.ones_like(mean)
    beta = widen(norm.bias) if norm.bias is not None else torch.zeros_like(mean)
    scale = gamma * torch.rsqrt(var + norm.eps)
    return scale, beta - mean * scale


def fold_norm_after(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold ``y -> scale*y + shift`` into the conv or FC before it: ``scale*(Wx + b) + shift``.

    Args:
        weight: (O, ...), outputs first, as a conv or a linear layer stores it.
        bias: (O), or None.
        scale, shift: (O).

    Returns:
        The folded weight (O, ...) and bias (O).
    """
    folded = widen(weight) * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return folded, shift if bias is None else scale * widen(bias) + shift


def fold_norm_before(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold ``x -> scale*x + shift`` into the FC after it: ``W(scale*x + shift) + b``.

    Args:
        weight: (O, I).
        bias: (O), or None.
        scale, shift: (I), one value per input of the FC.

    Returns:
        The folded weight (O, I) and bias (O).
    """
    wide = widen(weight)
    through = wide @ shift  # (O), what the shift becomes behind the FC
    return wide * scale, through if bias is None else through + widen(bias)
