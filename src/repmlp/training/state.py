"""The state of a run in one file: written whole or not at all, read without executing anything."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from ..files import PARTIAL, atomic_file, ensure_regular

STATE = Path("state") / "state.pt"
#: Of the state file; a newer one is refused. Format 1, which did not say so, lacks the totals of other processes,
#: the environment and the fingerprint of the data.
FORMAT = 2
#: Tensors and numbers by name.
State = dict[str, Any]
#: What each state holds.
ENTRIES = ("progress", "model", "optimizer")


class Stopped(KeyboardInterrupt):
    """A signal stopped the run, after its state was written: ``resume=True`` resumes it."""


def write_state(folder: Path, state: State) -> None:
    """Replace the state of a run: at any moment the file on disk is a whole one.

    Raises:
        OSError: if it could not be written, with the last one still in place.
    """
    try:
        with atomic_file(folder / STATE) as path:
            torch.save({"format": FORMAT, **state}, path)
    except OSError as error:
        raise OSError(f"{error}: resume the run when its state can be written again") from error


def read_state(folder: Path) -> State | None:
    """The last state of a run, or None if it has not written one yet. Nothing in the file is executed.

    Raises:
        ValueError: if it is damaged, not a state of a run, or of a newer version.
    """
    path = folder / STATE
    if not path.exists():
        return None
    ensure_regular(path)
    try:
        with ZipFile(path) as archive:  # torch.load does not compare checksums
            if part := archive.testzip():
                raise ValueError(f"{part} is not what was written, its checksum differs")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any bytes can fail in any way
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and numbers ({type(error).__name__}: {reason:.200}): "
            f"restore it, or start the run anew with overwrite=True"
        ) from error
    if isinstance(state, dict) and isinstance(found := state.get("format", 1), int) and found > FORMAT:
        raise ValueError(f"{path} has format {found}, and this version reads {FORMAT} or less: update repmlp")
    if missing := [name for name in ENTRIES if not isinstance(state, dict) or not isinstance(state.get(name), dict)]:
        raise ValueError(f"{path} is not the state of a run: it lacks {', '.join(missing)}")
    return state


def remove_state(folder: Path) -> None:
    """Delete the state of a finished run, and what killed processes left of others; a stranger's files stay."""
    path = folder / STATE
    path.unlink(missing_ok=True)
    for partial in path.parent.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)
    with suppress(OSError):  # a stranger's file is in it
        path.parent.rmdir()


@contextmanager
def fitting_state(folder: str | Path, errors: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors of reading an entry of a state into a ValueError that names the file.

    Args:
        errors: other than those of missing names and wrong types.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, *errors) as error:  # type: ignore[misc]
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{Path(folder) / STATE} does not fit the run that config.yaml describes "
            f"({type(error).__name__}: {reason:.300}): restore both, or start the run anew with overwrite=True"
        ) from error


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Catch the first Ctrl-C or SIGTERM as an event to check between steps; the next one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield asked
        return

    def ask(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
