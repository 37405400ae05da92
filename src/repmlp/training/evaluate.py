"""Accuracy on held-out images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn


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
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], accelerator: Accelerator) -> Evaluation:
    """Classify every image once, in eval mode; exact over several processes that have a part of the images each.

    Raises:
        ValueError: if there are no images.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)  # correct, images, loss
    for x, labels in batches:
        x, labels = x.to(accelerator.device), labels.to(accelerator.device)
        with accelerator.autocast():
            logits = model(x)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([(logits.argmax(1) == labels).sum(), sums.new_tensor(len(labels)), loss])
    correct, images, loss = accelerator.reduce(sums).tolist()
    if not images:
        raise ValueError("there are no images to evaluate on")
    return Evaluation(int(correct), int(images), loss / images)
