"""RepMLP-ResNet (RepMLP v1, sections 3.5, 4.2 to 4.4): timm's ResNet with some Bottlenecks replaced by RepMLP blocks.

    RepMLP Bottleneck    1x1 to the width, 3x3 to width/r, RepMLP, 3x3 back to the width, 1x1 to the output channels
    RepMLP Light Block   1x1 to width/r, RepMLP, 1x1 to the output channels

The stages are c2 to c5, as in the paper; timm calls them layer1 to layer4. In a stage with RepMLP
blocks, the first block stays a Bottleneck and all others are replaced. Everything from timm's ResNet
keeps its name, so weights of timm's ``resnet50`` load into the blocks that stay:
``model.load_state_dict(weights, strict=False)``. (Only the stem differs: it is one module, a ConvNorm
named conv1; timm's names are translated on loading.)

The face networks (section 4.3) use the same class: base_width=256 makes the 3x3 convs as wide as
the block's output, so the 1x1 convs do not reduce channels.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.types import Device

from ..layers import ConvNorm, RepMLP
from ..layers.factory import FactoryArgs
from ._resnet_blocks import FoldableBottleneck, RepMLPBottleneck, RepMLPLightBlock

STAGES = ("c2", "c3", "c4", "c5")
#: r of the paper's networks (section 4.2).
CHANNEL_REDUCTION: Mapping[str, int] = MappingProxyType({"c2": 2, "c3": 2, "c4": 4, "c5": 4})

Kernels = Sequence[int | tuple[int, int]]
T = TypeVar("T")


class RepMLPResNet(ResNet):
    """timm's ResNet with RepMLP blocks in some of its stages.

    An argument marked (*) is one value for all stages, or a mapping with a value for each stage that
    has RepMLP blocks: ``groups={"c3": 8, "c4": 16}``.

    Args:
        blocks: kind of the blocks that replace all but the first of a stage, "bottleneck" or "light":
            ``{"c3": "bottleneck", "c4": "bottleneck"}``. Empty for the plain ResNet.
        layers: number of blocks in each stage.
        channels: of each stage; its blocks have four times as many output channels.
        base_width: the 3x3 convs have channels * base_width / 64 channels.
        img_size: (H, W) of the images, any size: the RepMLP pads a feature map that is not a multiple of
            the partition.
        channel_reduction: (*) r; a RepMLP has width/r channels.
        partition_size: (*) h, w.
        kernel_sizes: (*) K of the Local Perceptrons.
        groups: (*) g of FC3 and of the Local Perceptrons' convs.
        global_reduction: (*) of FC1's and FC2's hidden width.
        deploy: build the deploy form.
        num_classes, in_chans, global_pool, output_stride, drop_rate, drop_path_rate, zero_init_last: as
            in timm's ResNet.

    Shape: (N, in_chans, H, W) -> (N, num_classes).

    Raises:
        ValueError: if a stage or block is unknown, a mapping lacks a stage, or sizes do not fit.
    """

    def __init__(
        self,
        blocks: Mapping[str, str],
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        *,
        base_width: int = 64,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        channel_reduction: int | Mapping[str, int] = CHANNEL_REDUCTION,
        partition_size: int | tuple[int, int] | Mapping[str, int | tuple[int, int]] = 7,
        kernel_sizes: Kernels | Mapping[str, Kernels] = (1, 3, 5),
        groups: int | Mapping[str, int] = 8,
        global_reduction: int | Mapping[str, int] = 1,
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        deploy: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        block: Any = FoldableBottleneck
        super().__init__(
            block,
            layers,
            num_classes,
            in_chans,
            output_stride,
            global_pool,
            base_width=base_width,
            channels=channels,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            zero_init_last=zero_init_last,
            block_args={"deploy": deploy},
            **dd,
        )
        conv: Any = self.conv1
        # One module that converts itself: features_only keeps a network's modules, but not the network itself.
        self.conv1: Any = ConvNorm(in_chans, conv.out_channels, 7, 2, deploy=deploy, **dd)
        self.conv1.conv.weight = conv.weight
        self.bn1 = nn.Identity()

        _check_stages("blocks", blocks)
        H, W = to_2tuple(img_size)
        for i, stage in enumerate(STAGES):
            if stage not in blocks:
                continue
            stride = min(4 * 2**i, output_stride)
            size = (-(-H // stride), -(-W // stride))  # (H, W) of the stage; the stem and the strided convs round up
            h, w = to_2tuple(_for_stage("partition_size", partition_size, stage))
            repmlp = partial(
                RepMLP,
                feature_size=size,
                partition_size=(h, w),
                kernel_sizes=_for_stage("kernel_sizes", kernel_sizes, stage),
                groups=_for_stage("groups", groups, stage),
                global_reduction=_for_stage("global_reduction", global_reduction, stage),
                pad=bool(size[0] % h or size[1] % w),
                deploy=deploy,
            )
            r = _for_stage("channel_reduction", channel_reduction, stage)
            layer: Any = self.get_submodule(f"layer{i + 1}")
            for j, old in enumerate(layer):
                if j > 0:
                    layer[j] = _replacement(blocks[stage], old, r, repmlp, deploy=deploy, dd=dd)
                    if zero_init_last:
                        layer[j].zero_init_last()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # Translates timm's names. PyTorch passes a copy of the dict and reads the children's tensors from it later.
        for name in [name for name in state_dict if name.startswith(prefix)]:
            state_dict[prefix + _own_name(name.removeprefix(prefix))] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _replacement(
    kind: str, old: Bottleneck, r: int, repmlp: Callable[..., RepMLP], *, deploy: bool, dd: FactoryArgs
) -> RepMLPBottleneck | RepMLPLightBlock:
    """The RepMLP block that replaces a Bottleneck."""
    args = (old.conv1.in_channels, old.conv2.out_channels, r, repmlp)
    if kind == "bottleneck":
        return RepMLPBottleneck(*args, dilation=old.dilation, drop_path=old.drop_path, deploy=deploy, **dd)
    if kind == "light":
        return RepMLPLightBlock(*args, drop_path=old.drop_path, deploy=deploy, **dd)
    raise ValueError(f"unknown block {kind!r}: use bottleneck or light")


def _check_stages(name: str, values: Mapping[str, object]) -> None:
    unknown = [stage for stage in values if stage not in STAGES]
    if unknown:
        raise ValueError(f"{name} names the stages {', '.join(unknown)}, but a ResNet has {', '.join(STAGES)}")


def _for_stage(name: str, value: T | Mapping[str, T], stage: str) -> T:
    """The value for all stages, or the entry of this stage."""
    if not isinstance(value, Mapping):
        return value
    _check_stages(name, value)
    if stage not in value:
        raise ValueError(
            f"{name} names {', '.join(value) or 'no stage'}, but {stage} has RepMLP blocks too: "
            f"add {stage}, or pass one value for all stages"
        )
    return value[stage]


def _own_name(name: str) -> str:
    """Translate timm's name of a tensor: only the stem differs, where conv1 and bn1 are one module."""
    return re.sub(r"^bn1\.", "conv1.bn.", re.sub(r"^conv1\.(?=weight$)", "conv1.conv.", name))


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename weights of timm's ResNet to our names. timm calls this before it adapts and loads pretrained weights."""
    return {_own_name(name): tensor for name, tensor in state_dict.items()}


def _cfg(**kwargs) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1.conv",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_name": "RepMLP: Re-parameterizing Convolutions into Fully-connected Layers for Image Recognition",
        "paper_ids": "arXiv:2105.01883",
        **kwargs,
    }


_CFG_320 = _cfg(input_size=(3, 320, 320), pool_size=(10, 10), crop_pct=1.0)
_CFG_FACE = _cfg(
    num_classes=512, input_size=(3, 96, 96), pool_size=(3, 3), crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
default_cfgs = generate_default_cfgs(
    {
        "repmlp_resnet50": _cfg(),
        "repmlp_resnet50_c4": _cfg(),
        "repmlp_resnet50_light": _cfg(),
        "repmlp_resnet50_light_g4": _cfg(),
        "repmlp_resnet50_320_g8x16": _CFG_320,
        "repmlp_resnet50_320_g8x8": _CFG_320,
        "repmlp_resnet50_320_g4x8": _CFG_320,
        "repmlp_faceresnet": _CFG_FACE,
        "faceresnet": _CFG_FACE,
    }
)


def _create(variant: str, pretrained: bool, **kwargs) -> RepMLPResNet:
    return build_model_with_cfg(RepMLPResNet, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


_C3_C4 = {"c3": "bottleneck", "c4": "bottleneck"}
_LIGHT = {"blocks": {"c3": "light", "c4": "light"}, "channel_reduction": 2}
_320 = {"blocks": _C3_C4, "partition_size": 10, "kernel_sizes": (1, 3, 5, 7)}
_FACE = {"layers": (3, 2, 2, 2), "channels": (32, 64, 128, 256), "base_width": 256}


@register_model
def repmlp_resnet50(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """RepMLP Bottlenecks in c3 and c4, g=8: 40.9M params, 3.89G MACs in deploy form; 78.55% on ImageNet (v1, 4.2)."""
    return _create("repmlp_resnet50", pretrained, **{"blocks": _C3_C4, **kwargs})


@register_model
def repmlp_resnet50_c4(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """RepMLP Bottlenecks in c4 only, g=8: 30.9M params, 3.83G MACs in deploy form (v1, 4.2)."""
    return _create("repmlp_resnet50_c4", pretrained, **{"blocks": {"c4": "bottleneck"}, **kwargs})


@register_model
def repmlp_resnet50_light(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """RepMLP Light Blocks in c3 and c4, g=8: 57.9M params, 2.92G MACs in deploy form; 77.14% on ImageNet (v1, A)."""
    return _create("repmlp_resnet50_light", pretrained, **{**_LIGHT, **kwargs})


@register_model
def repmlp_resnet50_light_g4(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """The Light network that the authors released, g=4: 86.1M params, 3.08G MACs in deploy form."""
    return _create("repmlp_resnet50_light_g4", pretrained, **{**_LIGHT, "groups": 4, **kwargs})


@register_model
def repmlp_resnet50_320_g8x16(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """320 px, RepMLP Bottlenecks in c3 (g=8) and c4 (g=16): 59.2M params, 8.06G MACs in deploy form (v1, 4.2)."""
    return _create("repmlp_resnet50_320_g8x16", pretrained, **{**_320, "groups": {"c3": 8, "c4": 16}, **kwargs})


@register_model
def repmlp_resnet50_320_g8x8(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """320 px, RepMLP Bottlenecks in c3 and c4 (g=8): 72.0M params, 8.11G MACs in deploy form (v1, 4.2)."""
    return _create("repmlp_resnet50_320_g8x8", pretrained, **{**_320, **kwargs})


@register_model
def repmlp_resnet50_320_g4x8(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """320 px, RepMLP Bottlenecks in c3 (g=4) and c4 (g=8): 87.4M params, 8.35G MACs in deploy form (v1, 4.2)."""
    return _create("repmlp_resnet50_320_g4x8", pretrained, **{**_320, "groups": {"c3": 4, "c4": 8}, **kwargs})


@register_model
def faceresnet(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """FaceResNet (v1, 4.3), the paper's baseline: maps 96 px images to an embedding of ``num_classes`` values.

    Its loss is AM-Softmax: CosFaceLoss of pytorch-metric-learning on the embeddings.
    """
    return _create("faceresnet", pretrained, **{"blocks": {}, **_FACE, **kwargs})


@register_model
def repmlp_faceresnet(pretrained: bool = False, **kwargs) -> RepMLPResNet:
    """FaceResNet with RepMLP Bottlenecks in c2, c3 and c4, h=w=6, r=2, g=4 (v1, 4.3); see :func:`faceresnet`."""
    args = {
        "blocks": {"c2": "bottleneck", **_C3_C4},
        "channel_reduction": 2,
        "partition_size": 6,
        "groups": 4,
    }
    return _create("repmlp_faceresnet", pretrained, **{**_FACE, **args, **kwargs})
