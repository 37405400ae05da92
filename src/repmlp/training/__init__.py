"""Training and evaluation."""

from .batches import build_test_loader
from .evaluation import Evaluation, evaluate
from .loop import train
from .records import Epoch, Run, Step
from .state import Stopped, stored_settings

__all__ = ["Epoch", "Evaluation", "Run", "Step", "Stopped", "build_test_loader", "evaluate", "stored_settings", "train"]
