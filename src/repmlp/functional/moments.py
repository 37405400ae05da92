"""Batch statistics of linear maps, from the first two moments of what goes into them.

Every branch of a block is linear in the rows of the partition map, so the mean and the variance that
its BN takes over a batch follow from the rows' mean ``mu`` and covariance ``S``: a row ``v`` of an FC
gives outputs of mean ``v.mu`` and variance ``v S v^T``. A conv is an FC on the *patches* under its kernel,
one per row and pixel. Their mean and covariance follow from ``mu`` and ``S`` as well. So a training step
can merge all branches before it has run any of them.

Rows and patches are centered first: no variance is then a difference of two squares, and a large mean
loses no precision. An FC row that barely responds to its inputs' main directions of variation does: if
its outputs vary k times less than they could, the relative error of their variance is about k squared
roundings, not k.

M rows, C/O channels in/out, h,w partition, g groups, I = C/g*h*w inputs and Q = O/g*h*w outputs of one
group of FC3, kh,kw kernel, T = C/g*kh*kw values of a patch in one group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Gram(torch.autograd.Function):
    """``x^T x``, whose backward pass needs one matrix product instead of two."""

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
        groups: g, of the channels.

    Returns:
        (g, I, I).
    """
    M = x.shape[0]
    return _Gram.apply(x.view(M, groups, -1).transpose(0, 1)) / M


def linear_moments(weight: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every output of one FC per group.

    Args:
        weight: (g, Q, I).
        mean, covariance: of the inputs, (g, I) and (g, I, I).

    Returns:
        Mean and variance, (g*Q) each; no variance is negative.
    """
    variance = (torch.bmm(weight, covariance) * weight).sum(2)
    return torch.bmm(weight, mean.unsqueeze(2)).flatten(), variance.clamp_min(0).flatten()


def im2col(x: Tensor, size: tuple[int, int], kernel_size: tuple[int, int]) -> Tensor:
    """The patch under a conv's kernel at every pixel of one map per group, with zeros outside the map.

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
    """The mean and the covariance of a conv's patches over all rows and pixels.

    With the kernel as a weight (g, O/g, T), :func:`linear_moments` then gives the statistics of the conv's channels.

    Args:
        means: :func:`im2col` of the rows' mean, (g, T, h*w).
        covariance: of the rows, (g, I, I).
        size: (h, w) of the map.
        kernel_size: (kh, kw).

    Returns:
        (g, T) and (g, T, T).
    """
    (h, w), (kh, kw), (g, T, pixels) = size, kernel_size, means.shape
    C_g = T // (kh * kw)
    # The mean over the pixels of the patches' covariance at a pixel: sums along diagonals of S, in x, then in y.
    S = covariance.view(g, C_g, h, w, C_g, h, w).permute(0, 1, 4, 2, 5, 3, 6)  # (g, c, c', y, y', x, x')
    S = S.reshape(g * C_g * C_g, h * h, w * w)
    S = _offset_pairs(h, kh, S) @ (S @ _offset_pairs(w, kw, S).T)  # (g*C/g*C/g, kh*kh, kw*kw)
    within = S.view(g, C_g, C_g, kh, kh, kw, kw).permute(0, 1, 3, 5, 2, 4, 6).reshape(g, T, T) / pixels
    # And the spread of the patches' means over the pixels.
    mean = means.mean(2)
    deviations = means - mean.unsqueeze(2)
    return mean, within + torch.bmm(deviations, deviations.mT) / pixels


def _offset_pairs(n: int, k: int, like: Tensor) -> Tensor:
    """Whether offsets i,j of a kernel of size k meet positions a,b of a line of n at one pixel: 0/1, (k*k, n*n)."""
    position = torch.arange(n, device=like.device)
    offset = torch.arange(k, device=like.device) - k // 2
    at = (position[:, None] == position + offset[:, None, None]).to(like.dtype)  # (k, n, n): offset i at pixel p: a
    return torch.einsum("iap,jbp->ijab", at, at).reshape(k * k, n * n)
