"""The partition map and its inverse (RepMLP v1, section 3.1): they only rearrange memory.

N batch, C channels, H,W feature map, h,w partition, P = ceil(H/h) * ceil(W/w) partitions per channel.
"""

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-pad the bottom and the right of ``x`` (N, C, H, W) up to the next multiple of ``size``."""
    bottom, right = -x.shape[-2] % size[0], -x.shape[-1] % size[1]
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def partition_map(x: Tensor, size: tuple[int, int], pad: bool = False) -> Tensor:
    """Cut a feature map into non-overlapping partitions, stacked on the batch axis.

    Partition ``n*P + i*(W/w) + j`` holds ``x[n, :, i*h:(i+1)*h, j*w:(j+1)*w]``.

    Args:
        x: feature map (N, C, H, W).
        size: (h, w) of a partition.
        pad: zero-pad the bottom and the right if ``size`` does not divide (H, W).

    Returns:
        The partition map (N*P, C, h, w).

    Raises:
        ValueError: if ``size`` does not divide (H, W) and ``pad`` is False.
    """
    h, w = size
    if pad:
        x = pad_to_multiple(x, size)
    N, C, H, W = x.shape
    if H % h or W % w:
        raise ValueError(
            f"feature size {H}x{W} is not a multiple of partition {h}x{w}: pass pad=True or a partition that divides it"
        )
    x = x.reshape(N, C, H // h, h, W // w, w)  # (N, C, H/h, h, W/w, w)
    x = x.permute(0, 2, 4, 1, 3, 5)  # (N, H/h, W/w, C, h, w)
    return x.reshape(N * (H // h) * (W // w), C, h, w)  # (N*P, C, h, w)


def unpartition_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`partition_map`; crops the padding.

    Args:
        x: partition map (N*P, C, h, w).
        size: (H, W) of the feature map, without padding.

    Returns:
        The feature map (N, C, H, W).

    Raises:
        ValueError: if the number of partitions is not a multiple of P.
    """
    H, W = size
    M, C, h, w = x.shape
    rows, cols = (H + h - 1) // h, (W + w - 1) // w
    N = M // (rows * cols)
    if N * rows * cols != M:
        raise ValueError(
            f"{M} partitions of {h}x{w} do not fill feature maps of {H}x{W}: "
            f"their number must be a multiple of {rows * cols}"
        )
    x = x.reshape(N, rows, cols, C, h, w)  # (N, H/h, W/w, C, h, w)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (N, C, H/h, h, W/w, w)
    x = x.reshape(N, C, rows * h, cols * w)
    if (rows * h, cols * w) == (H, W):  # a slice of everything is not free: exporters keep it as a copy
        return x
    return x[:, :, :H, :W]  # (N, C, H, W)
