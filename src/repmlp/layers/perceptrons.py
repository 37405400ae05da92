"""The three parts of a RepMLP block (v1, sections 3.1 to 3.3), each in training form and deploy form.

N batch, C/O channels in/out, H,W feature map, h,w partition, P = (H/h)(W/w) partitions per channel,
M = N*P rows, g groups, K kernel size.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.types import Device

from ..functional import (
    add_conv_to_rows_,
    center_kernel,
    check_kernel_size,
    conv_to_linear,
    fold_bn_into_following,
    row_slices,
    to_double,
)
from .conv_norm import ConvNorm, bn_affine
from .factory import FactoryArgs
from .grouped_linear import GroupedLinear
from .plain import why_not_as_built


class GlobalPerceptron(nn.Module):
    """Relates the partitions of a feature map: adds to each a value that depends on all of them.

    Average-pool each partition to one value, BN, FC1, ReLU, FC2, and add the result to every pixel
    of its partition. FC1 and FC2 map ``C*P -> C*P/reduction -> C*P``.

    In deploy form, the BN is folded into FC1.

    Shape: (N, C, H, W) -> (N, C, H, W); (H, W) is a multiple of (h, w).
    """

    def __init__(
        self,
        channels: int,
        feature_size: tuple[int, int],
        partition_size: tuple[int, int],
        reduction: int = 1,
        *,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        self.partition_size = partition_size
        self.partitions = (feature_size[0] // partition_size[0]) * (feature_size[1] // partition_size[1])
        features = channels * self.partitions
        if reduction < 1 or features % reduction:
            raise ValueError(f"global_reduction {reduction} does not divide the {features} features of FC1 (C*P)")
        self.bn = nn.Identity() if deploy else nn.BatchNorm2d(channels, **dd)
        self.fc1 = nn.Linear(features, features // reduction, **dd)
        self.fc2 = nn.Linear(features // reduction, features, **dd)
        self.deploy = deploy

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        h, w = self.partition_size
        v = F.avg_pool2d(x, [h, w])  # (N, C, H/h, W/w)
        v = self.bn(v).flatten(1)  # (N, C*P)
        v = self.fc2(F.relu(self.fc1(v)))  # (N, C*P)
        x = x.reshape(N, C, H // h, h, W // w, w)
        x = x + v.view(N, C, H // h, 1, W // w, 1)  # one value for a whole partition
        return x.reshape(N, C, H, W)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold BN into FC1, in place. Does nothing in deploy form."""
        if self.deploy:
            return
        scale, shift = (t.repeat_interleave(self.partitions) for t in bn_affine(self.bn))  # (C*P)
        weight, bias = self.fc1.weight, self.fc1.bias
        for rows in row_slices(weight):  # slice by slice, to keep the float64 copies small
            weight[rows], bias[rows] = fold_bn_into_following(weight[rows], bias[rows], scale, shift)
        self.bn = nn.Identity()
        self.deploy = True


class LocalPerceptron(nn.Module):
    """The local prior of a block: convs over the partition map, in parallel, a BN after each, summed.

    Stride 1, padding K//2, so a conv sees one partition only. All branches are linear and centered on
    the same pixel, so their sum is one conv of the largest K: the deploy form.

    Args:
        in_channels, out_channels: C, O.
        kernel_sizes: of the branches, ints or (kh, kw), all odd and all different.
        groups: g of every conv.
        map_size: (h, w) of the maps, if the convs are to be merged into an FC on them: kernels must not be larger.
        deploy: build the deploy form.

    Shape: (M, C, h, w) -> (M, O, h, w).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Iterable[int | tuple[int, int]],
        groups: int = 1,
        *,
        map_size: tuple[int, int] | None = None,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = [to_2tuple(k) for k in kernel_sizes]
        if not all(len(size) == 2 and all(type(side) is int for side in size) for size in sizes):
            raise ValueError(f"kernel_sizes {sizes} must be ints or pairs of ints (kh, kw)")
        if not sizes or len(set(sizes)) < len(sizes):
            raise ValueError(f"kernel_sizes {sizes} must name one or more kernels, each of them once")
        for size in sizes:
            check_kernel_size(size, map_size)
        _check_groups(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = (max(kh for kh, _ in sizes), max(kw for _, kw in sizes))
        if deploy:
            sizes = [self.kernel_size]
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        self.branches = nn.ModuleDict()
        for kh, kw in sizes:
            conv = ConvNorm(in_channels, out_channels, (kh, kw), groups=groups, deploy=deploy, **dd)
            self.branches[f"{kh}x{kw}"] = conv
        self.deploy = deploy

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and not self.deploy
        x = to_channels_last(x, training)
        y: Tensor | None = None
        for branch in self.branches.values():
            y = branch(x) if y is None else y + branch(x)
        assert y is not None
        return to_contiguous(y, training)

    def why_not_centered(self) -> str | None:
        """Why a branch is not centered on its pixel, as it was built, so that it cannot be merged; or None."""
        branch: Any
        for name, branch in self.branches.items():
            kh, kw = branch.conv.weight.shape[2:]
            built = {"stride": (1, 1), "padding": (kh // 2, kw // 2), "dilation": (1, 1), "padding_mode": "zeros"}
            reason = why_not_as_built(branch.conv, groups=self.groups, **built)
            if reason:
                return f"the conv of branch {name} {reason}"
        return None

    def equivalent_conv(self) -> tuple[Tensor, Tensor]:
        """The one kernel (O, C/g, kh, kw), of the largest size, and bias (O) of all branches together.

        In float64 and differentiable while in training form; the parameters themselves in deploy form.

        Raises:
            ValueError: if a conv's stride, padding or dilation was changed.
        """
        if reason := self.why_not_centered():
            raise ValueError(f"{reason}: such branches are not one conv")
        convs = [branch.equivalent_conv() for branch in self.branches.values()]  # type: ignore[operator]
        if len(convs) == 1:
            return convs[0]
        kernel = torch.stack([center_kernel(kernel, self.kernel_size) for kernel, _ in convs]).sum(0)
        return kernel, torch.stack([bias for _, bias in convs]).sum(0)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge all branches into one conv, in place. Does nothing in deploy form.

        A block with an FC3 merges the convs into that instead, and drops this module.
        """
        if self.deploy:
            return
        like = next(self.parameters())
        dd: FactoryArgs = {"device": like.device, "dtype": like.dtype}
        merged = ConvNorm(self.in_channels, self.out_channels, self.kernel_size, groups=self.groups, deploy=True, **dd)
        for parameter, value in zip(merged.equivalent_conv(), self.equivalent_conv(), strict=True):
            parameter.copy_(value)
        self.branches = nn.ModuleDict({f"{self.kernel_size[0]}x{self.kernel_size[1]}": merged})
        self.deploy = True


class _ChangeLayout(torch.autograd.Function):
    """A copy into one memory format, whose gradient is copied into another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: torch.memory_format, backward: torch.memory_format) -> Tensor:
        return x.contiguous(memory_format=forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[object, ...], output: Tensor) -> None:
        ctx.backward = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.contiguous(memory_format=ctx.backward), None, None


def to_channels_last(x: Tensor, training: bool) -> Tensor:
    """Enter channels_last for training on a CPU, which trains grouped convs of few channels fastest in it.

    Convs and BNs choose their kernels by the layout of the gradient as well as by that of the values, and PyTorch
    converts no gradient where it converts a value. So the gradient leaves in the contiguous layout explicitly.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript compiles nothing below)
        if training and x.device.type == "cpu":
            return _ChangeLayout.apply(x, torch.channels_last, torch.contiguous_format)
    return x


def to_contiguous(y: Tensor, training: bool) -> Tensor:
    """Leave what :func:`to_channels_last` entered; the gradient enters it here."""
    if not torch.jit.is_scripting():  # noqa: SIM102
        if training and y.device.type == "cpu":
            return _ChangeLayout.apply(y, torch.contiguous_format, torch.channels_last)
    return y


# Leaves of a traced graph: an autograd.Function takes no proxy, and both modes have the same nodes.
torch.fx.wrap("to_channels_last")
torch.fx.wrap("to_contiguous")


def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(f"{groups} groups do not divide {in_channels} input and {out_channels} output channels")


class PartitionPerceptron(nn.Module):
    """One grouped FC (FC3) over all pixels of a partition, and the BN after it.

    FC3 has a bias only in deploy form, when BN and the convs of the Local Perceptron are merged into it.

    Args:
        in_channels, out_channels: C, O.
        partition_size: (h, w).
        groups: g of FC3; divides C and O.

    Shape: (M, C, h, w) -> (M, O, h, w); fc3.weight (g, O/g*h*w, C/g*h*w).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        partition_size: tuple[int, int],
        groups: int = 1,
        *,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_groups(in_channels, out_channels, groups)
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        self.out_channels, self.partition_size, self.groups = out_channels, partition_size, groups
        hw = partition_size[0] * partition_size[1]
        self.fc3 = GroupedLinear(in_channels * hw, out_channels * hw, groups, bias=deploy, **dd)
        self.bn = nn.Identity() if deploy else nn.BatchNorm1d(out_channels * hw, **dd)
        self.deploy = deploy

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.partition_size
        y = self.bn(self.fc3(x.flatten(1)))  # (M, C*h*w) -> (M, O*h*w)
        return y.view(-1, self.out_channels, h, w)

    def equivalent_fc3(self, local: LocalPerceptron | None = None) -> tuple[Tensor, Tensor]:
        """FC3's kernel (g, O/g*h*w, C/g*h*w) and bias (O*h*w) with its BN and the convs of ``local`` merged.

        Differentiable with respect to every parameter of both; in FC3's dtype.
        """
        if self.deploy and local is None:
            assert self.fc3.bias is not None
            return self.fc3.weight, self.fc3.bias
        scale, shift, kernel = self._affine_and_conv(local)
        weight = to_double(self.fc3.weight) * scale.view(self.groups, -1, 1)
        if kernel is not None:
            weight = weight + conv_to_linear(kernel, self.partition_size, self.groups)
        return weight.to(self.fc3.weight.dtype), shift.to(self.fc3.weight.dtype)

    @torch.no_grad()
    def reparameterize(self, local: LocalPerceptron | None = None) -> None:
        """Merge BN and the convs of ``local`` into FC3, in place. Does nothing if there is nothing to merge.

        The numbers of :meth:`equivalent_fc3`, slice by slice, to keep the float64 copies small.
        """
        if self.deploy and local is None:
            return
        scale, shift, kernel = self._affine_and_conv(local)
        O, (h, w) = self.out_channels, self.partition_size
        weight = self.fc3.weight.view(O, h, w, -1)  # (O, y, x, C/g*h*w)
        scale = scale.view(O, h, w, 1)
        for channels in row_slices(weight):
            for rows in row_slices(weight[channels.start]):
                merged = to_double(weight[channels, rows]) * scale[channels, rows]
                if kernel is not None:
                    add_conv_to_rows_(merged.unflatten(3, (-1, h, w)), kernel[channels], rows.start)
                weight[channels, rows] = merged
        self.fc3.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=self.fc3.weight.requires_grad)
        self.bn = nn.Identity()
        self.deploy = True

    def _affine_and_conv(self, local: LocalPerceptron | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What scales and shifts the outputs of FC3, (O*h*w) each, and the kernel (O, C/g, kh, kw) that adds to them.

        The scale is that of the BN; the shift also has the biases of FC3 and of the conv.
        """
        if self.deploy:
            assert self.fc3.bias is not None
            scale, shift = torch.ones_like(self.fc3.bias), to_double(self.fc3.bias)
        else:
            scale, shift = self._bn_affine()
            if self.fc3.bias is not None:
                shift = shift + scale * to_double(self.fc3.bias)
        if local is None:
            return scale, shift, None
        kernel, bias = (to_double(t) for t in local.equivalent_conv())
        return scale, shift + self._per_pixel(bias), kernel

    def _bn_affine(self) -> tuple[Tensor, Tensor]:
        """The affine map of the BN, (O*h*w) each."""
        return bn_affine(self.bn)

    def _per_pixel(self, bias: Tensor) -> Tensor:
        """A value per channel (O), repeated for every pixel: (O*h*w)."""
        return bias.repeat_interleave(self.partition_size[0] * self.partition_size[1])
