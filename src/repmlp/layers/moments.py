"""A training step of FC3 and the convs beside it as one FC: merged under the batch's own statistics.

The same outputs, gradients and running statistics as from the branches, up to rounding; what it takes
is one product for the covariance of the partition map, what it saves is every conv, every BN and the
output that each of them keeps for the backward pass. Not in the papers; the maths is in functional/moments.py.

M rows, C/O channels in/out, h,w partition, g groups, I inputs of one group, kh,kw largest kernel, T taps.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import (
    conv_to_linear,
    covariance,
    grouped_linear,
    im2col,
    linear_moments,
    patch_moments,
    prefer_moments,
)
from .conv_norm import ConvNorm
from .grouped_linear import GroupedLinear
from .perceptrons import LocalPerceptron, PartitionPerceptron, center_kernel
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


def check_batch_statistics(batch_statistics: str) -> None:
    """Raise ValueError if that is no way to compute them."""
    if batch_statistics not in BATCH_STATISTICS:
        raise ValueError(f"unknown batch_statistics {batch_statistics!r}: use {', '.join(BATCH_STATISTICS)}")


def should_use_moments(
    batch_statistics: str, x: Tensor, partition: PartitionPerceptron, local: LocalPerceptron | None
) -> bool:
    """Whether a training step on the partition map ``x`` (M, C, h, w) is to be computed from its moments.

    Never, whatever is asked for, where only the branches compute what is meant: with a part that is not
    what the block was built of (a SyncBatchNorm, a frozen or a fake-quantized layer), that somebody
    watches (a hook), or while a graph for any number of rows is recorded (fx, export).
    """
    check_batch_statistics(batch_statistics)
    if batch_statistics == "branches" or isinstance(x, torch.fx.Proxy):
        return False
    M = x.shape[0]
    if not isinstance(M, int) or M < 2:  # any number of rows; and of one row the BN complains
        return False
    modules = [*partition.modules(), *(local.modules() if local is not None else ())]
    if not all(_is_plain(module) for module in modules) or (local is not None and local.why_not_centered()):
        return False
    if batch_statistics == "moments":
        return True
    _, Q, I = partition.fc3.weight.shape
    kernel_sizes = [m.kernel_size for m in modules if isinstance(m, nn.Conv2d)]
    return prefer_moments(M, I, Q, partition.partition_size, kernel_sizes)  # type: ignore[arg-type]


def _is_plain(module: Any) -> bool:
    """Whether a module is in training mode, and its parameters determine what it computes."""
    if not module.training or why_not_plain(module, _PARTS):
        return False
    if module._backward_pre_hooks or module._backward_hooks:
        return False
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return not is_norm or (module.affine and module.track_running_stats and module.momentum is not None)


def forward_from_moments(x: Tensor, partition: PartitionPerceptron, local: LocalPerceptron | None) -> Tensor:
    """``BN(FC3(x)) + sum_K BN(conv_K(x))`` in training, with one FC; moves the running statistics of every BN.

    The statistics and the merged kernel are computed in float32 at least, also under autocast.

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
        bias = norm.bias.to(x.dtype).view(g, O // g, pixels)  # x is centered: that is all of it

        if local is not None:
            taps = im2col(mean, size, local.kernel_size)  # (g, T, h*w)
            tap_mean, tap_covariance = patch_moments(taps, S, size, local.kernel_size)  # (g, T), (g, T, T)
            kernel = torch.zeros_like(tap_mean[:, None])  # (g, 1, T), to become (g, O/g, T)
            branch: Any
            for branch in local.branches.values():
                conv, norm = branch.conv, branch.bn
                rows = center_kernel(conv.weight.to(x.dtype), *local.kernel_size).reshape(g, O // g, -1)  # (g, O/g, T)
                scale = _batch_scale(norm, *linear_moments(rows, tap_mean, tap_covariance), M * pixels)  # (O)
                kernel = kernel + rows * scale.view(g, -1, 1)
                bias = bias + norm.bias.to(x.dtype).view(g, -1, 1)
            bias = bias + torch.bmm(kernel, taps - tap_mean.unsqueeze(2))
            weight = weight + conv_to_linear(kernel.view(O, -1, *local.kernel_size), size, g)
    y = grouped_linear(x.to(dtype), weight.to(dtype), bias.flatten())  # (M, O*h*w)
    return y.view(M, O, *size)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device_type):  # as on the meta device
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _batch_scale(norm: Any, mean: Tensor, variance: Tensor, count: int) -> Tensor:
    """gamma/sigma of a BN for a batch of such statistics over ``count`` values; moves its running ones."""
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), norm.momentum)
    return norm.weight.to(variance.dtype) * torch.rsqrt(variance + norm.eps)
