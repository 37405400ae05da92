"""Console output of the commands: lines, tables, progress, reports.

Text is printed literally: rich's markup is not interpreted, and control characters are escaped, so labels and file
names may contain anything. Styles are passed separately from the text.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from repmlp.conversion.report import HEADER, EquivalenceReport
from repmlp.training import Epoch, Step

from .text import printable

console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")  # under torchrun, only rank 0 prints
if not console.is_terminal:  # rich assumes that a file is 80 characters wide
    console.width = 120


def say(*parts: str | tuple[str, str]) -> None:
    """Print a line of text, with styled parts as (text, style); terminals may wrap it, files get it in one line."""
    line = Text()
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        line.append(printable(text, keep="\n"), style)
    console.print(line, soft_wrap=True)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose other columns are numbers."""
    view = Table(title=_cell(title), title_justify="left", title_style="bold")
    for i, name in enumerate(header):
        view.add_column(_cell(name), justify="left" if i == 0 else "right")
    for row in rows:
        view.add_row(*map(_cell, row))
    console.print(view)


def _cell(text: str) -> Text:
    return Text(printable(text, keep="\n"))


def print_report(report: EquivalenceReport) -> None:
    """Print the rows of a report as a table, and its verdict."""
    table(f"Deviations in {report.dtype}, and with the same weights in float64", HEADER, list(report.rows()))
    say((report.verdict(), f"bold {'green' if report else 'red'}"))


class TrainingProgress:
    """A progress bar with loss, accuracy and time left; prints at most ten lines with an epoch's loss and accuracy."""

    def __init__(self, progress: Progress, epochs: int) -> None:
        self.progress, self.epoch, self.epochs = progress, 0, epochs
        self.task = progress.add_task("", total=None, state="starting")

    def on_check(self, checked: int, images: int) -> None:
        self.progress.update(self.task, completed=checked, total=images, state="reading images")

    def on_message(self, text: str) -> None:
        self.progress.console.print(Text(printable(text, keep="\n")))

    def on_step(self, step: Step) -> None:
        self.progress.update(self.task, completed=step.step, total=step.steps)
        if step.step % 10 == 1 or step.step == step.steps or step.epoch != self.epoch:  # reading the loss syncs the GPU
            self.epoch = step.epoch
            state = f"epoch {step.epoch}/{self.epochs}  loss {step.loss:.4f}  accuracy {step.accuracy:6.2%}"
            self.progress.update(self.task, state=state)

    def on_epoch(self, row: Epoch) -> None:
        if row.epoch % max(1, self.epochs // 10) == 0 or row.epoch == self.epochs:
            validation = f"val {row.val_loss:.4f} {row.val_accuracy:7.2%}   "
            self.progress.console.print(
                f"epoch {row.epoch:3d}  train {row.train_loss:.4f} {row.train_accuracy:7.2%}   "
                f"{'' if math.isnan(row.val_loss) else validation}{row.seconds:.1f} s"
            )


@contextmanager
def training_progress(epochs: int) -> Iterator[TrainingProgress]:
    columns = (TextColumn("{task.fields[state]}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
    ) as progress:
        bar = TrainingProgress(progress, epochs)
        try:
            yield bar
        except Exception:  # the error message stands alone
            progress.remove_task(bar.task)
            raise


@contextmanager
def show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (task, done, total) that shows the progress of a task on one line of the terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None)
