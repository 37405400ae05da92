"""What every benchmark says of itself: the machine, the versions, how it measured."""

import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from repmlp.deploy import Timing

HERE = Path(__file__).parent


def processor() -> str:
    """The CPU's name and what of its vector units matters here."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def machine() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def milliseconds(timing: Timing) -> dict[str, float]:
    """Median, fastest and slowest call, in ms."""
    return {key: round(seconds * 1e3, 4) for key, seconds in asdict(timing).items()}


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
    (folder / f"{name}.md").write_text(f"Made by `python benchmarks/{name}.py`: {heading}.\n\n{text}\n")
    print(f"{heading}\n\n{text}\n\nwrote {folder / name}.json and .md")
