"""What a run reports: progress, rows of metrics.csv, the result."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..files import atomic_file
from .evaluation import Evaluation, Totals
from .state import State


@dataclass(frozen=True)
class Step:
    """The number of a step of the optimizer, of all ``steps`` in the run, and the epoch that it is in.

    ``loss`` and ``accuracy`` are training means of the epoch so far, in this process. Reading them waits for the
    device: read them every so many steps only.
    """

    epoch: int
    step: int
    steps: int
    totals: Totals

    @property
    def loss(self) -> float:
        return self.totals.mean().loss

    @property
    def accuracy(self) -> float:
        return self.totals.mean().accuracy


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
    """How far a run is: all that its state holds besides weights and optimizer.

    Attributes:
        epoch: the one that it is in, from 1 on.
        batch: micro-batches of the epoch that are done.
        totals: of these, in this process.
        seconds: spent on them.
        best, kept: accuracy of the best epoch so far, and its number.
    """

    epoch: int = 1
    batch: int = 0
    totals: Totals = field(default_factory=Totals)
    seconds: float = 0.0
    best: float = -math.inf
    kept: int = 0

    def to_state(self, totals: Sequence[Sequence[float]]) -> State:
        """As entries of a state. ``totals``: images, loss and correct of each process."""
        values = {key: value for key, value in vars(self).items() if key != "totals"}
        return {"progress": values, "totals": [list(own) for own in totals]}

    @classmethod
    def from_state(cls, state: State, process: int, processes: int) -> "Progress":
        """The inverse; with another number of processes than then, the first one gets the totals of all."""
        values = dict(state["progress"])
        # Before format 2 a state held the totals of the first process only, among the values.
        first = [values.pop(name, 0) for name in ("seen", "loss_sum", "correct")]
        totals = state.get("totals", [first])
        if len(totals) != processes:
            totals = [[sum(column) for column in zip(*totals, strict=True)]] + [[0, 0.0, 0]] * (processes - 1)
        images, loss, correct = totals[process]
        kinds = {"epoch": int, "batch": int, "seconds": float, "best": float, "kept": int}
        numbers = {name: kind(values.pop(name)) for name, kind in kinds.items()}
        return cls(**numbers, **values, totals=Totals(int(images), float(loss), int(correct)))


def append_row(path: Path, row: Epoch) -> None:
    """Add a row to metrics.csv, with a header if it is the first."""
    values, added = asdict(row), io.StringIO(newline="")
    writer = csv.DictWriter(added, values)
    if not path.exists():
        writer.writeheader()
    writer.writerow(values)
    before = path.read_bytes() if path.exists() else b""
    with atomic_file(path) as new:
        new.write_bytes(before + added.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def keep_rows(path: Path, epochs: int) -> None:
    """Cut metrics.csv to its first ``epochs`` rows; training will write the later ones again."""
    if not epochs:
        path.unlink(missing_ok=True)
    elif path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        with atomic_file(path) as new:
            new.write_bytes(b"".join(lines[: epochs + 1]))
