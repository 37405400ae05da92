"""`repmlp report`"""

from collections.abc import Callable
from pathlib import Path

from repmlp.conversion import EquivalenceReport
from repmlp.report import write_run_report
from repmlp_settings import Report

from .console import say


def run(settings: Report) -> int:
    file = write_run_report(
        settings.run,
        settings.output,
        settings.data,
        settings.data_root,
        mistakes=settings.mistakes,
        overwrite=settings.overwrite,
    )
    say(f"wrote {file}: open it in a browser; it needs no network")
    return 0


def report_after_training(folder: Path, proof: EquivalenceReport | None = None) -> None:
    """Write the report of a run that has just ended, with the proof if it has been made already."""
    given = False if proof is None else proof  # not `or`: a report of two forms that differ is false
    write_report(lambda: write_run_report(folder, proof=given), f"repmlp report {folder}")


def write_report(write: Callable[[], Path], again: str) -> None:
    """Write a report and say where it is; or say in one line why there is none, since all else is complete.

    Args:
        again: the command that writes it later.
    """
    try:
        say(f"wrote {write()}")
    except FileExistsError:
        say(f"no report, since a file of that name is not a report: move it elsewhere, then run {again}")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        say(f"no report ({error}); to try again, run {again}")
