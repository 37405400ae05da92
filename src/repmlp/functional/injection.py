"""A conv is an FC (RepMLP v1, section 3.4): its kernel, written as the kernel of a fully-connected layer.

On an h x w map, a conv with kernel F, stride 1 and padding p = (kh//2, kw//2) is the linear map

    W[(o, y, x), (c, y+i-p, x+j-p)] = F[o, c, i, j],   zero elsewhere and outside the map.

The paper builds W by convolving an identity matrix. This file has two shorter ways to the same numbers:
windows over the zero-padded kernel (differentiable), and writing each tap of the kernel onto its
diagonal of an existing FC kernel (in place, without scratch memory).

O output and C input channels, g groups, h,w map, kh,kw kernel.
"""

import torch.nn.functional as F
from torch import Tensor


def check_kernel_size(kernel_size: tuple[int, int], size: tuple[int, int] | None = None) -> None:
    """Raise ValueError unless a conv of stride 1 can keep the size of its map and be merged into an FC on it.

    Args:
        kernel_size: (kh, kw); must be odd.
        size: (h, w) of the map, which the kernel must not exceed; None if the conv is not to be merged.
    """
    kh, kw = kernel_size
    if kh < 0 or kw < 0:
        raise ValueError(f"kernel {kh}x{kw} is negative: a kernel is 1, 3, 5 or another odd number of pixels wide")
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"kernel {kh}x{kw} is even: only odd kernels keep the size of the map")
    if size is not None and (kh > size[0] or kw > size[1]):
        raise ValueError(
            f"kernel {kh}x{kw} is larger than the {size[0]}x{size[1]} map that it runs on (a partition, or a grid of "
            f"tokens), so no FC on that map can hold it: use a smaller kernel or a larger map"
        )


def center_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-pad a kernel (O, C/g, .., ..) to ``size`` (kh, kw), with the same center: as a conv, it stays the same."""
    top, left = (size[0] - kernel.shape[2]) // 2, (size[1] - kernel.shape[3]) // 2
    return F.pad(kernel, (left, left, top, top))


def _check(kernel: Tensor, size: tuple[int, int], groups: int) -> None:
    O, _, kh, kw = kernel.shape
    check_kernel_size((kh, kw), size)
    if groups < 1 or O % groups:
        raise ValueError(f"{groups} groups do not divide the kernel's {O} output channels")


def conv_to_linear(kernel: Tensor, size: tuple[int, int], groups: int = 1) -> Tensor:
    """The FC kernel of a conv on an h x w map. Differentiable: gradients flow to ``kernel``.

    Args:
        kernel: (O, C/g, kh, kw), kh and kw odd and not larger than the map.
        size: (h, w) of the map.
        groups: g, of the channels.

    Returns:
        (g, O/g*h*w, C/g*h*w), a weight for :func:`~repmlp.functional.grouped_linear`.

    Raises:
        ValueError: if the kernel is even or larger than the map, or ``groups`` does not divide O.
    """
    _check(kernel, size, groups)
    (h, w), (O, C_g, kh, kw) = size, kernel.shape
    # Center the kernel in (2h-1, 2w-1): then F[y' - y + h-1, x' - x + w-1] links input y',x' to output y,x.
    top, left = h - 1 - kh // 2, w - 1 - kw // 2
    padded = F.pad(kernel, (left, left, top, top))  # (O, C/g, 2h-1, 2w-1)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (O, C/g, h, w, h, w), window s starts at s = h-1 - y
    rows = windows.flip(2, 3)  # (O, C/g, y, x, y', x')
    return rows.permute(0, 2, 3, 1, 4, 5).reshape(groups, O // groups * h * w, C_g * h * w)


def add_conv_to_linear_(weight: Tensor, kernel: Tensor, size: tuple[int, int], groups: int = 1) -> Tensor:
    """Add ``conv_to_linear(kernel, size, groups)`` to ``weight`` in place, and return ``weight``.

    Every tap of the kernel is one value along one diagonal of the FC kernel, so a merge is kh*kw
    strided additions, at most h*w*O*(C/g)*kh*kw in all, without scratch memory.

    Args:
        weight: (g, O/g*h*w, C/g*h*w), contiguous in its last axis and changed in place.
        kernel: (O, C/g, kh, kw), of the same dtype and device.
        size: (h, w) of the map.
        groups: g, of the channels.

    Raises:
        ValueError: as :func:`conv_to_linear`, or if ``weight`` has another shape.
    """
    _check(kernel, size, groups)
    (h, w), (O, C_g, kh, kw) = size, kernel.shape
    O_g = O // groups
    if weight.shape != (groups, O_g * h * w, C_g * h * w):
        raise ValueError(
            f"weight is {tuple(weight.shape)}, but kernel {tuple(kernel.shape)} on a {h}x{w} map with {groups} "
            f"groups needs ({groups}, {O_g * h * w}, {C_g * h * w})"
        )
    add_conv_to_rows_(weight.view(groups, O_g, h, w, C_g, h, w), kernel.view(groups, O_g, C_g, kh, kw))
    return weight


def add_conv_to_rows_(fc: Tensor, kernel: Tensor, first: int = 0) -> None:
    """Add a conv to some rows of the output map of an FC, in place: :func:`add_conv_to_linear_` for a slice of it.

    Args:
        fc: (..., O, y, x, C, y', x'), the weights from input pixel y',x' to output pixel y,x, for some of the y.
        kernel: (..., O, C, kh, kw), of the same dtype and device.
        first: the first of the y.
    """
    kh, kw = kernel.shape[-2:]
    for i in range(kh):
        rows = fc.diagonal(first + i - kh // 2, -5, -2)  # y' = y + i - kh//2: (..., O, x, C, x', ny)
        for j in range(kw):
            diagonal = rows.diagonal(j - kw // 2, -4, -2)  # x' = x + j - kw//2: (..., O, C, ny, nx)
            diagonal.add_(kernel[..., i, j, None, None])  # a diagonal ends at the edge of the map
