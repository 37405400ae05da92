"""What a run tells: progress, rows of metrics.csv, the result."""

import csv
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from .evaluation import Evaluation


@dataclass(frozen=True)
class Step:
    """Where a run is: training loss and accuracy are running means of the epoch so far."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """One row of metrics.csv. Accuracies are in [0, 1]; the val columns are NaN if nothing is held out."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the epoch whose weights it keeps, and their accuracy on the test images."""

    folder: Path
    epoch: int
    test: Evaluation


@dataclass
class Progress:
    """How far a run is, and what it knows: all that its state holds beside weights and optimizer.

    Attributes:
        epoch: the one that it is in, from 1 on.
        batch: batches of it that are done.
        seen, loss_sum, correct, seconds: of these batches, in this process.
        best, kept: accuracy of the best epoch so far, and which one that is.
    """

    epoch: int = 1
    batch: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    kept: int = 0


def append_row(path: Path, row: Epoch) -> None:
    """Add a row to metrics.csv, with a header if it is the first."""
    values = asdict(row)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, values)
        if new:
            writer.writeheader()
        writer.writerow(values)


def keep_rows(path: Path, epochs: int) -> None:
    """Cut metrics.csv to its first ``epochs`` rows: those after them will be written again."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: epochs + 1]))
