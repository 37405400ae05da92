"""A conv and the batch norm after it: one conv with a bias in deploy form."""

from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.types import Device

from ..functional import bn_to_affine, fold_bn_into_preceding, row_slices, to_double
from .factory import FactoryArgs

TOO_LARGE = (
    "a merged weight is larger than the largest number of its dtype (65504 in float16): convert the model in float32 "
    "(model.float()), and deploy it in float32 or bfloat16"
)


class ConvNorm(nn.Module):
    """``BN(conv(x))``; in deploy form one conv with bias that computes the same.

    The conv has no bias while it is followed by BN.

    Args:
        in_channels, out_channels: C, O.
        kernel_size: an int or (kh, kw).
        stride: of the conv.
        groups: g of the conv; divides C and O.
        deploy: build the deploy form.
        padding: of the conv; by default dilation*(kh//2, kw//2): an odd kernel of stride 1 keeps the size of its map.
        dilation: of the conv.

    Shape: (N, C, H, W) -> (N, O, H/stride, W/stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        deploy: bool = False,
        padding: int | tuple[int, int] | None = None,
        dilation: int = 1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        kh, kw = to_2tuple(kernel_size)
        if padding is None:
            padding = (dilation * (kh // 2), dilation * (kw // 2))
        self.conv = nn.Conv2d(in_channels, out_channels, (kh, kw), stride, padding, dilation, groups, bias=deploy, **dd)
        self.bn = nn.Identity() if deploy else nn.BatchNorm2d(out_channels, **dd)
        self.deploy = deploy

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def equivalent_conv(self) -> tuple[Tensor, Tensor]:
        """The kernel (O, C/g, kh, kw) and bias (O) of the one conv that computes the same in eval mode.

        In float64 and differentiable while in training form; the parameters themselves in deploy form.
        """
        if self.deploy:
            assert self.conv.bias is not None
            return self.conv.weight, self.conv.bias
        return fold_bn_into_preceding(self.conv.weight, self.conv.bias, *bn_affine(self.bn))

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Change to deploy form, in place. Does nothing in deploy form."""
        if self.deploy:
            return
        self.bn = fold_norm_(self.conv, self.bn)
        self.deploy = True


def bn_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """The affine map ``(scale, shift)``, (C) each, that a batch norm computes in eval mode; a frozen one always does.

    Raises:
        ValueError: if the norm has no running statistics, so that its output depends on the batch.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"{norm} keeps no running statistics, so its output depends on the batch and cannot be folded: "
            f"build it with track_running_stats=True"
        )
    return bn_to_affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def ensure_in_range(merged: Tensor, like: Tensor) -> None:
    """Raise ValueError if merged weights are finite, but not once they are rounded to the dtype of ``like``."""
    if merged.is_meta or (merged.to(like.dtype).isfinite() | ~merged.isfinite()).all():
        return
    raise ValueError(TOO_LARGE)


@torch.no_grad()
def ensure_can_fold(layer: Any, norm: Any) -> None:
    """Raise ValueError if a layer's dtype cannot hold what a batch norm after it would be folded into."""
    scale, shift = bn_affine(norm)
    peaks = torch.linalg.vector_norm(layer.weight.flatten(1), torch.inf, dim=1)  # (O), without a copy of the weight
    largest = to_double(peaks) * scale.abs()
    ensure_in_range(torch.cat([largest, shift if layer.bias is None else scale * layer.bias + shift]), layer.weight)


@torch.no_grad()
def fold_norm_(layer: Any, norm: Any) -> nn.Identity:
    """Fold a batch norm into the conv or linear layer before it, in place; returns the module that replaces the norm.

    Rounded once, to the layer's dtype. A new bias requires a gradient if the weight does.

    Raises:
        ValueError: if the result is too large for the layer's dtype; the layer is then as it was.
    """
    ensure_can_fold(layer, norm)
    scale, shift = bn_affine(norm)
    bias = layer.weight.new_empty(layer.weight.shape[0])
    for rows in row_slices(layer.weight):  # slice by slice, to keep the float64 copies small
        before = None if layer.bias is None else layer.bias[rows]
        layer.weight[rows], bias[rows] = fold_bn_into_preceding(layer.weight[rows], before, scale[rows], shift[rows])
    requires_grad = (layer.weight if layer.bias is None else layer.bias).requires_grad
    layer.bias = nn.Parameter(bias, requires_grad=requires_grad)
    return nn.Identity()
