"""Batch statistics over all processes, also on a CPU, which torch.nn.SyncBatchNorm does not support."""

from typing import Any

import timm.layers
import torch
from torch import Tensor, nn


def convert_sync_batchnorm(model: nn.Module, processes: int, device: torch.device) -> nn.Module:
    """Make every BN of a model use the statistics of the whole batch, over all processes.

    A block with such a BN always runs its branches: batch_statistics="moments" is ignored.

    Args:
        model: changed in place or replaced, so use the return value. State-dict keys stay.
        processes: how many there are; with 1 the model is returned unchanged.
        device: the model's device.

    Raises:
        ValueError: for a subclass of BN, unless on a GPU.
    """
    if processes == 1:
        return model
    if device.type == "cuda":
        return timm.layers.convert_sync_batchnorm(model)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if other := next((norm for norm in norms if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, SyncNorm)), None):
        raise ValueError(f"{type(other).__name__} cannot be synchronized on {device.type}: train without sync_bn")
    for norm in norms:
        norm.__class__ = SyncNorm  # in place: parameters, mode, hooks and sharing stay as they are
    return model


class _MeanOfProcesses(torch.autograd.Function):
    """The mean of a tensor over all processes, and in the backward pass the mean of their gradients.

    That is the gradient of the mean of the processes' losses, which is what DDP minimizes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x / torch.distributed.get_world_size()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _MeanOfProcesses.forward(ctx, grad)


class SyncNorm(nn.modules.batchnorm._BatchNorm):
    """BN over the batches of all processes, which must have the same size."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of shape (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over = [0, *range(2, x.dim())]
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean = _MeanOfProcesses.apply(x.mean(over))  # (C)
        variance = _MeanOfProcesses.apply((x - mean.view(shape)).square().mean(over))  # (C), biased
        self._move_running_statistics(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        y = (x - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _move_running_statistics(self, mean: Tensor, variance: Tensor, here: int) -> None:
        running_mean, running_var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if running_mean is None or running_var is None or batches is None:
            return
        n = here * torch.distributed.get_world_size()  # values per channel
        batches.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(batches)
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (n / (n - 1))).to(running_var.dtype), momentum)
