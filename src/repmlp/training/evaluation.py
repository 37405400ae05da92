"""How many images a network classifies correctly: the one loop that counts them, and its totals."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    """How many of ``images`` are classified correctly, and the mean cross-entropy ``loss``."""

    correct: int
    images: int
    loss: float

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.images


@dataclass(frozen=True)
class Totals:
    """Sums over images. As tensors they stay on their device, and nothing waits for it until they are read.

    Attributes:
        images: how many.
        loss: sum of their losses.
        correct: how many have the right top-1 prediction.
    """

    images: int = 0
    loss: Tensor | float = 0.0
    correct: Tensor | int = 0

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, loss: Tensor) -> "Totals":
        """Of one batch: logits (B, classes), labels (B), and its mean loss."""
        loss = loss.detach()
        exact = loss if loss.device.type == "mps" else loss.double()  # MPS has no float64
        return cls(len(labels), exact * len(labels), (logits.argmax(1) == labels).sum())

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.images + other.images, self.loss + other.loss, self.correct + other.correct)

    def read(self) -> "Totals":
        """The same as plain numbers; waits for the device."""
        return Totals(self.images, float(self.loss), int(self.correct))

    def over_processes(self, accelerator: Accelerator) -> "Totals":
        """The totals of all processes; every process gets them."""
        images, loss, correct = sum_over_processes(accelerator, self.images, float(self.loss), int(self.correct))
        return Totals(int(images), loss, int(correct))

    def mean(self) -> Evaluation:
        """Raise ValueError if there are no images."""
        if not self.images:
            raise ValueError("there are no images to evaluate on")
        return Evaluation(int(self.correct), self.images, float(self.loss) / self.images)


@torch.no_grad()
def classify(
    networks: Sequence[Callable[[Tensor], Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
) -> tuple[list[Totals], int]:
    """Classify every image once with each network, in one pass over the batches.

    Args:
        networks: images (B, C, H, W) to logits (B, classes); they see to mode and precision.
        batches: images and labels (B).
        device: that the networks take images on.

    Returns:
        The totals of each network, and on how many images all of them predict the same class.
    """
    totals, agree = [Totals()] * len(networks), 0
    for x, labels in batches:
        x = x.to(device)
        logits = [network(x) for network in networks]
        labels = labels.to(logits[0].device).long()
        for i, own in enumerate(logits):
            totals[i] += Totals.of(own, labels, F.cross_entropy(own.float(), labels))
        predictions = torch.stack([own.argmax(1) for own in logits])  # (networks, B)
        agree += (predictions == predictions[0]).all(0).sum()  # type: ignore[assignment]  # stays on the device
    return [own.read() for own in totals], int(agree)


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], accelerator: Accelerator) -> Evaluation:
    """Accuracy and loss of a model in eval mode; exact over several processes that each have a shard of the images.

    Raises:
        ValueError: if there are no images.
    """
    model.eval()
    with accelerator.autocast():
        (totals,), _ = classify([model], batches, accelerator.device)
    return totals.over_processes(accelerator).mean()


def sum_over_processes(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes, in float64; every process gets them."""
    return [sum(of_each) for of_each in zip(*gather_over_processes(accelerator, values), strict=True)]


def gather_over_processes(accelerator: Accelerator, values: Sequence[float]) -> list[list[float]]:
    """The values of each process, in float64; every process gets them."""
    if accelerator.num_processes == 1:  # not every device has float64
        return [list(values)]
    return accelerator.gather(torch.tensor([values], dtype=torch.float64, device=accelerator.device)).tolist()
