"""What faults.py may find in its folder: files that are whole, a stranger's, or named as partial."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from repmlp.checkpoint import MODEL_FILES, read_weights
from repmlp.files import LOCK, OURS, REPLACED
from repmlp.model_config import read_config
from repmlp.training import read_settings
from repmlp.training.state import read_state

Tree = dict[str, bytes]


def without_folders(traceback: str) -> str:
    """The text with files named without the folders they are in, which belong to a machine."""
    return re.sub(r'File "[^"]*/', 'File "', traceback)


def tree(folder: Path) -> Tree:
    """Contents of all files in a folder, by relative name; lock files mean nothing and are left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(LOCK))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def restore(folder: Path) -> list[Path]:
    """Rename folders that were set aside back to their names, as the error message says; returns them."""
    restored = []
    for aside in sorted(folder.rglob(f"{REPLACED}*")):
        path = aside.with_name(aside.name.removeprefix(REPLACED))
        if not path.exists():
            aside.rename(path)
            restored.append(path)
    return restored


@dataclass
class Check:
    """The files before a round and after an undisturbed command, to which those after a fault are compared.

    Attributes:
        kept: a stranger's files, and the command's inputs.
        old, new: the output before, and after an undisturbed command.
        grows: whether the output is written file by file, as a run is; else it is old or new.
        rival: the output of the other command of a race, if that was another one and has written it.
    """

    kept: Tree
    old: Tree
    new: Tree
    grows: bool
    rival: Tree | None = None

    def examine(self, folder: Path) -> tuple[str, list[str]]:
        """What became of the output (old, new, the rival's, between), and the faults."""
        files = tree(folder)
        faults = []
        for name, content in self.kept.items():
            if files.get(name) != content:
                faults.append(f"{name}, not the command's, is {'changed' if name in files else 'gone'}")
        own = {
            name: content
            for name, content in files.items()
            if name not in self.kept and not any(part.startswith(OURS) for part in Path(name).parts)
        }
        faults += [f"{name} is neither old, new nor named as partial" for name in own if not self._is_known(name)]
        if self.grows:
            faults += damaged(folder, own)
        for outcome, wanted in (("old", self.old), ("new", self.new), ("rival", self.rival)):
            if wanted is not None and canonical(own) == canonical(wanted):
                return outcome, faults
        if self.grows:
            return "between", faults
        main = min(self.new, key=len)  # the companions of a file are named after it
        if len(Path(main).parts) == 1 and own.get(main) == self.old.get(main):
            wrong = [name for name in own if own[name] not in (self.old.get(name), self.new.get(name))]
            return "old, with new companions", faults + [f"{name} is damaged" for name in wrong]
        return "between", [*faults, f"the output is neither old nor new: {', '.join(own) or 'gone'}"]

    def _is_known(self, name: str) -> bool:
        return name in self.old or name in self.new or (self.grows and name.endswith("state/state.pt"))


def damaged(folder: Path, names: Any) -> list[str]:
    """The files that are not whole, and model folders of which a part is missing."""
    faults = []
    for name in names:
        path = folder / name
        reader = next((read for end, read in READERS.items() if name.endswith(end)), None)
        try:
            if reader:
                reader(path)
            if path.name in MODEL_FILES and not all((path.parent / part).exists() for part in MODEL_FILES):
                raise ValueError("alone in its folder")
        except Exception as error:  # of any reader, for any bytes
            faults.append(f"{name} is damaged ({type(error).__name__}: {error!s:.100})")
    return faults


def _read_rows(path: Path) -> list[dict[str, str]]:
    text = path.read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    if not text.endswith("\n") or [row.get("epoch") for row in rows] != [str(i + 1) for i in range(len(rows))]:
        raise ValueError(f"not rows of epochs 1, 2, ...: {text!r:.60}")
    return rows


def _read_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


READERS: dict[str, Callable[[Path], Any]] = {
    "model/config.json": read_config,
    ".json": lambda path: json.loads(path.read_text()),
    ".safetensors": read_weights,
    "state.pt": lambda path: read_state(path.parents[1]),
    "config.yaml": read_settings,
    "metrics.csv": _read_rows,
    ".png": _read_picture,
}


def canonical(files: Tree) -> dict[str, Any]:
    """Files by name, without what differs between equal runs: times, places, measurements.

    Pictures, reports and cards, which are made last, and the state of a run that has its test.json are left out.
    """
    late = (
        ".png",
        ".html",
        "README.md",
        *(["state/state.pt"] if any(name.endswith("test.json") for name in files) else []),
    )
    return {name: _canonical(name, content) for name, content in files.items() if not name.endswith(late)}


def _canonical(name: str, content: bytes) -> Any:
    try:
        if name.endswith("metrics.csv"):
            rows = csv.DictReader(io.StringIO(content.decode()))
            return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        if name.endswith("config.yaml"):
            settings = yaml.safe_load(content)
            return {key: value for key, value in settings.items() if key not in ("output", "overwrite", "resume")}
        if name.endswith("converted.json"):
            return json.loads(content)["correct"]
    except (ValueError, LookupError, AttributeError, TypeError, yaml.YAMLError):
        return content
    measured = ("ablation.json", "ablation.md")
    return "measured" if content and name.endswith(measured) else content
