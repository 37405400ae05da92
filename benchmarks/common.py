"""Report what a benchmark measured, and on which machine."""

import json
import statistics
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from repmlp.deploy import Timing
from repmlp.deploy.environment import machine

HERE = Path(__file__).parent


def options(description: str | None, rounds: int | None = None) -> ArgumentParser:
    """A parser that shows a script's docstring as it is; with a default for ``--rounds`` if it times alternatives."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help="counted calls of each alternative, in turn")
    return parser


def add_precision(parser: ArgumentParser) -> None:
    """``--precision`` of a training step, as in `repmlp train`; :func:`autocast` applies it."""
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="mixed precision, or no")


def dtype_of(precision: str) -> torch.dtype:
    """The dtype that layers compute in at this precision."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", dtype_of(precision), enabled=precision == "bf16")


def suffix(precision: str) -> str:
    """Appended to the names of result files; empty for float32."""
    return "" if precision == "no" else f"_{precision}"


def milliseconds(timing: Timing) -> dict[str, float]:
    """Median, fastest and slowest call, in ms."""
    return {key: round(seconds * 1e3, 4) for key, seconds in asdict(timing).items()}


def mean_and_spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def write(name: str, settings: dict[str, Any], results: list[dict[str, Any]], text: str) -> None:
    """Print the tables, and keep them with the figures behind them in results/."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    about = {**machine(), **settings}
    (folder / f"{name}.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    heading = ", ".join(f"{key} {value}" for key, value in about.items())
    (folder / f"{name}.md").write_text(f"Made by `python benchmarks/{Path(sys.argv[0]).name}`: {heading}.\n\n{text}\n")
    print(f"{heading}\n\n{text}\n\nwrote {folder / name}.json and .md")
