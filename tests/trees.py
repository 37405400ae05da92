"""Small folders of text files, and other processes that write them."""

import os
import subprocess
import sys
from pathlib import Path

import repmlp.files

OURS = ("config.json", "model/weights", "*.png", "state/*")


def put(path: Path, text: str = "old") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def start(code: str, *args: Path) -> subprocess.Popen:
    """Another process that runs ``code``; it imports the one module, not PyTorch."""
    environment = {**os.environ, "PYTHONPATH": str(Path(repmlp.files.__file__).parent)}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
