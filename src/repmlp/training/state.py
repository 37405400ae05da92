"""The state of a run in one file: written whole or not at all, read without executing anything."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from repmlp_settings import Train

from ..data.sets import SMALL
from ..files import atomic_file

STATE = Path("state") / "state.pt"


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop; its state is written."""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the state of a run: at any moment the file on disk is a whole one.

    Raises:
        OSError: if it could not be written, with the last one still in place.
    """
    try:
        with atomic_file(folder / STATE) as path:
            torch.save(state, path)
    except OSError as error:
        raise OSError(f"{error}: make room, then go on with: repmlp train --resume {folder}") from error


def read_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The last state of a run, or None if it has not written one yet."""
    path = folder / STATE
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


def stored_settings(settings: Train) -> Train:
    """The settings of the run that ``settings`` ask to resume.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if it is finished, or other settings than the run's own are given too.
    """
    folder = Path(settings.output)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"there is no run to resume in {folder}: it holds no config.yaml")
    if (folder / "test.json").exists():
        raise ValueError(f"the run in {folder} is finished: there is nothing to resume")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    # Runs from before these settings existed kept the small named sets in memory, and no others; drew held-out images
    # without regard to their classes; and took classes by index.
    values.setdefault("in_memory", "yes" if values["data"] in ("digits", *SMALL) else "no")
    values.setdefault("val_draw", "at-random")
    values.setdefault("labels", "by-index")
    own = Train(**values)
    for field in fields(Train):
        given = getattr(settings, field.name)
        if field.name not in ("output", "resume") and given not in (field.default, getattr(own, field.name), [], {}):
            raise ValueError(
                f"a run goes on with its own settings, {field.name} is {getattr(own, field.name)!r} there and not "
                f"{given!r}: leave it out, or start another run"
            )
    return replace(own, output=settings.output)  # which may have moved


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Catch Ctrl-C and SIGTERM once, as an event to look at between steps; the next one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where Python does not let us listen
        yield asked
        return

    def ask(number: int, _: Any) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
