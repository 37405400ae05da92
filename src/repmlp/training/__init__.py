"""Training and evaluation."""

from .batches import build_test_loader
from .config import absolute_paths, read_settings, stored_settings
from .evaluation import Evaluation, Totals, classify, evaluate
from .loop import train
from .records import Epoch, Run, Step
from .state import Stopped
from .step import unchanged_buffers

__all__ = [
    "Epoch",
    "Evaluation",
    "Run",
    "Step",
    "Stopped",
    "Totals",
    "absolute_paths",
    "build_test_loader",
    "classify",
    "evaluate",
    "read_settings",
    "stored_settings",
    "train",
    "unchanged_buffers",
]
