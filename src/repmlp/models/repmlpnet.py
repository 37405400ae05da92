"""RepMLPNet: a hierarchical MLP (RepMLPNet, CVPR 2022, arXiv 2112.11081), "v2" of RepMLP.

    stem     4x4 conv of stride 4, BN, ReLU
    stages   x = x + block(BN(x));  x = x + FFN(BN(x)), repeated
    between  2x2 conv of stride 2, BN, ReLU
    head     BN, average pool, Linear

``block`` is :class:`~repmlp.layers.RepMLPv2`; ``FFN`` is two 1x1 conv-BNs with a GELU in between. The
stem and the convs between the stages belong to the following stage, so each stage ends at its own
resolution.

The weights depend on the partitions, not on the image size: a network accepts any image, including
rectangular ones, whose feature maps are multiples of the partitions; with ``pad``, any image at all.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.types import Device

from ..functional import fold_bn_into_following, fold_bn_into_preceding, row_slices
from ..layers import ConvNorm, RepMLPv2
from ..layers.conv_norm import bn_affine
from ..layers.factory import FactoryArgs
from ..layers.plain import why_not_as_built
from ._staged import StagedModel


class FFN(nn.Module):
    """``conv-BN(GELU(conv-BN(BN(x))))`` with 1x1 convs: the FFN of a RepMLPNetBlock and the BN before it.

    The deploy form has two convs: the first BN is merged into the conv after it, which has no padding, and
    each other BN into the conv before it.

    Shape: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        ratio: int = 4,
        *,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        self.norm = nn.Identity() if deploy else nn.BatchNorm2d(channels, **dd)
        self.fc1 = ConvNorm(channels, channels * ratio, deploy=deploy, **dd)
        self.act = nn.GELU()
        self.fc2 = ConvNorm(channels * ratio, channels, deploy=deploy, **dd)
        self.deploy = deploy

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x))))

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge all three BNs into the convs, in place. Does nothing in deploy form."""
        if self.deploy:
            return
        conv, (before, shift_before) = self.fc1.conv, bn_affine(self.norm)
        if reason := why_not_as_built(conv, padding=(0, 0), groups=1):
            raise ValueError(f"the conv of fc1 {reason}: the batch norm before it cannot be folded into it")
        weight = conv.weight[:, :, 0, 0]  # (4C, C)
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.clone()
        scale, shift = (
            bn_affine(self.fc1.bn) if not self.fc1.deploy else (torch.ones_like(bias), torch.zeros_like(bias))
        )
        for rows in row_slices(weight):  # slice by slice, to keep the float64 copies small
            folded = fold_bn_into_preceding(weight[rows], bias[rows], scale[rows], shift[rows])
            weight[rows], bias[rows] = fold_bn_into_following(*folded, before, shift_before)
        conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
        self.fc1.bn, self.fc1.deploy = nn.Identity(), True
        self.fc2.reparameterize()
        self.norm = nn.Identity()
        self.deploy = True


class RepMLPNetBlock(nn.Module):
    """``x = x + block(BN(x))``, then ``x = x + FFN(BN(x))``, with stochastic depth on both branches.

    The deploy form keeps the BN before the block: it scales each channel by its own factor, but FC3 is
    one kernel for all channels of a share-set, so it cannot be merged into FC3.

    Shape: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(
        self,
        block: RepMLPv2,
        ffn: FFN,
        drop_path: float = 0.0,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(block.channels, device=device, dtype=dtype)
        self.block = block
        self.ffn = ffn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.block(self.norm(x)))
        return x + self.drop_path(self.ffn(x))


class RepMLPNet(StagedModel):
    """RepMLPNet with one stage per entry of ``channels``.

    Args:
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: as in any timm model.
        img_size: (H, W) of the images. Only checked against the partitions (unless ``pad``): the network
            does not depend on it.
        channels, depths, share_sets: width, number of RepMLPNetBlocks and S of each stage.
        partition_sizes: (h, w) of the blocks of each stage, an int for a square.
        kernel_sizes: of the Local Perceptrons; empty for none.
        global_reduction: of the Global Perceptrons.
        ffn_ratio: ratio of hidden to outer channels in the FFNs.
        pad: zero-pad feature maps that are not multiples of the partition.
        deploy: build the deploy form.

    Raises:
        ValueError: if sizes do not fit.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        *,
        img_size: int | tuple[int, int] | None = None,
        channels: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        share_sets: Sequence[int] = (1, 4, 16, 128),
        partition_sizes: Sequence[int | tuple[int, int]] = (56, 28, 14, 7),
        kernel_sizes: Sequence[int | tuple[int, int]] = (1, 3),
        global_reduction: int = 4,
        ffn_ratio: int = 4,
        pad: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans)
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        if not len(channels) == len(depths) == len(share_sets) == len(partition_sizes):
            raise ValueError(
                f"channels {tuple(channels)}, depths {tuple(depths)}, share_sets {tuple(share_sets)} and "
                f"partition_sizes {tuple(partition_sizes)} must have one entry per stage each"
            )
        strides = [4 * 2**i for i in range(len(channels))]  # of a stage's feature map
        partitions = [to_2tuple(size) for size in partition_sizes]
        if img_size is not None and not pad:
            _check_img_size(to_2tuple(img_size), partitions, strides)
        drop_paths: Iterator[Any] = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))

        stages = []
        self.feature_info = []
        before = in_chans
        for i, (c, depth, S, partition) in enumerate(zip(channels, depths, share_sets, partitions, strict=True)):
            step = 4 if i == 0 else 2
            layers: list[nn.Module] = [
                ConvNorm(before, c, step, step, padding=0, deploy=deploy, **dd),
                nn.ReLU(inplace=True),
            ]
            for _ in range(depth):
                block = RepMLPv2(
                    c, partition, kernel_sizes, S, global_reduction=global_reduction, pad=pad, deploy=deploy, **dd
                )
                layers.append(RepMLPNetBlock(block, FFN(c, ffn_ratio, deploy=deploy, **dd), next(drop_paths), **dd))
            stages.append(nn.Sequential(*layers))
            self.feature_info.append({"num_chs": c, "reduction": strides[i], "module": f"stages.{i}"})
            before = c
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(before, **dd)  # the deploy form keeps it, so forward_features does not change
        self._init_head(before, global_pool, drop_rate, **dd)


def _check_img_size(img_size: tuple[int, int], partitions: Sequence[tuple[int, int]], strides: Sequence[int]) -> None:
    H, W = img_size
    for i, ((h, w), stride) in enumerate(zip(partitions, strides, strict=True)):
        if H // stride % h or W // stride % w or min(H, W) < stride:
            unit_h, unit_w = (
                math.lcm(*(size * s for size, s in zip(sizes, strides, strict=True)))
                for sizes in zip(*partitions, strict=True)
            )
            raise ValueError(
                f"img_size {H}x{W} gives stage {i} a feature map of {H // stride}x{W // stride}, which is not a "
                f"multiple of its partition {h}x{w}: pass pad=True, a multiple of {unit_h}x{unit_w}, or other "
                f"partition_sizes"
            )


def _cfg(size: int, **kwargs) -> dict:
    return {
        "num_classes": 1000,
        "input_size": (3, size, size),
        "fixed_input_size": False,  # any multiple of the partitions is accepted; this is the smallest:
        "min_input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stages.0.0.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_name": "RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality",
        "paper_ids": "arXiv:2112.11081",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "repmlpnet_t224": _cfg(224),
        "repmlpnet_b224": _cfg(224),
        "repmlpnet_t256": _cfg(256),
        "repmlpnet_b256": _cfg(256),
        "repmlpnet_d256": _cfg(256),
        "repmlpnet_l256": _cfg(256),
    }
)

_P224 = {"partition_sizes": (56, 28, 14, 7)}  # the whole feature maps of 224 px images: P = 1
_P256 = {"partition_sizes": (64, 32, 16, 8)}  # the same of 256 px
_T = {"channels": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "share_sets": (1, 4, 16, 128)}
_B = {"channels": (96, 192, 384, 768), "depths": (2, 2, 12, 2), "share_sets": (1, 4, 32, 128)}
_D = {"channels": (80, 160, 320, 640), "depths": (2, 2, 18, 2), "share_sets": (1, 4, 16, 128)}
_L = {"channels": (96, 192, 384, 768), "depths": (2, 2, 18, 2), "share_sets": (1, 4, 32, 256)}


def _create(variant: str, pretrained: bool, **kwargs) -> RepMLPNet:
    feature_cfg = {"flatten_sequential": True, "out_indices": tuple(range(len(kwargs["channels"])))}
    return build_model_with_cfg(RepMLPNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def repmlpnet_t224(pretrained: bool = False, **kwargs) -> RepMLPNet:
    """38.3M parameters and 2.8G MACs in deploy form at 224 px; the authors report 76.62% on ImageNet-1K."""
    return _create("repmlpnet_t224", pretrained, **{**_T, **_P224, **kwargs})


@register_model
def repmlpnet_b224(pretrained: bool = False, **kwargs) -> RepMLPNet:
    """68.2M parameters and 6.7G MACs in deploy form at 224 px; the authors report 80.32% on ImageNet-1K."""
    return _create("repmlpnet_b224", pretrained, **{**_B, **_P224, **kwargs})


@register_model
def repmlpnet_t256(pretrained: bool = False, **kwargs) -> RepMLPNet:
    """58.7M parameters and 4.2G MACs in deploy form at 256 px; the authors report 77.44% on ImageNet-1K."""
    return _create("repmlpnet_t256", pretrained, **{**_T, **_P256, **kwargs})


@register_model
def repmlpnet_b256(pretrained: bool = False, **kwargs) -> RepMLPNet:
    """96.5M parameters and 9.6G MACs in deploy form at 256 px; the authors report 81.03% on ImageNet-1K."""
    return _create("repmlpnet_b256", pretrained, **{**_B, **_P256, **kwargs})


@register_model
def repmlpnet_d256(pretrained: bool = False, **kwargs) -> RepMLPNet:
    """86.9M parameters and 8.6G MACs in deploy form at 256 px; the authors report 80.83% on ImageNet-1K."""
    return _create("repmlpnet_d256", pretrained, **{**_D, **_P256, **kwargs})


@register_model
def repmlpnet_l256(pretrained: bool = False, **kwargs) -> RepMLPNet:
    """117.7M parameters and 11.5G MACs in deploy form at 256 px; the authors report 81.68% on ImageNet-1K."""
    return _create("repmlpnet_l256", pretrained, **{**_L, **_P256, **kwargs})
