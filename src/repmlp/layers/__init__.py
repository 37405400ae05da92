"""The parts of a RepMLP block and the block itself, each in training form and in deploy form."""

from .conv_norm import ConvNorm
from .grouped_linear import GroupedLinear
from .perceptrons import GlobalPerceptron, LocalPerceptron, PartitionPerceptron
from .repmlp import RepMLP

__all__ = ["ConvNorm", "GlobalPerceptron", "GroupedLinear", "LocalPerceptron", "PartitionPerceptron", "RepMLP"]
