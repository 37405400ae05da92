"""Summarize an ablation in one table, for a terminal, as Markdown and as JSON."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repmlp_settings import Train

from ..files import atomic_write, claim
from ..messages import count, markdown_table
from ..training.config import changed_settings
from .jobs import NOT_COMPARED, Job, device_of, machine_with, with_found
from .results import Line, Result, Spread, measure, to_lines
from .rows import ROWS

ROUNDS, WARMUP = 20, 3


@dataclass(frozen=True)
class Summary:
    """The results of an ablation.

    Attributes:
        lines: of the table.
        results: the finished runs that the lines summarize.
        missing: names of the unfinished runs.
        recipe: shared by all rows.
        about: machine, versions and settings of the inference-time measurement.
    """

    lines: Sequence[Line]
    results: Sequence[Result]
    missing: Sequence[str]
    recipe: Train
    about: dict[str, Any]

    @property
    def title(self) -> str:
        return f"Ablation on {self.recipe.data}, {count(self.recipe.epochs, 'epoch')}"

    @property
    def caption(self) -> str:
        return "deploy form, A in training form; mean ± sample standard deviation over n seeds"

    @property
    def header(self) -> list[str]:
        """Column titles, with line breaks for a terminal."""
        return [
            "",
            "test\naccuracy, %",
            "n",
            "points to\nfirst row",
            "paper",
            "train\nloss",
            "fell in\nlast\nfifth",
            "M\nparams",
            "M\nMACs",
            "train\ns/epoch",
            f"ms per\nbatch\nof {self.recipe.batch_size}",
        ]

    def rows(self) -> list[list[str]]:
        """Cells as text."""
        return [
            [
                line.title,
                spread_text(line.accuracy, ".2f"),
                str(line.accuracy.n) if line.accuracy else "0",
                spread_text(line.difference, "+.2f") if i else "",
                line.paper,
                f"{line.loss.mean:.4f}" if line.loss else "",
                "" if line.still_falling is None else f"{line.still_falling:.1%}",
                f"{line.complexity.params / 1e6:.3f}" if line.complexity else "",
                f"{line.complexity.macs / 1e6:.2f}" if line.complexity else "",
                "" if line.epoch_seconds is None else f"{line.epoch_seconds:.1f}",
                f"{line.batch_seconds.median * 1e3:.1f}" if line.batch_seconds else "",
            ]
            for i, line in enumerate(self.lines)
        ]

    def every_run(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table of the test accuracy of every run, %."""
        seeds = sorted({result.seed for result in self.results})
        rows = [
            [line.title, *(f"{line.accuracies[seed]:.2f}" if seed in line.accuracies else "" for seed in seeds)]
            for line in self.lines
        ]
        return ["", *(f"seed {seed}" for seed in seeds)], rows

    def remarks(self) -> list[str]:
        """Notes that the table needs to be read correctly."""
        trained_on = " and on ".join(sorted({_machine(result.machine) for result in self.results}))
        rounds, warmup = self.about["rounds"], self.about["warmup"]
        return [
            *([f"Not finished, and not in the table: {', '.join(self.missing)}."] if self.missing else []),
            "Points to first row: seed by seed, over the seeds that both have.",
            "Paper: RepMLP v1, section 4.1, on CIFAR-10.",
            "Train loss: of the last epoch. Fell: by what share the last fifth of the epochs lowered it.",
            f"Pure MLP and A are the same runs. Trained on {trained_on or 'nothing yet'}.",
            f"Inference on {_machine(self.about)}, {self.about['dtype']}: median of {rounds} interleaved rounds "
            f"after {warmup} for warm-up.",
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "recipe": _shared(self.recipe),
            "lines": [asdict(line) for line in self.lines],
            "runs": [asdict(result) for result in self.results],
            "missing": list(self.missing),
        }

    def to_markdown(self) -> str:
        """The table with its notes, every run's accuracy, and the settings."""
        changed = changed_settings(self.recipe)
        settings = [f"{name}: {value}" for name, value in _shared(self.recipe).items() if name in changed]
        versions = ", ".join(f"{name} {self.about[name]}" for name in ("repmlp", "torch", "timm", "python"))
        parts = [
            f"# {self.title}",
            f"All figures are of the {self.caption}.",
            markdown_table([" ".join(name.split()) for name in self.header], self.rows()),
            "\n".join(f"- {remark}" for remark in self.remarks()),
            "![Accuracy of each row and seed, and the training loss over the epochs](ablation.png)",
            "## Test accuracy of every run, %",
            markdown_table(*self.every_run()),
            "## Settings",
            f"`{'; '.join(settings)}`",
            f"{self.about['date']}, {versions}.",
        ]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write ablation.md and ablation.json, replacing existing ones."""
        atomic_write(folder / "ablation.json", json.dumps(self.to_dict(), indent=1) + "\n")
        atomic_write(folder / "ablation.md", self.to_markdown())


def summarize(jobs: Sequence[Job], recipe: Train, output: Path, rounds: int = ROUNDS, warmup: int = WARMUP) -> Summary:
    """Read all finished runs in ``output`` and measure their networks, without training.

    Args:
        jobs: the requested runs; other runs in the folder are included too.
        recipe: shared by all rows.
        output: folder of the ablation.
        rounds, warmup: of the inference-time measurement.
    """
    jobs = with_found(jobs, recipe, output)
    finished = [job for job in jobs if job.state == "finished"]
    results = [Result.read(job) for job in finished]
    names = {job.row.name for job in jobs}
    lines = to_lines(results, [row for row in ROWS if row.name in names])
    folders = {job.row.name: job.folder for job in reversed(finished)}
    about = {
        **machine_with(device_of(recipe)),
        "repmlp": version("repmlp"),
        "timm": version("timm"),
        "batch": recipe.batch_size,
        "rounds": rounds,
        "warmup": warmup,
        "dtype": "float32",
    }
    return Summary(
        lines=measure(lines, folders, recipe, rounds, warmup),
        results=results,
        missing=[job.name for job in jobs if job not in finished],
        recipe=recipe,
        about=about,
    )


def sole_writer(output: Path) -> AbstractContextManager:
    """Lock for summarizing and writing: if two processes finish at once, the later one includes all runs."""
    return claim(output / "ablation.json", wait=-1)


def _machine(about: Mapping[str, Any]) -> str:
    return f"{about['cpu']}, {count(about['threads'], 'thread')}" if about["device"] == "cpu" else str(about["device"])


def _shared(recipe: Train) -> dict[str, Any]:
    return {name: value for name, value in asdict(recipe).items() if name not in {*NOT_COMPARED, "seed"}}


def spread_text(spread: Spread | None, form: str) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:{form}}" + (f"±{spread.std:{form.removeprefix('+')}}" if spread.std is not None else "")
