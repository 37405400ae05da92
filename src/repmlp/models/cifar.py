"""The pure-MLP network for CIFAR-10, its ablation, and the Wide ConvNet (RepMLP v1, section 4.1, Fig. 3, Table 1).

A "pure MLP" is a network without convs larger than 1x1; a 1x1 conv is an FC over channels. A ReLU follows every RepMLP
and every conv-BN:

    stage 1, 32x32   FC(3,16)   RepMLP  FC(16,16)  RepMLP
    stage 2, 16x16   FC(16,32)  max-pool  RepMLP  FC(32,32)  RepMLP
    stage 3, 8x8     FC(32,64)  max-pool  RepMLP  FC(64,64)  RepMLP  FC(64,64)
    head             average pool, Linear

As in the paper, the FC that increases the channels comes before the pooling. Here it belongs to the next stage, so that
each stage ends at its own resolution.

The rows of the ablation are arguments of this network:

    A  training form                  no argument: before ``reparameterize``
    B  no Local Perceptron            kernel_sizes=()
    C  no Global Perceptron           global_perceptron=False
    D  FC3 replaced by a 9x9 conv     block="conv9_for_fc3"
    E  RepMLP replaced by a 9x9 conv  block="conv9"
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.types import Device

from ..layers import ConvNorm, GlobalPerceptron, LocalPerceptron, RepMLP
from ..layers.factory import FactoryArgs
from ..layers.partitioned import Partitioned, check_sizes, padded_size
from ._staged import StagedModel


class Conv9ForFC3(Partitioned):
    """Row D: a RepMLP block with FC3 and its BN replaced by a 9x9 conv and BN of the same groups.

    On a partition map, that conv is one more branch of the Local Perceptron, and the largest. So the deploy form runs
    all branches as one 9x9 conv.

    Args: as for :class:`~repmlp.layers.RepMLP`, with ``channels`` in and out.
    """

    def __init__(
        self,
        channels: int,
        feature_size: tuple[int, int],
        partition_size: tuple[int, int],
        kernel_sizes: Sequence[int | tuple[int, int]],
        groups: int,
        *,
        global_reduction: int,
        pad: bool,
        global_perceptron: bool,
        deploy: bool,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        check_sizes(feature_size, partition_size, pad)
        super().__init__(partition_size, pad)
        self.channels, self.feature_size = channels, feature_size
        padded = padded_size(feature_size, partition_size)
        self.global_perceptron = (
            GlobalPerceptron(channels, padded, partition_size, global_reduction, deploy=deploy, **dd)
            if global_perceptron and padded != partition_size
            else nn.Identity()
        )
        self.local_perceptron = LocalPerceptron(channels, channels, (*kernel_sizes, 9), groups, deploy=deploy, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.global_perceptron(self._padded(x, self.channels, self.feature_size))
        y = self.local_perceptron(self._partitions(x))  # (N*P, C, h, w)
        return self._feature_map(y, self.feature_size)


class CifarNet(StagedModel):
    """The paper's CIFAR-10 networks: blocks of one kind between 1x1 conv-BNs.

    Args:
        num_classes, in_chans, global_pool, drop_rate: as in any timm model.
        img_size: (H, W) of the images; each stage after the first halves it.
        channels: width of each stage; their count is the number of stages.
        partition_size: (h, w) of all blocks.
        kernel_sizes: of the Local Perceptrons; empty for none (row B).
        groups: g of all blocks.
        global_reduction: of the Global Perceptrons.
        global_perceptron: False for row C.
        block: "repmlp", "conv9_for_fc3" (row D), "conv9" (row E), or "conv3" (Wide ConvNet).
        pad: zero-pad feature maps that are not multiples of the partition.
        deploy: build the deploy form.

    Raises:
        ValueError: if sizes do not fit or the block is unknown.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        *,
        img_size: int | tuple[int, int] = 32,
        channels: Sequence[int] = (16, 32, 64),
        partition_size: int | tuple[int, int] = 8,
        kernel_sizes: Sequence[int | tuple[int, int]] = (1, 3, 5, 7),
        groups: int = 2,
        global_reduction: int = 1,
        global_perceptron: bool = True,
        block: str = "repmlp",
        pad: bool = False,
        deploy: bool = False,
        drop_rate: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans)
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        partition = to_2tuple(partition_size)

        def fc(inputs: int, outputs: int) -> list[nn.Module]:
            return [ConvNorm(inputs, outputs, deploy=deploy, **dd), nn.ReLU(inplace=True)]

        def mixer(c: int, size: tuple[int, int]) -> list[nn.Module]:
            blocks: dict[str, Callable[..., nn.Module]] = {
                "repmlp": partial(RepMLP, c, c),
                "conv9_for_fc3": partial(Conv9ForFC3, c),
            }
            if block in blocks:
                layer = blocks[block](
                    feature_size=size,
                    partition_size=partition,
                    kernel_sizes=kernel_sizes,
                    groups=groups,
                    global_reduction=global_reduction,
                    pad=pad,
                    global_perceptron=global_perceptron,
                    deploy=deploy,
                    **dd,
                )
            elif block in ("conv9", "conv3"):
                layer = ConvNorm(c, c, int(block.removeprefix("conv")), deploy=deploy, **dd)
            else:
                raise ValueError(f"unknown block {block!r}: use repmlp, conv9_for_fc3, conv9 or conv3")
            return [layer, nn.ReLU(inplace=True)]

        stages = []
        self.feature_info = []
        H, W = to_2tuple(img_size)
        before = in_chans
        for i, c in enumerate(channels):
            layers = fc(before, c)
            if i > 0:
                layers.append(nn.MaxPool2d(2))
                H, W = H // 2, W // 2
            layers += [*mixer(c, (H, W)), *fc(c, c), *mixer(c, (H, W))]
            if i == len(channels) - 1:
                layers += fc(c, c)
            stages.append(nn.Sequential(*layers))
            self.feature_info.append({"num_chs": c, "reduction": 2**i, "module": f"stages.{i}"})
            before = c
        self.stages = nn.Sequential(*stages)
        self._init_head(before, global_pool, drop_rate, **dd)


def _cfg(**kwargs) -> dict:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "stages.0.0.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_name": "RepMLP: Re-parameterizing Convolutions into Fully-connected Layers for Image Recognition",
        "paper_ids": "arXiv:2105.01883",
        **kwargs,
    }


default_cfgs = generate_default_cfgs({"repmlp_cifar": _cfg(), "wide_convnet_cifar": _cfg()})


def _create(variant: str, pretrained: bool, **kwargs) -> CifarNet:
    feature_cfg = {"flatten_sequential": True, "out_indices": tuple(range(len(kwargs.get("channels", (1, 2, 3)))))}
    return build_model_with_cfg(CifarNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def repmlp_cifar(pretrained: bool = False, **kwargs) -> CifarNet:
    """The pure MLP: 52.8M MACs in deploy form, 118.9M in training form, 91.11% on CIFAR-10 (v1, Table 1)."""
    return _create("repmlp_cifar", pretrained, **kwargs)


@register_model
def wide_convnet_cifar(pretrained: bool = False, **kwargs) -> CifarNet:
    """The Wide ConvNet: a 3x3 conv-BN replaces each RepMLP, twice the channels; 65.1M MACs, 91.99% (v1, Table 1)."""
    return _create("wide_convnet_cifar", pretrained, **{"channels": (32, 64, 128), "block": "conv3", **kwargs})
