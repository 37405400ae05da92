"""What both forms of a network predict for each test image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..training import Evaluation, classify


@dataclass(frozen=True)
class Predictions:
    """The predictions for N images; those of single images are the first form's.

    Attributes:
        scores: of each form.
        agree: number of images for which all forms predict the same class.
        labels, predicted: class indices (N).
        confidence: probability of the predicted class (N).
        losses: cross-entropy (N).
        images: the first images, as the network takes them, at most ``FEW``.
    """

    scores: Sequence[Evaluation]
    agree: int
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    losses: Tensor
    images: Tensor

    FEW = 64

    def confusion(self, classes: int) -> Tensor:
        """Number of images of each true class (row) by predicted class (column) (classes, classes)."""
        pairs = self.labels * classes + self.predicted
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def worst(self, most: int) -> list[int]:
        """Indices of the wrongly classified images, at most ``most``, the highest loss first."""
        wrong = (self.predicted != self.labels).nonzero().flatten()
        order = self.losses[wrong].argsort(descending=True, stable=True)
        return wrong[order][:most].tolist()


@torch.inference_mode()
def predict(
    forms: Sequence[Callable[[Tensor], Tensor]], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Predictions:
    """Classify every image once with each form, which is on ``device``.

    Raises:
        ValueError: if there are no images.
    """
    labels: list[Tensor] = []
    kept: list[tuple[Tensor, ...]] = []  # (predicted, confidence, losses) of each batch
    images: list[Tensor] = []

    def remember_labels() -> Iterator[tuple[Tensor, Tensor]]:
        for x, own in batches:
            labels.append(own.long())
            if sum(map(len, images)) < Predictions.FEW:
                images.append(x)
            yield x, own

    def first(x: Tensor) -> Tensor:
        logits = forms[0](x)
        confidence, predicted = logits.float().softmax(1).max(1)
        losses = F.cross_entropy(logits.float(), labels[-1].to(device), reduction="none")
        kept.append(tuple(t.cpu() for t in (predicted, confidence, losses)))
        return logits

    totals, agree = classify([first, *forms[1:]], remember_labels(), device)
    scores = [own.mean() for own in totals]
    predicted, confidence, losses = (torch.cat(column) for column in zip(*kept, strict=True))
    few = torch.cat(images)[: Predictions.FEW]
    return Predictions(scores, agree, torch.cat(labels), predicted, confidence, losses, few)
