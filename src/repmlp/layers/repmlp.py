"""The RepMLP block (v1, section 3): training form and deploy form are one class.

N batch, C/O channels in/out, H,W feature map, h,w partition, P = (H/h)(W/w) partitions per channel,
g groups, K kernel size.
"""

from collections.abc import Iterable

import torch
from timm.layers import to_2tuple
from torch import Tensor
from torch.types import Device

from .factory import FactoryArgs
from .moments import check_batch_statistics, forward_from_moments, should_use_moments
from .partitioned import FC3Block, check_sizes, padded_size
from .perceptrons import GlobalPerceptron, LocalPerceptron, PartitionPerceptron


class RepMLP(FC3Block):
    """FCs that see a whole feature map, trained with convs in parallel.

    Training form::

        x = GlobalPerceptron(x)                                # FC1, FC2; only if P > 1
        m = partition_map(x)                                   # (N*P, C, h, w)
        y = PartitionPerceptron(m) + LocalPerceptron(m)        # BN(FC3(m)) + sum_K BN(conv_K(m))
        y = unpartition_map(y)                                 # (N, O, H, W)

    :meth:`reparameterize` merges every BN and conv: the deploy form is FC1, FC2 and FC3, or FC3 alone if P = 1.

    Args:
        in_channels, out_channels: C, O.
        feature_size: (H, W) of the input; an FC has a fixed size.
        partition_size: (h, w), an int for a square.
        kernel_sizes: K of the Local Perceptron's convs, ints or (kh, kw), odd and not larger than the
            partition; empty for a block without a Local Perceptron.
        groups: g of FC3 and of the convs; divides C and O.
        global_reduction: FC1 and FC2 have C*P/global_reduction hidden features.
        pad: zero-pad a feature map that is not a multiple of the partition, and crop the output.
        global_perceptron: whether the block has one (if P > 1); False is for ablations.
        deploy: build the deploy form, to load converted weights into.
        batch_statistics: how a training step computes the statistics of the BNs after FC3 and the convs:
            from the outputs of the "branches"; or from the "moments" of the partition map, in which
            case each step merges FC3 and the convs; "auto" uses whichever should be faster. The results
            are equal up to rounding. An attribute, too, that may be set at any time.

    Shape: (N, C, H, W) -> (N, O, H, W).

    Raises:
        ValueError: for sizes, kernels or groups that do not fit together, here or in ``forward``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feature_size: int | tuple[int, int],
        partition_size: int | tuple[int, int],
        kernel_sizes: Iterable[int | tuple[int, int]] = (1, 3, 5),
        groups: int = 1,
        global_reduction: int = 1,
        *,
        pad: bool = False,
        global_perceptron: bool = True,
        deploy: bool = False,
        batch_statistics: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        check_batch_statistics(batch_statistics)
        size, partition, kernels = to_2tuple(feature_size), to_2tuple(partition_size), list(kernel_sizes)
        check_sizes(size, partition, pad)
        padded = padded_size(size, partition)
        several = padded != partition  # P > 1
        super().__init__(
            GlobalPerceptron(in_channels, padded, partition, global_reduction, deploy=deploy, **dd)
            if global_perceptron and several
            else None,
            PartitionPerceptron(in_channels, out_channels, partition, groups, deploy=deploy, **dd),
            LocalPerceptron(in_channels, out_channels, kernels, groups, map_size=partition, **dd) if kernels else None,
            pad=pad,
            deploy=deploy,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.feature_size = size
        self.batch_statistics = batch_statistics

    def forward(self, x: Tensor) -> Tensor:
        x = self._padded(x, self.in_channels, self.feature_size)
        if self.global_perceptron is not None:
            x = self.global_perceptron(x)  # (N, C, H, W)
        m = self._partitions(x)  # (N*P, C, h, w)
        if self.training and not torch.jit.is_scripting() and self._should_use_moments(m):
            y = self._forward_from_moments(m)  # (N*P, O, h, w)
        else:
            y = self._branches(m)  # (N*P, O, h, w)
        return self._feature_map(y, self.feature_size)  # (N, O, H, W)

    @torch.jit.unused
    def _should_use_moments(self, m: Tensor) -> bool:
        return should_use_moments(self.batch_statistics, m, self.partition_perceptron, self.local_perceptron)

    @torch.jit.unused
    def _forward_from_moments(self, m: Tensor) -> Tensor:
        return forward_from_moments(m, self.partition_perceptron, self.local_perceptron)

    @torch.no_grad()
    def reparameterize(self) -> None:
        if isinstance(self.global_perceptron, GlobalPerceptron):
            self.global_perceptron.reparameterize()
        super().reparameterize()

    def extra_repr(self) -> str:
        (H, W), (h, w) = self.feature_size, self.partition_size
        return f"{self.in_channels}, {self.out_channels}, feature={H}x{W}, partition={h}x{w}, deploy={self.deploy}"
