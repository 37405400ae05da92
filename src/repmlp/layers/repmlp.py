"""The RepMLP block (v1, section 3): training form and deploy form are one class.

N batch, C/O channels in/out, H,W feature map, h,w partition, P = (H/h)(W/w) partitions per channel,
g groups, K kernel size.
"""

from collections.abc import Iterable

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..functional import pad_to_multiple, partition_map, unpartition_map
from .moments import check_batch_statistics, forward_from_moments, should_use_moments
from .perceptrons import GlobalPerceptron, LocalPerceptron, PartitionPerceptron


class RepMLP(nn.Module):
    """FCs that see a whole feature map, trained with convs beside them.

    Training form::

        x = GlobalPerceptron(x)                                # FC1, FC2; only if P > 1
        m = partition_map(x)                                   # (N*P, C, h, w)
        y = PartitionPerceptron(m) + LocalPerceptron(m)        # BN(FC3(m)) + sum_K BN(conv_K(m))
        y = unpartition_map(y)                                 # (N, O, H, W)

    :meth:`reparameterize` merges every BN and conv exactly: the deploy form is FC1, FC2 and FC3.

    Args:
        in_channels, out_channels: C, O.
        feature_size: (H, W) of the input; an FC has a fixed size.
        partition_size: (h, w), an int for a square.
        kernel_sizes: K of the Local Perceptron's convs, ints or (kh, kw), odd and not larger than the
            partition; empty for a block with no Local Perceptron.
        groups: g of FC3 and of the convs; divides C and O.
        global_reduction: FC1 and FC2 have C*P/global_reduction hidden features.
        pad: zero-pad a feature map that is no multiple of the partition, and crop the output.
        global_perceptron: off for a block without one (an ablation).
        deploy: build the deploy form, to load converted weights into.
        batch_statistics: where the BNs beside FC3 and the convs take their statistics from in training:
            the outputs of the "branches", or the "moments" of the partition map, in which case FC3 and
            the convs are merged for every step; "auto" is the faster one for the shape. The results
            are equal up to rounding. An attribute as well, that may be set at any time.

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
        pad: bool = False,
        global_perceptron: bool = True,
        deploy: bool = False,
        batch_statistics: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_batch_statistics(batch_statistics)
        (H, W), (h, w) = to_2tuple(feature_size), to_2tuple(partition_size)
        kernels = [to_2tuple(k) for k in kernel_sizes]
        check_sizes((H, W), (h, w), pad)
        for kh, kw in kernels:
            if kh > h or kw > w:
                raise ValueError(f"kernel {kh}x{kw} is larger than partition {h}x{w}: an FC on it cannot hold it")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.feature_size, self.partition_size = (H, W), (h, w)
        self.pad = pad
        self.deploy = deploy
        self.batch_statistics = batch_statistics

        padded = (H + -H % h, W + -W % w)
        self.global_perceptron = None
        if global_perceptron and padded != (h, w):  # P > 1
            self.global_perceptron = GlobalPerceptron(in_channels, padded, (h, w), global_reduction, deploy, **dd)
        self.partition_perceptron = PartitionPerceptron(in_channels, out_channels, (h, w), groups, deploy, **dd)
        self.local_perceptron = None
        if kernels:
            local = LocalPerceptron(in_channels, out_channels, kernels, groups, **dd)
            self.local_perceptron = None if deploy else local

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_channels, self.feature_size)
        if self.pad:
            x = pad_to_multiple(x, self.partition_size)
        if self.global_perceptron is not None:
            x = self.global_perceptron(x)  # (N, C, H, W)
        m = partition_map(x, self.partition_size)  # (N*P, C, h, w)
        if self.training and not torch.jit.is_scripting() and self._should_use_moments(m):
            y = self._forward_from_moments(m)  # (N*P, O, h, w)
        else:
            y = self.partition_perceptron(m)  # (N*P, O, h, w)
            if self.local_perceptron is not None:
                y = y + self.local_perceptron(m)
        return unpartition_map(y, self.feature_size)  # (N, O, H, W)

    @torch.jit.unused
    def _should_use_moments(self, m: Tensor) -> bool:
        return should_use_moments(self.batch_statistics, m, self.partition_perceptron, self.local_perceptron)

    @torch.jit.unused
    def _forward_from_moments(self, m: Tensor) -> Tensor:
        return forward_from_moments(m, self.partition_perceptron, self.local_perceptron)

    def equivalent_fc3(self) -> tuple[Tensor, Tensor]:
        """FC3's kernel (g, O/g*h*w, C/g*h*w) and bias (O*h*w) as they would be after the merge.

        With gradient to every parameter that goes into them, from BN's running statistics: for
        penalties on, and quantization-aware training of, what will be deployed.
        """
        return self.partition_perceptron.equivalent_fc3(self.local_perceptron)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge all BNs and convs into FC1 and FC3 (v1, section 3.4), in place.

        Keeps dtype and device, and does nothing if the block is in deploy form already.
        """
        if self.deploy:
            return
        if self.global_perceptron is not None:
            self.global_perceptron.reparameterize()
        self.partition_perceptron.reparameterize(self.local_perceptron)
        self.local_perceptron = None
        self.deploy = True

    def extra_repr(self) -> str:
        (H, W), (h, w) = self.feature_size, self.partition_size
        return f"{self.in_channels}, {self.out_channels}, feature={H}x{W}, partition={h}x{w}, deploy={self.deploy}"


def check_sizes(feature: tuple[int, int], partition: tuple[int, int], pad: bool) -> None:
    """Raise ValueError if partitions do not fill a feature map."""
    (H, W), (h, w) = feature, partition
    if min(H, W, h, w) < 1:
        raise ValueError(f"feature size {H}x{W} and partition {h}x{w} must be positive")
    if (H % h or W % w) and not pad:
        raise ValueError(
            f"feature size {H}x{W} is not a multiple of partition {h}x{w}: "
            f"pass pad=True or a partition with h of {_divisors(H)} and w of {_divisors(W)}"
        )


def check_input(x: Tensor, channels: int, size: tuple[int, int]) -> None:
    """Raise ValueError if ``x`` is not (N, channels, *size)."""
    if x.dim() != 4 or x.shape[1] != channels or x.shape[2] != size[0] or x.shape[3] != size[1]:
        raise ValueError(
            f"RepMLP got an input of shape {list(x.shape)}, but was built for (N, {channels}, {size[0]}, {size[1]}): "
            f"an FC has a fixed size, build the block with the feature_size that it will see"
        )


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


# Each reads the shape of its input, which symbolic tracing does not know: one node of a graph, not traced into.
torch.fx.wrap("check_input")
torch.fx.wrap("pad_to_multiple")
torch.fx.wrap("partition_map")
torch.fx.wrap("unpartition_map")
