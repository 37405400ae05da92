"""Accuracy on held-out images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Evaluation:
    """``correct`` of ``images`` top-1 predictions are right; ``loss`` is the mean cross-entropy."""

    correct: int
    images: int
    loss: float

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.images


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> Evaluation:
    """Classify every image of a prepared loader once, in eval mode; exact over several processes too."""
    model.eval()
    correct, images, loss = 0, 0, 0.0
    for x, labels in loader:
        logits = model(x).float()
        logits, labels = accelerator.gather_for_metrics((logits, labels))
        correct += int((logits.argmax(1) == labels).sum())
        images += len(labels)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    if not images:
        raise ValueError("there are no images to evaluate on")
    return Evaluation(correct, images, loss / images)
