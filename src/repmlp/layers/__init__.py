"""The RepMLP blocks and their parts, each with a training form and a deploy form."""

from .conv_norm import ConvNorm
from .grouped_linear import GroupedLinear
from .perceptrons import GlobalPerceptron, LocalPerceptron, PartitionPerceptron
from .quantization_aware import add_fake_quant_hooks, find_repmlp_blocks, set_bn_eval
from .repmlp import RepMLP
from .repmlp_v2 import GlobalPerceptronV2, PartitionPerceptronV2, RepMLPv2
from .sync_norm import convert_sync_batchnorm
from .token_mixing import TokenMixing

__all__ = [
    "ConvNorm",
    "GlobalPerceptron",
    "GlobalPerceptronV2",
    "GroupedLinear",
    "LocalPerceptron",
    "PartitionPerceptron",
    "PartitionPerceptronV2",
    "RepMLP",
    "RepMLPv2",
    "TokenMixing",
    "add_fake_quant_hooks",
    "convert_sync_batchnorm",
    "find_repmlp_blocks",
    "set_bn_eval",
]
