"""The blocks of RepMLP-ResNet (RepMLP v1, section 3.5), and timm's Bottleneck with a deploy form.

N batch, C channels of a block, H,W feature map, width of a block's 3x3 convs, r channel reduction.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.types import Device

from ..layers import ConvNorm, RepMLP
from ..layers.conv_norm import fold_norm_
from ..layers.factory import FactoryArgs


class FoldableBottleneck(Bottleneck):
    """timm's Bottleneck with a deploy form, in which each batch norm is merged into the conv before it.

    Args:
        deploy: build the deploy form.
        args, kwargs: of timm's Bottleneck; a downsample path must consist of a conv and a batch norm.

    Shape: (N, C, H, W) -> (N, O, H/stride, W/stride).
    """

    def __init__(self, *args: Any, deploy: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deploy = False
        if deploy:
            self.reparameterize()

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge every batch norm, in place. Does nothing in deploy form."""
        if self.deploy:
            return
        self.bn1 = fold_norm_(self.conv1, self.bn1)
        self.bn2 = fold_norm_(self.conv2, self.bn2)
        self.bn3 = fold_norm_(self.conv3, self.bn3)
        downsample: Any = self.downsample  # a conv and its norm, or None
        if downsample is not None:
            downsample[1] = fold_norm_(downsample[0], downsample[1])
        self.deploy = True


class RepMLPBottleneck(nn.Module):
    """The RepMLP Bottleneck (v1, section 3.5): a Bottleneck with a RepMLP between two 3x3 convs.

    The 3x3 convs reduce the channels of the RepMLP to width/r, because FC3's cost is quadratic in it.
    Each layer converts itself to its own deploy form.

    Args:
        channels: C, in and out.
        width: of the map between the 1x1 convs and the 3x3 convs.
        channel_reduction: r; the RepMLP has width/r channels.
        repmlp: called with the numbers of input and output channels, to build the RepMLP.
        dilation: of the 3x3 convs.
        drop_path: of the residual path, or None.
        deploy: build the deploy form.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Raises:
        ValueError: if ``channel_reduction`` does not divide ``width``.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        channel_reduction: int,
        repmlp: Callable[..., RepMLP],
        *,
        dilation: int = 1,
        drop_path: nn.Module | None = None,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        inner = _reduce(width, channel_reduction)
        self.conv1 = ConvNorm(channels, width, deploy=deploy, **dd)
        self.conv2 = ConvNorm(width, inner, 3, deploy=deploy, dilation=dilation, **dd)
        self.repmlp = repmlp(inner, inner, **dd)
        self.conv3 = ConvNorm(inner, width, 3, deploy=deploy, dilation=dilation, **dd)
        self.conv4 = ConvNorm(width, channels, deploy=deploy, **dd)
        self.drop_path = nn.Identity() if drop_path is None else drop_path

    def zero_init_last(self) -> None:
        """Start as the identity, as timm's blocks do."""
        _zero_init(self.conv4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x), inplace=True)  # (N, width, H, W)
        y = F.relu(self.conv2(y), inplace=True)  # (N, width/r, H, W)
        y = F.relu(self.repmlp(y), inplace=True)
        y = F.relu(self.conv3(y), inplace=True)  # (N, width, H, W)
        y = self.conv4(y)  # (N, C, H, W)
        return F.relu(x + self.drop_path(y), inplace=True)


class RepMLPLightBlock(nn.Module):
    """The RepMLP Light Block (v1, section 3.5): 1x1 convs and a RepMLP, without 3x3 convs.

    The first 1x1 conv reduces directly to the width of the RepMLP: in ResNet-50, r = 2 reduces the
    block's channels by 8, as in the paper.

    Args, Shape, Raises: as for :class:`RepMLPBottleneck`, without ``dilation``.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        channel_reduction: int,
        repmlp: Callable[..., RepMLP],
        *,
        drop_path: nn.Module | None = None,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        inner = _reduce(width, channel_reduction)
        self.conv1 = ConvNorm(channels, inner, deploy=deploy, **dd)
        self.repmlp = repmlp(inner, inner, **dd)
        self.conv2 = ConvNorm(inner, channels, deploy=deploy, **dd)
        self.drop_path = nn.Identity() if drop_path is None else drop_path

    def zero_init_last(self) -> None:
        """Start as the identity, as timm's blocks do."""
        _zero_init(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x), inplace=True)  # (N, width/r, H, W)
        y = F.relu(self.repmlp(y), inplace=True)
        y = self.conv2(y)  # (N, C, H, W)
        return F.relu(x + self.drop_path(y), inplace=True)


def _reduce(width: int, channel_reduction: int) -> int:
    if channel_reduction < 1 or width % channel_reduction:
        raise ValueError(
            f"channel_reduction {channel_reduction} does not divide the width {width}: use a divisor of it"
        )
    return width // channel_reduction


def _zero_init(last: ConvNorm) -> None:
    if isinstance(last.bn, nn.BatchNorm2d):  # the deploy form has no BN: it is built to load weights
        nn.init.zeros_(last.bn.weight)
