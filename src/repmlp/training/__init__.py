"""Training and evaluation."""

from .evaluate import Evaluation, evaluate
from .loop import Epoch, Run, Step, build_test_loader, train

__all__ = ["Epoch", "Evaluation", "Run", "Step", "build_test_loader", "evaluate", "train"]
