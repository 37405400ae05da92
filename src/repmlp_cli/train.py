"""`repmlp train`"""

import ctypes
import os
import platform
from collections.abc import Collection
from pathlib import Path

from accelerate import PartialState

from repmlp.plot import plot_curves
from repmlp.training import Run, Stopped, stored_settings
from repmlp.training import train as run_training
from repmlp_settings import Train

from .card import describe_run
from .console import say, training_progress
from .report import report_after_training
from .text import with_flags

#: Names, up to the first dot, of what other commands write into a run folder by default.
MADE_OF_A_RUN = ("deploy", "int8", "official", "official-training")


def run(settings: Train, flags: Collection[str] = ()) -> int:
    done = train(settings, flags)
    if os.environ.get("RANK", "0") == "0":
        report_after_training(done.folder, describe_run(done.folder))
    made = sorted(path.name for path in done.folder.iterdir() if path.name.split(".")[0] in MADE_OF_A_RUN)
    if made:  # while the run was interrupted
        again = "it" if len(made) == 1 else "them"
        say((f"made from earlier weights: {', '.join(made)}; make {again} again with --overwrite", "yellow"))
    say(f"wrote {done.folder}; next: repmlp convert {done.folder}")
    return 0


def train(settings: Train, flags: Collection[str] = ()) -> Run:
    """Train with a progress bar, and draw the curves; a resumed run must have the settings that are given as flags."""
    keep_freed_memory()
    own = stored_settings(settings, flags) if settings.resume else settings
    try:
        with training_progress(own.epochs) as progress:
            reports = (progress.on_step, progress.on_epoch, progress.on_check, progress.on_message)
            done = run_training(settings, *reports, given=flags)
    except Stopped as stop:
        PartialState().destroy_process_group()  # its threads must not outlive the interpreter
        raise resumable(stop, settings.output) from stop
    if PartialState().is_main_process:
        plot_curves(done.folder / "metrics.csv", done.folder / "curves.png")
    PartialState().destroy_process_group()
    test, which = done.test, "best" if own.val_fraction else "last"
    say(
        f"{which} epoch, {done.epoch}: {test.correct} of {test.images} test images correct, ",
        (f"{test.accuracy:.2%}", "bold"),
        f" (loss {test.loss:.4f})",
    )
    return done


def resumable(stop: Stopped, folder: str | Path) -> Stopped:
    """The same exception with the command that resumes the run in ``folder``."""
    return Stopped(f"{with_flags(str(stop), Train)}: repmlp train --resume {folder}")


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next step, instead of returning it to the kernel each time.

    Otherwise every step faults in tens of thousands of pages. Does nothing and returns False if the C library is not
    glibc. Only for commands that train, never at import: the setting applies to the whole process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return all(ctypes.CDLL(None).mallopt(option, value) for option, value in _MALLOC_OPTIONS)


#: From glibc's malloc.h: M_MMAP_MAX 0, no block is mapped on its own; M_TRIM_THRESHOLD -1, the heap never shrinks.
_MALLOC_OPTIONS = ((-4, 0), (-1, -1))
