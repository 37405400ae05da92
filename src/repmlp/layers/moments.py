"""A training step in which FC3 and the convs in parallel with it run as one FC, merged under the batch's statistics.

Outputs, gradients and running statistics equal those of the branches, up to rounding. It costs one matrix product
for the covariance of the partition map, and saves every conv, every BN and the output that each keeps for the
backward pass. Not in the papers; the maths is in functional/moments.py.

M rows, C/O channels in/out, h,w partition, g groups, I inputs of one group, kh,kw largest kernel, T values of a patch.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import (
    center_kernel,
    conv_to_linear,
    covariance,
    grouped_linear,
    im2col,
    linear_moments,
    patch_moments,
)
from .conv_norm import ConvNorm
from .grouped_linear import GroupedLinear
from .perceptrons import LocalPerceptron, PartitionPerceptron
from .plain import why_not_plain

#: Where the batch statistics of a block's BNs come from in training.
BATCH_STATISTICS = ("auto", "branches", "moments")
_PARTS = {
    PartitionPerceptron,
    LocalPerceptron,
    nn.ModuleDict,
    ConvNorm,
    GroupedLinear,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
}


#: Constants of :func:`prefer_moments`, fitted to benchmarks/moments.py on a CPU. A conv runs as if each of its groups
#: had at least CHANNELS input channels, since fewer do not fill a vector; each element of the merged kernel costs as
#: much as OVERHEAD multiply-adds of a matrix product. On a CPU with bf16 instructions, a conv in bf16 takes BF16 of its
#: time in float32; moments are computed in float32 either way.
CHANNELS = 12
OVERHEAD = 1000
BF16 = 0.5


def prefer_moments(
    rows: int,
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    kernel_sizes: Iterable[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Whether, on a CPU, a training step from moments should cost less than one that runs the branches.

    Compares the multiply-adds, forward and backward, that only one of them needs::

        branches   3 M Q I (sum of kh*kw)/(h*w), times CHANNELS/(C/g) if a group has few channels,
                   times BF16 in bfloat16
        moments    2 M I I for the covariance, 3 Q I I for the variances of FC3's rows, OVERHEAD Q I for the kernel

    So moments win if there are many rows for the width of a group, and few channels in it.

    Args:
        rows: M, the partitions of the batch.
        inputs, outputs: I, Q.
        size: (h, w).
        kernel_sizes: (kh, kw) of each conv.
        dtype: what the convs would be computed in.
    """
    pixels = size[0] * size[1]
    taps = sum(kh * kw for kh, kw in kernel_sizes)
    branches = 3 * rows * outputs * taps / pixels * max(1.0, CHANNELS * pixels / inputs)
    branches *= BF16 if dtype == torch.bfloat16 else 1.0
    return branches > 2 * rows * inputs + 3 * outputs * inputs + OVERHEAD * outputs


def check_batch_statistics(batch_statistics: str) -> None:
    """Raise ValueError unless it is one of BATCH_STATISTICS."""
    if batch_statistics not in BATCH_STATISTICS:
        raise ValueError(f"unknown batch_statistics {batch_statistics!r}: use {', '.join(BATCH_STATISTICS)}")


def should_use_moments(
    batch_statistics: str, x: Tensor, partition: PartitionPerceptron, local: LocalPerceptron | None
) -> bool:
    """Whether to compute a training step on the partition map ``x`` (M, C, h, w) from its moments.

    Always False if only the branches give the intended result: a layer was replaced or frozen, a hook is registered,
    or fx or export records a dynamic number of rows. "auto" is also False on anything but a CPU, where the constants
    of :func:`prefer_moments` were measured.
    """
    check_batch_statistics(batch_statistics)
    if batch_statistics == "branches" or isinstance(x, torch.fx.Proxy):
        return False
    M = x.shape[0]
    if not isinstance(M, int) or M < 2:  # a dynamic number of rows; and with one row, BN raises its own error
        return False
    modules = [*partition.modules(), *(local.modules() if local is not None else ())]
    if not all(_is_plain(module) for module in modules) or (local is not None and local.why_not_centered()):
        return False
    if batch_statistics == "moments":
        return True
    if x.device.type != "cpu":
        return False
    _, Q, I = partition.fc3.weight.shape
    kernel_sizes = [m.kernel_size for m in modules if isinstance(m, nn.Conv2d)]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return prefer_moments(M, I, Q, partition.partition_size, kernel_sizes, dtype)  # type: ignore[arg-type]


def _is_plain(module: Any) -> bool:
    """Whether a module is in training mode, and its parameters determine what it computes."""
    if not module.training or why_not_plain(module, _PARTS):
        return False
    if module._backward_pre_hooks or module._backward_hooks:
        return False
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return not is_norm or (module.affine and module.track_running_stats and module.momentum is not None)


def forward_from_moments(x: Tensor, partition: PartitionPerceptron, local: LocalPerceptron | None) -> Tensor:
    """``BN(FC3(x)) + sum_K BN(conv_K(x))`` in training, as one FC; updates the running statistics of every BN.

    Computes the statistics and the merged kernel in float32 or wider, also under autocast.

    Shape: (M, C, h, w) -> (M, O, h, w).
    """
    M, dtype, size, g = x.shape[0], x.dtype, partition.partition_size, partition.groups
    O, pixels = partition.out_channels, size[0] * size[1]
    with _without_autocast(x.device.type):
        x = x.flatten(1).to(torch.promote_types(dtype, torch.float32))  # (M, g*I)
        mean = x.mean(0)
        x = x - mean
        mean, S = mean.view(g, -1), covariance(x, g)  # (g, I), (g, I, I)

        weight = partition.fc3.weight.to(x.dtype)  # (g, Q, I)
        norm: Any = partition.bn
        scale = _batch_scale(norm, *linear_moments(weight, mean, S), M)  # (O*h*w)
        weight = weight * scale.view(g, -1, 1)
        bias = norm.bias.to(x.dtype).view(g, O // g, pixels)  # x is centered: nothing to subtract

        if local is not None:
            patches = im2col(mean, size, local.kernel_size)  # (g, T, h*w)
            patch_mean, patch_covariance = patch_moments(patches, S, size, local.kernel_size)  # (g, T), (g, T, T)
            kernel = torch.zeros_like(patch_mean[:, None])  # (g, 1, T), to become (g, O/g, T)
            branch: Any
            for branch in local.branches.values():
                conv, norm = branch.conv, branch.bn
                rows = center_kernel(conv.weight.to(x.dtype), local.kernel_size).reshape(g, O // g, -1)  # (g, O/g, T)
                scale = _batch_scale(norm, *linear_moments(rows, patch_mean, patch_covariance), M * pixels)  # (O)
                kernel = kernel + rows * scale.view(g, -1, 1)
                bias = bias + norm.bias.to(x.dtype).view(g, -1, 1)
            bias = bias + torch.bmm(kernel, patches - patch_mean.unsqueeze(2))
            weight = weight + conv_to_linear(kernel.view(O, -1, *local.kernel_size), size, g)
    y = grouped_linear(x.to(dtype), weight.to(dtype), bias.flatten())  # (M, O*h*w)
    return y.view(M, O, *size)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    # Not asked while compiling, which PyTorch 2.9 cannot do with the question. The meta device has none, for one.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _batch_scale(norm: Any, mean: Tensor, variance: Tensor, count: int) -> Tensor:
    """gamma/sigma of a BN, given its batch statistics over ``count`` values; updates the running ones."""
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), norm.momentum)
    return norm.weight.to(variance.dtype) * torch.rsqrt(variance + norm.eps)
