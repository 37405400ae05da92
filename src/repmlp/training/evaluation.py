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
    correct, images, loss = 0, 0, 0.0
    for x, labels in batches:
        x, labels = x.to(accelerator.device), labels.to(accelerator.device)
        with accelerator.autocast():
            logits = model(x)
        correct += int((logits.argmax(1) == labels).sum())
        images += len(labels)
        loss += F.cross_entropy(logits.float(), labels, reduction="sum").item()
    all_correct, all_images, all_loss = sum_over_processes(accelerator, correct, images, loss)
    if not all_images:
        raise ValueError("there are no images to evaluate on")
    return Evaluation(int(all_correct), int(all_images), all_loss / all_images)


def sum_over_processes(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes, in float64; every process gets them."""
    if accelerator.num_processes == 1:  # not every device has float64
        return list(values)
    return accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()
