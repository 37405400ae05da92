"""The block of RepMLPNet ("v2", arXiv 2112.11081): training form and deploy form are one class.

N batch, C channels, H,W feature map, h,w partition, P = (H/h)(W/w) partitions per channel,
S share-sets, M = N*P*C/S rows, K kernel size.

What differs from v1: FC3 sees one channel at a time, and all channels of a share-set use one kernel;
the Global Perceptron multiplies the output. The block depends on the size of the partition only, not on
that of the feature map.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.types import Device

from .conv_norm import bn_affine
from .factory import FactoryArgs
from .partitioned import FC3Block, check_sizes
from .perceptrons import LocalPerceptron, PartitionPerceptron


class GlobalPerceptronV2(nn.Module):
    """One value in (0, 1) per channel, from all channels: average-pool to 1x1, FC1, ReLU, FC2, sigmoid.

    FC1 and FC2 map ``C -> C/reduction -> C``. No BN: both forms are the same.

    Shape: (N, C, H, W) -> (N, C, 1, 1).
    """

    def __init__(
        self, channels: int, reduction: int = 4, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        if reduction < 1 or channels % reduction:
            raise ValueError(f"global_reduction {reduction} does not divide the {channels} features of FC1 (C)")
        self.fc1 = nn.Linear(channels, channels // reduction, **dd)
        self.fc2 = nn.Linear(channels // reduction, channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        v = x.mean((2, 3))  # (N, C)
        v = self.fc2(F.relu(self.fc1(v))).sigmoid()
        return v[:, :, None, None]


class PartitionPerceptronV2(PartitionPerceptron):
    """FC3 with one kernel per share-set, and a BN of one channel per share-set after it.

    Args:
        share_sets: S, the number of FC3s.
        partition_size: (h, w).

    Shape: (M, S, h, w) -> (M, S, h, w); fc3.weight (S, h*w, h*w).
    """

    def __init__(
        self,
        share_sets: int,
        partition_size: tuple[int, int],
        *,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        super().__init__(share_sets, share_sets, partition_size, share_sets, deploy=deploy, **dd)
        if not deploy:
            self.bn = nn.BatchNorm2d(share_sets, **dd)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.partition_size
        y = self.fc3(x.flatten(1))  # (M, S*h*w)
        return self.bn(y.view(-1, self.out_channels, h, w))

    def _bn_affine(self) -> tuple[Tensor, Tensor]:
        scale, shift = bn_affine(self.bn)  # (S)
        return self._per_pixel(scale), self._per_pixel(shift)


class RepMLPv2(FC3Block):
    """One FC for many channels, trained with depthwise convs in parallel, and gated per channel.

    Training form, with C channels in S share-sets (channel ``c`` in share-set ``c % S``)::

        m = partition_map(x)                                   # (N*P, C, h, w)
        m = m.reshape(N*P*C/S, S, h, w)                        # the C/S channels that share a kernel become rows
        y = PartitionPerceptron(m) + LocalPerceptron(m)        # BN(FC3(m)) + sum_K BN(conv_K(m)), all depthwise
        y = unpartition_map(y.reshape(N*P, C, h, w))           # (N, C, H, W)
        y = y * GlobalPerceptron(x)                            # FC1, FC2

    :meth:`reparameterize` merges every BN and conv: the deploy form is FC1, FC2 and FC3.

    Args:
        channels: C, in and out.
        partition_size: (h, w), an int for a square.
        kernel_sizes: K of the Local Perceptron's convs, ints or (kh, kw), odd and not larger than the
            partition; empty for a block without a Local Perceptron.
        share_sets: S; divides C.
        global_reduction: FC1 and FC2 have C/global_reduction hidden features.
        pad: zero-pad a feature map that is not a multiple of the partition, and crop the output.
        deploy: build the deploy form, to load converted weights into.

    Shape: (N, C, H, W) -> (N, C, H, W), for any (H, W) that is a multiple of (h, w), or any at all with ``pad``.

    Raises:
        ValueError: for sizes, kernels or share-sets that do not fit together, here or in ``forward``.
    """

    def __init__(
        self,
        channels: int,
        partition_size: int | tuple[int, int],
        kernel_sizes: Iterable[int | tuple[int, int]] = (1, 3),
        share_sets: int = 1,
        *,
        global_reduction: int = 4,
        pad: bool = False,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        partition, kernels, S = to_2tuple(partition_size), list(kernel_sizes), share_sets
        check_sizes(partition, partition, pad)
        if S < 1 or channels % S:
            raise ValueError(f"{S} share-sets do not divide {channels} channels")
        super().__init__(
            GlobalPerceptronV2(channels, global_reduction, **dd),
            PartitionPerceptronV2(S, partition, deploy=deploy, **dd),
            LocalPerceptron(S, S, kernels, S, map_size=partition, **dd) if kernels else None,
            pad=pad,
            deploy=deploy,
        )
        self.channels, self.share_sets = channels, share_sets

    def forward(self, x: Tensor) -> Tensor:
        assert self.global_perceptron is not None
        h, w = self.partition_size
        m = self._partitions(self._padded(x, self.channels, None))  # (N*P, C, h, w)
        y = self._branches(m.reshape(-1, self.share_sets, h, w))  # (N*P*C/S, S, h, w)
        y = y.reshape(-1, self.channels, h, w)  # (N*P, C, h, w)
        y = self._feature_map(y, (x.shape[2], x.shape[3]))  # (N, C, H, W)
        return y * self.global_perceptron(x)

    def extra_repr(self) -> str:
        h, w = self.partition_size
        return f"{self.channels}, partition={h}x{w}, share_sets={self.share_sets}, deploy={self.deploy}"
