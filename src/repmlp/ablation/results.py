"""Results of the finished runs of an ablation: one line per row, with measurements of the networks."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from repmlp_settings import Train

from ..checkpoint import load_model
from ..conversion import reparameterize
from ..counting import Complexity, complexity
from ..deploy import Timing, time_interleaved
from ..training.records import read_rows, read_test
from .jobs import DEPLOY, TRAINING, Job, device_of
from .rows import NOT_CONVERTED, PURE_MLP, ROWS, Row


@dataclass(frozen=True)
class Spread:
    """Mean of n values, and their sample standard deviation (divided by n - 1; None for one value)."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """The spread of these values; None if there are none."""
        values = list(values)
        if not values:
            return None
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        images: number of test images.
        correct: how many of them are classified correctly, by form.
        losses, seconds: of training, one per epoch.
        machine: that trained the run.
    """

    row: str
    seed: int
    images: int
    correct: Mapping[str, int]
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    machine: Mapping[str, Any]

    @classmethod
    def read(cls, job: Job) -> "Result":
        test = read_test(job.converted, "images")
        if not all(isinstance(test.get(name), dict) for name in ("correct", "machine")):
            raise ValueError(f"{job.converted} lacks correct or machine: delete it, and run the ablation again")
        epochs = read_rows(job.folder / "metrics.csv")
        return cls(
            row=job.row.name,
            seed=job.settings.seed,
            images=test["images"],
            correct=test["correct"],
            losses=tuple(epoch["train_loss"] for epoch in epochs),
            seconds=tuple(epoch["seconds"] for epoch in epochs),
            machine=test["machine"],
        )

    def accuracy(self, form: str) -> float:
        """Test accuracy in percent."""
        return 100 * self.correct[form] / self.images

    @property
    def still_falling(self) -> float | None:
        """Fraction by which the training loss fell in the last fifth of the epochs; None with fewer than two epochs.

        Near 0 the curve is flat; a negative value means that the loss rose.
        """
        last = max(1, round(len(self.losses) / 5))
        return 1 - self.losses[-1] / self.losses[-1 - last] if len(self.losses) > last else None


@dataclass(frozen=True)
class Line:
    """One line of the table: a row in one form, over its seeds. Values without a finished run are None.

    Attributes:
        title, name, paper: of the row.
        form: of the network whose accuracy, size and inference time are given.
        accuracies: test accuracy in percent, by seed.
        accuracy: their spread.
        difference: from the first line, in points, paired by seed over the seeds that both have.
        loss: training loss of the last epoch.
        still_falling: mean of :attr:`Result.still_falling` over the seeds.
        curves: training loss of each epoch, by seed.
        epoch_seconds: median over all epochs and seeds.
        complexity, batch_seconds: of the network in this form.
    """

    title: str
    name: str
    paper: str
    form: str
    accuracies: Mapping[int, float]
    accuracy: Spread | None
    difference: Spread | None
    loss: Spread | None
    still_falling: float | None
    curves: Mapping[int, Sequence[float]]
    epoch_seconds: float | None
    complexity: Complexity | None = None
    batch_seconds: Timing | None = None


def to_lines(results: Sequence[Result], rows: Sequence[Row] = ROWS) -> list[Line]:
    """The lines of these rows: one each, in deploy form, and row A next to the pure MLP."""
    lines: list[Line] = []
    for row in rows:
        forms = ((row, DEPLOY), (NOT_CONVERTED, TRAINING)) if row == PURE_MLP else ((row, DEPLOY),)
        for titled, form in forms:
            own = sorted((result for result in results if result.row == row.name), key=lambda result: result.seed)
            accuracies = {result.seed: result.accuracy(form) for result in own}
            first = lines[0].accuracies if lines else accuracies
            falling = Spread.of(result.still_falling for result in own if result.still_falling is not None)
            seconds = [second for result in own for second in result.seconds]
            lines.append(
                Line(
                    title=titled.title,
                    name=row.name,
                    paper=titled.paper,
                    form=form,
                    accuracies=accuracies,
                    accuracy=Spread.of(accuracies.values()),
                    difference=Spread.of(accuracies[seed] - first[seed] for seed in accuracies if seed in first),
                    loss=Spread.of(result.losses[-1] for result in own),
                    still_falling=falling.mean if falling else None,
                    curves={result.seed: result.losses for result in own},
                    epoch_seconds=statistics.median(seconds) if seconds else None,
                )
            )
    return lines


def measure(lines: Sequence[Line], folders: Mapping[str, Path], recipe: Train, rounds: int, warmup: int) -> list[Line]:
    """Add parameters, MACs and inference time to the lines, timing all networks alternately in one session.

    Args:
        lines: to add to.
        folders: a run folder for each row that has one, by the row's name.
        recipe: gives the batch size, and whether to use the CPU.
        rounds, warmup: counted and uncounted batches of each network.
    """
    device = device_of(recipe)
    models: dict[str, nn.Module] = {}
    for line in lines:
        if line.name in folders:
            model = load_model(folders[line.name])
            models[line.title] = (reparameterize(model, inplace=True) if line.form == DEPLOY else model).to(device)
    counts = {title: complexity(model) for title, model in models.items()}
    runs: dict[str, Callable[[], Tensor]] = {}
    for title, model in models.items():
        x = torch.randn(recipe.batch_size, *get_model_input_config(model)["input_size"], device=device)
        runs[title] = partial(_run, model, x)
    with torch.inference_mode():
        times = time_interleaved(runs, rounds, warmup)
    return [replace(line, complexity=counts.get(line.title), batch_seconds=times.get(line.title)) for line in lines]


def _run(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).cpu()  # waits for the accelerator
