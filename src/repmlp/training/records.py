"""What a run reports: progress, rows of metrics.csv, the result."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files import atomic_file
from ..messages import shown
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


def keep_rows(path: Path, epochs: int) -> None:
    """Cut metrics.csv to its first ``epochs`` rows; training will write the later ones again."""
    if not epochs:
        path.unlink(missing_ok=True)
    elif path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        with atomic_file(path) as new:
            new.write_bytes(b"".join(lines[: epochs + 1]))


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, numbers by column; none if there is no such file yet.

    Raises:
        ValueError: if it holds anything else; names the file.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{part.name: float(row[part.name]) for part in fields(Epoch)} for row in csv.DictReader(file)]
    except (ValueError, TypeError, LookupError, csv.Error) as error:  # a cell that is missing is None
        raise ValueError(f"{path} is not the metrics of a run ({error}): restore it, or move it away") from error


def read_test(path: Path, *names: str) -> dict[str, Any]:
    """What test.json holds.

    Args:
        path: the file.
        names: entries that have to be there, and be numbers.

    Raises:
        ValueError: that names the file and the entry.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the result of a run ({error}): restore it") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not the result of a run but {shown(values)}: restore it")
    for name in names:
        if not isinstance(value := values.get(name), int | float) or isinstance(value, bool):
            raise ValueError(f"{path}: {name} is {shown(value)}, but must be a number: restore it")
    return values
