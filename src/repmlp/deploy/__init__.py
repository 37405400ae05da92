"""What one does with a converted model."""

from .exporting import Exported, compare, export, trace
from .quantization import Quantized, calibration_images, quantize, split_groups
from .runtime import SUFFIXES, ExportedModel, describe, load, load_exported
from .timing import Timing, time_interleaved

__all__ = [
    "SUFFIXES",
    "Exported",
    "ExportedModel",
    "Quantized",
    "Timing",
    "calibration_images",
    "compare",
    "describe",
    "export",
    "load",
    "load_exported",
    "quantize",
    "split_groups",
    "time_interleaved",
    "trace",
]
