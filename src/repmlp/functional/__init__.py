"""The maths of RepMLP: tensors in, tensors out."""

from .folding import fold_norm_after, fold_norm_before, norm_scale_shift, row_slices, widen
from .injection import add_conv_to_linear_, conv_to_linear
from .linear import grouped_linear
from .moments import conv_taps, covariance, linear_moments, moments_pay, tap_moments
from .partition import pad_to_multiple, partition_map, unpartition_map
from .quantization import fake_quantize

__all__ = [
    "add_conv_to_linear_",
    "conv_taps",
    "conv_to_linear",
    "covariance",
    "fake_quantize",
    "fold_norm_after",
    "fold_norm_before",
    "grouped_linear",
    "linear_moments",
    "moments_pay",
    "norm_scale_shift",
    "pad_to_multiple",
    "partition_map",
    "row_slices",
    "tap_moments",
    "unpartition_map",
    "widen",
]
