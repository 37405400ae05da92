"""Small ResMLP, gMLP and MLP-Mixer for 32x32 images that train in minutes on a CPU.

They are timm's ``MlpMixer`` in other sizes: 64 tokens of 4x4 pixels, on an 8x8 grid. Their weights load into a
plain ``timm.models.mlp_mixer.MlpMixer`` with the same arguments. :func:`repmlp.inject_locality` gives them a local
prior for training; the Mixer's hidden width over tokens is 2T (two maps of the grid) to allow this.

    ResMLP   arXiv 2105.03404
    gMLP     arXiv 2105.08050
    Mixer    arXiv 2105.01601
"""

from functools import partial
from typing import Any

from timm.layers import GatedMlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock


def _cfg(paper_name: str, paper_id: str) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "stem.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_name": paper_name,
        "paper_ids": f"arXiv:{paper_id}",
    }


default_cfgs = generate_default_cfgs(
    {
        "resmlp_6_32": _cfg(
            "ResMLP: Feedforward networks for image classification with data-efficient training", "2105.03404"
        ),
        "gmlp_6_32": _cfg("Pay Attention to MLPs", "2105.08050"),
        "mixer_4_32": _cfg("MLP-Mixer: An all-MLP Architecture for Vision", "2105.01601"),
    }
)

_SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 64}


def _create(variant: str, pretrained: bool, **kwargs) -> MlpMixer:
    feature_cfg = {"out_indices": 3, "feature_cls": "getter"}  # as in timm's own networks
    return build_model_with_cfg(MlpMixer, variant, pretrained, feature_cfg=feature_cfg, **{**_SMALL, **kwargs})


@register_model
def resmlp_6_32(pretrained: bool = False, **kwargs) -> MlpMixer:
    """ResMLP with 6 blocks: 0.13M parameters, 8.1M MACs."""
    # LayerScale starts at 0.1: timm's 1e-4 suits 12 blocks or more, and slows down a short run.
    block = partial(ResBlock, init_values=0.1)
    sizes = {"num_blocks": 6, "mlp_ratio": 2, "block_layer": block, "norm_layer": Affine}
    return _create("resmlp_6_32", pretrained, **{**sizes, **kwargs})


@register_model
def gmlp_6_32(pretrained: bool = False, **kwargs) -> MlpMixer:
    """gMLP with 6 blocks: 0.11M parameters, 6.5M MACs."""
    sizes = {"num_blocks": 6, "mlp_ratio": 2, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp}
    return _create("gmlp_6_32", pretrained, **{**sizes, **kwargs})


@register_model
def mixer_4_32(pretrained: bool = False, **kwargs) -> MlpMixer:
    """MLP-Mixer with 4 blocks, 128 = 2T hidden features over tokens: 0.14M parameters, 8.6M MACs."""
    return _create("mixer_4_32", pretrained, **{"num_blocks": 4, "mlp_ratio": (2.0, 2.0), **kwargs})
