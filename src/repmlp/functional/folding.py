"""In eval mode, a batch norm is an affine map per channel: fold it into the layer before or after it.

With ``sigma = sqrt(running_var + eps)``: ``BN(x) = scale * x + shift``, ``scale = gamma / sigma``,
``shift = beta - mu * scale`` (RepMLP v1, eq. 5; also RepVGG). All functions are differentiable. They compute in
float64 and return float64, so the caller can round once, after the whole merge.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def to_double(x: Tensor) -> Tensor:
    """``x`` in float64, or in float32 on Apple's MPS, which has no float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def row_slices(weight: Tensor) -> Iterator[slice]:
    """Slices of the first axis of a weight, of about 2^16 numbers each: float64 copies of them stay small."""
    step = max(1, 2**16 * weight.shape[0] // max(1, weight.numel()))
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))


def bn_to_affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The affine map that a batch norm computes in eval mode.

    Args:
        mean, var: the running statistics, (C).
        weight, bias: gamma and beta, (C), or None for 1 and 0.
        eps: added to ``var``.

    Returns:
        ``scale`` and ``shift``, (C).
    """
    mean, var = to_double(mean), to_double(var)
    scale = torch.rsqrt(var + eps) if weight is None else to_double(weight) * torch.rsqrt(var + eps)
    return scale, -mean * scale if bias is None else to_double(bias) - mean * scale


def fold_bn_into_preceding(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold ``y -> scale*y + shift`` into the conv or FC before it: ``scale*(Wx + b) + shift``.

    Args:
        weight: (O, ...), outputs first, as convs and linear layers store it.
        bias: (O), or None.
        scale, shift: (O).

    Returns:
        The folded weight (O, ...) and bias (O).
    """
    folded = to_double(weight) * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return folded, shift if bias is None else scale * to_double(bias) + shift


def fold_bn_into_following(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold ``x -> scale*x + shift`` into the FC after it: ``W(scale*x + shift) + b``.

    Args:
        weight: (O, I).
        bias: (O), or None.
        scale, shift: (I), one value per input of the FC.

    Returns:
        The folded weight (O, I) and bias (O).
    """
    wide = to_double(weight)
    shifted = wide @ shift  # (O)
    return wide * scale, shifted if bias is None else shifted + to_double(bias)
