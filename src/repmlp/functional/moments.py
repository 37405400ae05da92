"""Batch statistics of linear maps, from the first two moments of what goes into them.

Every branch of a block is linear in the rows of the partition map, so the mean and the variance that
its BN takes over a batch follow from the rows' mean ``mu`` and covariance ``S``: a row ``v`` of an FC
gives outputs of mean ``v.mu`` and variance ``v S v^T``. A conv is an FC on its *taps*, what its kernel
lies on at one pixel: over all rows and pixels the taps have a mean and a covariance of their own, and
these too follow from ``mu`` and ``S``. So a training step can merge all branches before it has run any.

Rows and taps are centered first, so that no variance is a difference of two squares, and a large mean
costs no digits. What does cost digits is a row of an FC that hardly responds to what varies most in its
inputs: if its outputs spread k times less than they could, the relative error is about k*k roundings,
where that of the outputs' own variance is k.

M rows, C/O channels in/out, h,w partition, g groups, I = C/g*h*w inputs and Q = O/g*h*w outputs of one
group of FC3, kh,kw kernel, T = C/g*kh*kw taps of one group.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: What :func:`prefer_moments` knows of the machine, fitted to benchmarks/moments.py: a conv runs as if each of its
#: groups had at least CHANNELS input channels (fewer do not fill a vector), and making one merged kernel costs, for
#: each of its numbers, as much as OVERHEAD multiply-adds of a matrix product.
CHANNELS = 12
OVERHEAD = 1000


def prefer_moments(
    rows: int, inputs: int, outputs: int, size: tuple[int, int], kernel_sizes: Iterable[tuple[int, int]]
) -> bool:
    """Whether a training step from moments costs less than one that runs the convs.

    Compares the multiply-adds, forward and backward, that one way needs and the other does not::

        branches   3 M Q I (sum of kh*kw)/(h*w), slowed down by CHANNELS/(C/g) where a group has few channels
        moments    2 M I I for the covariance, 3 Q I I for the variances of FC3's rows, OVERHEAD Q I for the kernel

    So moments win where there are many rows for the width of a group, and few channels in it.

    Args:
        rows: M.
        inputs, outputs: I, Q.
        size: (h, w).
        kernel_sizes: (kh, kw) of every conv.
    """
    pixels = size[0] * size[1]
    taps = sum(kh * kw for kh, kw in kernel_sizes)
    branches = 3 * rows * outputs * taps / pixels * max(1.0, CHANNELS * pixels / inputs)
    return branches > 2 * rows * inputs + 3 * outputs * inputs + OVERHEAD * outputs


class _Gram(torch.autograd.Function):
    """``x^T x``, whose gradient is one product where that of a product of two matrices is two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.bmm(x.mT, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.bmm(x, gradient + gradient.mT)


def covariance(x: Tensor, groups: int) -> Tensor:
    """The covariance of the inputs of each group over the rows, divided by M as BN does.

    Args:
        x: (M, g*I), centered: the mean over the rows is zero.
        groups: g.

    Returns:
        (g, I, I).
    """
    M = x.shape[0]
    return _Gram.apply(x.view(M, groups, -1).transpose(0, 1)) / M


def linear_moments(weight: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance of every output of one FC per group.

    Args:
        weight: (g, Q, I).
        mean, covariance: of its inputs, (g, I) and (g, I, I).

    Returns:
        Two of (g*Q); the variance is not negative.
    """
    variance = (torch.bmm(weight, covariance) * weight).sum(2)
    return torch.bmm(weight, mean.unsqueeze(2)).flatten(), variance.clamp_min(0).flatten()


def im2col(x: Tensor, size: tuple[int, int], kernel_size: tuple[int, int]) -> Tensor:
    """What a conv's kernel lies on at every pixel of one map per group, zeros outside the map.

    Args:
        x: (g, I).
        size: (h, w) of the map.
        kernel_size: (kh, kw), both odd; the conv has stride 1 and padding (kh//2, kw//2).

    Returns:
        (g, T, h*w).
    """
    kh, kw = kernel_size
    return F.unfold(x.view(x.shape[0], -1, *size), kernel_size, padding=(kh // 2, kw // 2))


def patch_moments(
    means: Tensor, covariance: Tensor, size: tuple[int, int], kernel_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of a conv's taps over all rows and pixels.

    With the kernel as a weight (g, O/g, T), :func:`linear_moments` then gives the statistics of the conv's channels.

    Args:
        means: the taps of the rows' mean, :func:`im2col` of it, (g, T, h*w).
        covariance: of the rows, (g, I, I).
        size: (h, w) of the map.
        kernel_size: (kh, kw).

    Returns:
        (g, T) and (g, T, T).
    """
    (h, w), (kh, kw), (g, T, pixels) = size, kernel_size, means.shape
    C_g = T // (kh * kw)
    # The mean over the pixels of the taps' covariance at a pixel: sums along diagonals of S, first in x, then in y.
    S = covariance.view(g, C_g, h, w, C_g, h, w).permute(0, 1, 4, 2, 5, 3, 6)  # (g, c, c', y, y', x, x')
    S = S.reshape(g * C_g * C_g, h * h, w * w)
    S = _tap_pairs(h, kh, S) @ (S @ _tap_pairs(w, kw, S).T)  # (g*C/g*C/g, kh*kh, kw*kw)
    within = S.view(g, C_g, C_g, kh, kh, kw, kw).permute(0, 1, 3, 5, 2, 4, 6).reshape(g, T, T) / pixels
    # And the spread of the taps' means over the pixels.
    mean = means.mean(2)
    deviations = means - mean.unsqueeze(2)
    return mean, within + torch.bmm(deviations, deviations.mT) / pixels


def _tap_pairs(n: int, k: int, like: Tensor) -> Tensor:
    """Which places a,b on a line of n do the taps i,j of a kernel of k lie on together? 0/1, (k*k, n*n)."""
    place = torch.arange(n, device=like.device)
    shift = torch.arange(k, device=like.device) - k // 2
    at = (place[:, None] == place + shift[:, None, None]).to(like.dtype)  # (k, n, n): tap i at pixel p lies on a
    return torch.einsum("iap,jbp->ijab", at, at).reshape(k * k, n * n)
