"""The maths of RepMLP: tensors in, tensors out."""

from .folding import fold_norm_after, fold_norm_before, norm_scale_shift, widen
from .grouped_linear import grouped_linear
from .injection import add_conv_to_linear_, conv_to_linear
from .partition import pad_to_multiple, partition_map, unpartition_map

__all__ = [
    "add_conv_to_linear_",
    "conv_to_linear",
    "fold_norm_after",
    "fold_norm_before",
    "grouped_linear",
    "norm_scale_shift",
    "pad_to_multiple",
    "partition_map",
    "unpartition_map",
    "widen",
]
