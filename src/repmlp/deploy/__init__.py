"""Export, quantize, run and benchmark converted models."""

from .exporting import Exported, compare, export
from .metadata import export_metadata
from .quantization import Quantized, calibration_images, quantize, split_groups
from .runtime import ExportedModel, load_any, load_exported
from .timing import Timing, time_interleaved

__all__ = [
    "Exported",
    "ExportedModel",
    "Quantized",
    "Timing",
    "calibration_images",
    "compare",
    "export",
    "export_metadata",
    "load_any",
    "load_exported",
    "quantize",
    "split_groups",
    "time_interleaved",
]
