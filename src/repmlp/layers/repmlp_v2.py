"""The block of RepMLPNet ("v2", arXiv 2112.11081): training form and deploy form are one class.

N batch, C channels, H,W feature map, h,w partition, P = (H/h)(W/w) partitions per channel,
S share-sets, M = N*P*C/S rows, K kernel size.

What differs from v1: FC3 sees one channel at a time, and all channels of a share-set use one kernel;
the Global Perceptron multiplies the output. Nothing in the block depends on the size of the feature
map: only on the partition.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..functional import partition_map, unpartition_map
from .conv_norm import bn_affine
from .perceptrons import LocalPerceptron, PartitionPerceptron


class GlobalPerceptronV2(nn.Module):
    """One value in (0, 1) per channel, from all channels: average-pool to 1x1, FC1, ReLU, FC2, sigmoid.

    FC1 and FC2 map ``C -> C/reduction -> C``. No BN: both forms are the same.

    Shape: (N, C, H, W) -> (N, C, 1, 1).
    """

    def __init__(self, channels: int, reduction: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
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
        share_sets: S.
        partition_size: (h, w).

    Shape: (M, S, h, w) -> (M, S, h, w); fc3.weight (S, h*w, h*w).
    """

    def __init__(
        self, share_sets: int, partition_size: tuple[int, int], deploy: bool = False, device=None, dtype=None
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(share_sets, share_sets, partition_size, share_sets, deploy, **dd)
        if not deploy:
            self.bn = nn.BatchNorm2d(share_sets, **dd)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.partition_size
        y = self.fc3(x.flatten(1))  # (M, S*h*w)
        return self.bn(y.view(-1, self.out_channels, h, w))

    def _bn_affine(self) -> tuple[Tensor, Tensor]:
        scale, shift = bn_affine(self.bn)  # (S)
        return self._per_pixel(scale), self._per_pixel(shift)


class RepMLPv2(nn.Module):
    """One FC for many channels, trained with depthwise convs beside it, and gated per channel.

    Training form, with C channels in S share-sets (channel ``c`` in share-set ``c % S``)::

        m = partition_map(x)                                   # (N*P, C, h, w)
        m = m.reshape(N*P*C/S, S, h, w)                        # C/S channels that share become rows
        y = PartitionPerceptron(m) + LocalPerceptron(m)        # BN(FC3(m)) + sum_K BN(conv_K(m)), all depthwise
        y = unpartition_map(y.reshape(N*P, C, h, w))           # (N, C, H, W)
        y = y * GlobalPerceptron(x)                            # FC1, FC2

    :meth:`reparameterize` merges every BN and conv exactly: the deploy form is FC1, FC2 and FC3.

    Args:
        channels: C.
        partition_size: (h, w), an int for a square.
        kernel_sizes: K of the Local Perceptron's convs, ints or (kh, kw), odd and not larger than the
            partition; empty for a block with no Local Perceptron.
        share_sets: S; divides C.
        global_reduction: FC1 and FC2 have C/global_reduction hidden features.
        pad: zero-pad a feature map that is no multiple of the partition, and crop the output.
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
        global_reduction: int = 4,
        pad: bool = False,
        deploy: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        h, w = to_2tuple(partition_size)
        kernels = [to_2tuple(k) for k in kernel_sizes]
        if min(h, w) < 1:
            raise ValueError(f"partition {h}x{w} must be positive")
        if share_sets < 1 or channels % share_sets:
            raise ValueError(f"{share_sets} share-sets do not divide {channels} channels")
        for kh, kw in kernels:
            if kh > h or kw > w:
                raise ValueError(f"kernel {kh}x{kw} is larger than partition {h}x{w}: an FC on it cannot hold it")
        self.channels, self.share_sets, self.partition_size = channels, share_sets, (h, w)
        self.pad = pad
        self.deploy = deploy

        self.global_perceptron = GlobalPerceptronV2(channels, global_reduction, **dd)
        self.partition_perceptron = PartitionPerceptronV2(share_sets, (h, w), deploy, **dd)
        self.local_perceptron = None
        if kernels:
            local = LocalPerceptron(share_sets, share_sets, kernels, share_sets, **dd)
            self.local_perceptron = None if deploy else local

    def forward(self, x: Tensor) -> Tensor:
        _check_channels(x, self.channels)
        h, w = self.partition_size
        m = partition_map(x, self.partition_size, self.pad)  # (N*P, C, h, w)
        m = m.reshape(-1, self.share_sets, h, w)  # (N*P*C/S, S, h, w)
        y = self.partition_perceptron(m)
        if self.local_perceptron is not None:
            y = y + self.local_perceptron(m)
        y = y.reshape(-1, self.channels, h, w)  # (N*P, C, h, w)
        y = unpartition_map(y, (x.shape[2], x.shape[3]))  # (N, C, H, W)
        return y * self.global_perceptron(x)

    def equivalent_fc3(self) -> tuple[Tensor, Tensor]:
        """FC3's kernel (S, h*w, h*w) and bias (S*h*w) as they would be after the merge.

        With gradient to every parameter that goes into them, from BN's running statistics: for
        penalties on, and quantization-aware training of, what will be deployed.
        """
        return self.partition_perceptron.equivalent_fc3(self.local_perceptron)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge all BNs and convs into FC3 (v1, section 3.4; "locality injection" in v2), in place.

        Keeps dtype and device, and does nothing if the block is in deploy form already.
        """
        if self.deploy:
            return
        self.partition_perceptron.reparameterize(self.local_perceptron)
        self.local_perceptron = None
        self.deploy = True

    def extra_repr(self) -> str:
        h, w = self.partition_size
        return f"{self.channels}, partition={h}x{w}, share_sets={self.share_sets}, deploy={self.deploy}"


def _check_channels(x: Tensor, channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(
            f"RepMLPv2 got an input of shape {list(x.shape)}, but was built for (N, {channels}, H, W): "
            f"build the block with the channels that it will see"
        )


# Each reads the shape of its input, which symbolic tracing does not know: one node of a graph, not traced into.
torch.fx.wrap("_check_channels")
torch.fx.wrap("partition_map")
torch.fx.wrap("unpartition_map")
