"""The networks. Importing this package registers them in timm."""

from .cifar import CifarNet, repmlp_cifar, wide_convnet_cifar
from .repmlp_resnet import (
    RepMLPResNet,
    faceresnet,
    repmlp_faceresnet,
    repmlp_resnet50,
    repmlp_resnet50_320_g4x8,
    repmlp_resnet50_320_g8x8,
    repmlp_resnet50_320_g8x16,
    repmlp_resnet50_c4,
    repmlp_resnet50_light,
    repmlp_resnet50_light_g4,
)
from .repmlpnet import (
    RepMLPNet,
    repmlpnet_b224,
    repmlpnet_b256,
    repmlpnet_d256,
    repmlpnet_l256,
    repmlpnet_t224,
    repmlpnet_t256,
)
from .vision_mlps import gmlp_6_32, mixer_4_32, resmlp_6_32

__all__ = [
    "CifarNet",
    "RepMLPNet",
    "RepMLPResNet",
    "faceresnet",
    "gmlp_6_32",
    "mixer_4_32",
    "repmlp_cifar",
    "repmlp_faceresnet",
    "repmlp_resnet50",
    "repmlp_resnet50_320_g4x8",
    "repmlp_resnet50_320_g8x8",
    "repmlp_resnet50_320_g8x16",
    "repmlp_resnet50_c4",
    "repmlp_resnet50_light",
    "repmlp_resnet50_light_g4",
    "repmlpnet_b224",
    "repmlpnet_b256",
    "repmlpnet_d256",
    "repmlpnet_l256",
    "repmlpnet_t224",
    "repmlpnet_t256",
    "resmlp_6_32",
    "wide_convnet_cifar",
]
