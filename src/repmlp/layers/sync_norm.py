"""Batch statistics over all processes, on a CPU too, where torch.nn.SyncBatchNorm does not go."""

from typing import Any, cast

import timm.layers
import torch
from torch import Tensor, nn


def convert_sync_batchnorm(model: nn.Module, processes: int, device: torch.device) -> nn.Module:
    """Let every BN of a model take the statistics of the whole batch, whatever part of it each process has.

    A block with such a BN computes its branches; it never takes the statistics from moments.

    Args:
        model: changed in place, or replaced: use what is returned. Its state-dict keys stay.
        processes: of one there is nothing to do.
        device: that the model runs on.

    Raises:
        ValueError: for a BN of a class of its own, on a device other than a GPU.
    """
    if processes == 1:
        return model
    if device.type == "cuda":
        return timm.layers.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                setattr(parent, name, SyncNorm.of(cast(nn.BatchNorm2d, child)))
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                raise ValueError(f"sync_bn knows no {type(child).__name__} on {device.type}: train without it")
    return model


class _MeanOfProcesses(torch.autograd.Function):
    """The mean of a tensor over all processes; each of them gets it, and the mean of their gradients.

    What a process adds to the loss of all is its own loss, and DDP takes the mean of the processes' losses.
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
    """BN of the union of all processes' batches, which have the same size."""

    @classmethod
    def of(cls, norm: nn.modules.batchnorm._BatchNorm) -> "SyncNorm":
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new.load_state_dict(norm.state_dict())
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"a batch norm wants (N, C, ...), got {tuple(input.shape)}")

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
        scale = (variance + self.eps).rsqrt() * self.weight
        return ((x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _move_running_statistics(self, mean: Tensor, variance: Tensor, here: int) -> None:
        running_mean, running_var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if running_mean is None or running_var is None or batches is None:
            return
        n = here * torch.distributed.get_world_size()  # values of a channel
        batches.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(batches)
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (n / (n - 1))).to(running_var.dtype), momentum)
