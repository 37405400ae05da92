"""What the blocks share: they run on the partition map of their input, and merge their branches into FC3.

N batch, C channels, H,W feature map, h,w partition, P = (H/h)(W/w) partitions per channel.
"""

import math

import torch
from torch import Tensor, nn

from ..functional import pad_to_multiple, partition_map, unpartition_map
from .perceptrons import LocalPerceptron, PartitionPerceptron


class Partitioned(nn.Module):
    """Base of modules that cut their input into partitions.

    Args:
        partition_size: (h, w).
        pad: zero-pad the input to a multiple of the partition, and crop the output.
    """

    def __init__(self, partition_size: tuple[int, int], pad: bool) -> None:
        super().__init__()
        self.partition_size = partition_size
        self.pad = pad

    def _padded(self, x: Tensor, channels: int, size: tuple[int, int] | None) -> Tensor:
        """``x``, padded if asked for; ValueError unless it is (N, channels, *size), with any size for None."""
        check_input(x, channels, size)
        return pad_to_multiple(x, self.partition_size) if self.pad else x

    def _partitions(self, x: Tensor) -> Tensor:
        return partition_map(x, self.partition_size)  # (N, C, H, W) -> (N*P, C, h, w)

    def _feature_map(self, y: Tensor, size: tuple[int, int]) -> Tensor:
        return unpartition_map(y, size)  # (N*P, C, h, w) -> (N, C, *size), without the padding


class FC3Block(Partitioned):
    """Base of blocks whose convs and BNs merge into FC3.

    Args:
        global_perceptron: FC1 and FC2, or None.
        partition_perceptron: FC3 and its BN.
        local_perceptron: the convs in parallel with FC3 and their BNs, or None. The deploy form drops it.
        pad: of :class:`Partitioned`.
        deploy: whether the other parts are in deploy form.
    """

    def __init__(
        self,
        global_perceptron: nn.Module | None,
        partition_perceptron: PartitionPerceptron,
        local_perceptron: LocalPerceptron | None,
        *,
        pad: bool,
        deploy: bool,
    ) -> None:
        super().__init__(partition_perceptron.partition_size, pad)
        self.deploy = deploy
        self.global_perceptron = global_perceptron
        self.partition_perceptron = partition_perceptron
        self.local_perceptron = None if deploy else local_perceptron

    def _branches(self, m: Tensor) -> Tensor:
        """The sum of the branches on a partition map."""
        y = self.partition_perceptron(m)
        if self.local_perceptron is not None:
            y = y + self.local_perceptron(m)
        return y

    def equivalent_fc3(self) -> tuple[Tensor, Tensor]:
        """FC3's kernel (g, O/g*h*w, C/g*h*w) and bias (O*h*w) after the merge.

        They depend on BN's running statistics, and are differentiable with respect to every parameter that they
        depend on: for penalties on, and quantization-aware training of, what will be deployed.
        """
        return self.partition_perceptron.equivalent_fc3(self.local_perceptron)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge all BNs and convs into the FCs (v1, section 3.4; "locality injection" in v2), in place.

        Keeps dtype and device. Does nothing in deploy form.
        """
        if self.deploy:
            return
        self.partition_perceptron.reparameterize(self.local_perceptron)
        self.local_perceptron = None
        self.deploy = True


def check_sizes(feature: tuple[int, int], partition: tuple[int, int], pad: bool) -> None:
    """Raise ValueError unless partitions fill a feature map."""
    (H, W), (h, w) = feature, partition
    if min(H, W, h, w) < 1:
        raise ValueError(f"feature size {H}x{W} and partition {h}x{w} must be positive")
    if (H % h or W % w) and not pad:
        raise ValueError(
            f"feature size {H}x{W} is not a multiple of partition {h}x{w}: "
            f"pass pad=True or a partition with h of {_divisors(H)} and w of {_divisors(W)}"
        )


def _divisors(n: int) -> str:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return ", ".join(map(str, sorted({*small, *(n // d for d in small)})))


def padded_size(feature: tuple[int, int], partition: tuple[int, int]) -> tuple[int, int]:
    """The next multiples of a partition."""
    (H, W), (h, w) = feature, partition
    return (H + -H % h, W + -W % w)


def check_input(x: Tensor, channels: int, size: tuple[int, int] | None) -> None:
    """Raise ValueError unless ``x`` is (N, channels, *size); any size will do if ``size`` is None."""
    if x.dim() == 4 and x.shape[1] == channels and (size is None or (x.shape[2] == size[0] and x.shape[3] == size[1])):
        return
    H_W = "H, W" if size is None else f"{size[0]}, {size[1]}"
    raise ValueError(
        f"got an input of shape {list(x.shape)}, but was built for (N, {channels}, {H_W}): an FC has a fixed size, "
        f"so build the block with the channels, and the feature_size if it takes one, that it will see"
    )


# Symbolic tracing (torch.fx) cannot follow decisions that depend on shapes, so these become one node of a graph each.
# fx finds a function by its name in the module that calls it: that is why every call is in this file.
torch.fx.wrap("check_input")
torch.fx.wrap("pad_to_multiple")
torch.fx.wrap("partition_map")
torch.fx.wrap("unpartition_map")
