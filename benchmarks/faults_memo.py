"""Trace and convert each network once, in the parent of all children of faults.py, since the files are what it tests.

That takes seconds, and writes nothing. Children inherit the results.
"""

import importlib
from collections.abc import Callable, Hashable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from repmlp.checkpoint import digest
from repmlp_cli import main as command

#: Functions from networks, programs and files to programs and models of engines.
SLOW = ("torch.export.export", "torch.onnx.export", "openvino.convert_model")
#: What a command calls once it has written a file; it starts threads, which a process that forks must not have.
AFTERWARDS = ("repmlp.deploy.exporting.open_written", "repmlp.deploy.quantization.load_exported")


def remember_slow_steps() -> None:
    for path in SLOW:
        module, name = path.rsplit(".", 1)
        place = importlib.import_module(module)
        setattr(place, name, _remembered(getattr(place, name)))


def warm_up(words: list[str]) -> None:
    """Run the slow steps of a command, and remember what they give."""
    with ExitStack() as stack, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for path in AFTERWARDS:
            stack.enter_context(patch(path, side_effect=ValueError("enough")))
        command(words)


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    memo: dict[Hashable, tuple[Any, Any]] = {}

    def remembered(source: Any, *args: Any, **options: Any) -> Any:
        key = (_key(source), options.get("opset_version"))
        if key not in memo:
            memo[key] = (function(source, *args, **options), source)  # the source is kept, so that its id stays its own
        value = memo[key][0]
        return value.clone() if hasattr(value, "clone") else value  # writing a model of OpenVINO changes it

    return remembered


def _key(source: Any) -> Hashable:
    if isinstance(source, nn.Module):
        return str(source), digest(source.state_dict())
    if isinstance(source, Path):
        return sha256(source.read_bytes()).hexdigest()
    return id(source)
