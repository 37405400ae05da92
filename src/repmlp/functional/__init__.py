"""The maths of RepMLP: tensors in, tensors out."""

from .folding import bn_to_affine, fold_bn_into_following, fold_bn_into_preceding, row_slices, to_double
from .injection import add_conv_to_linear_, add_conv_to_rows_, center_kernel, check_kernel_size, conv_to_linear
from .linear import grouped_linear
from .moments import covariance, im2col, linear_moments, patch_moments
from .partition import pad_to_multiple, partition_map, unpartition_map
from .quantization import fake_quantize

__all__ = [
    "add_conv_to_linear_",
    "add_conv_to_rows_",
    "bn_to_affine",
    "center_kernel",
    "check_kernel_size",
    "conv_to_linear",
    "covariance",
    "fake_quantize",
    "fold_bn_into_following",
    "fold_bn_into_preceding",
    "grouped_linear",
    "im2col",
    "linear_moments",
    "pad_to_multiple",
    "partition_map",
    "patch_moments",
    "row_slices",
    "to_double",
    "unpartition_map",
]
