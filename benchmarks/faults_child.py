"""A child of faults.py: a forked process that runs a command and is hit by a fault."""

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from faults_check import without_folders

import repmlp
import repmlp.files
import repmlp.training.loop
from repmlp_cli import main as command

TRACEBACK = 70  # exit status after an error that no command should let through
PATIENCE = 900.0  # seconds, after which a child hangs
#: File operations that Python reports to audit hooks, besides opening a file in the folder of the round.
OPERATIONS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
#: Faults of our own, which the checks have to find: the attribute of an object to replace, and by what.
PLANTED: dict[str, tuple[Any, str, Any]] = {
    "written in place": (repmlp.files, "_scratch_folder", lambda path: contextlib.nullcontext(path.parent)),
    "strangers deleted": (repmlp.files, "foreign_names", lambda folder, ours: []),
    "rows lost": (repmlp.training.loop, "append_row", lambda path, row: None),
}


@dataclass(frozen=True)
class Fault:
    """What hits a child, before its file operation number ``at``; 0 if its parent strikes."""

    kind: str = "none"
    at: int = 0
    limit: int = 0

    def strike(self, pid: int, folder: Path) -> None:
        if self.kind == "full":
            os.kill(pid, signal.SIGUSR1)
        elif self.kind == "perms":
            set_modes(folder, 0o555)
        else:
            os.kill(pid, signal.SIGSTOP if self.kind == "race" else signal.Signals[f"SIG{self.kind.upper()}"])


def set_modes(folder: Path, mode: int) -> None:
    for root, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(root, mode)


class Child:
    """A forked process that runs a command. What it prints ends with its number of file operations and its imports."""

    def __init__(self, words: list[str], folder: Path, fault: Fault, planted: str | None = None) -> None:
        self.read, output = os.pipe()  # not a file, whose size a full disk limits
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.status: int | None = None
        self.text = ""
        self.pid = os.fork()
        if not self.pid:
            self._run(words, folder, fault, planted, output)
        os.close(output)

    def _run(self, words: list[str], folder: Path, fault: Fault, planted: str | None, output: int) -> NoReturn:
        status = TRACEBACK
        try:
            for stream in (1, 2):
                os.dup2(output, stream)
            drop_capabilities()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            limits = (fault.limit, fault.limit)
            signal.signal(signal.SIGUSR1, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
            if planted:
                setattr(*PLANTED[planted])
            operations, before = watch(folder, fault), set(sys.modules)
            status = run(words)
            imported = " ".join(sorted(sys.modules.keys() - before))
            print(f"\n{operations[0]} file operations; imported {imported}", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Its exit status, or minus its signal; None if it is halted or runs for longer."""
        end = time.monotonic() + seconds
        while self.status is None and time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                break
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                with open(self.read, errors="replace") as output:
                    self.text = " ".join(output.read().split())
            time.sleep(0.002)
        return self.status

    def judge(self, kind: str) -> list[str]:
        """Faults of how it ended."""
        status = self.wait()
        self.end()
        if status is None:
            return ["it hangs"]
        expected = {"kill": {-signal.SIGKILL}, "term": {-signal.SIGTERM}}.get(kind, set())
        if status in {0, 2, 130, *expected}:
            return []
        return [f"exit status {status}: {without_folders(self.text)[-300:]}"]

    def end(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def drop_capabilities() -> None:
    """Let read-only folders be read-only for root too."""
    version, process = 0x20080522, 0
    if ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version, process), (ctypes.c_uint32 * 6)()):
        raise OSError("capset fails")


def watch(folder: Path, fault: Fault) -> list[int]:
    """Count the file operations of this process from now on; the fault strikes before its own."""
    count, inside = [0], str(folder)

    def hook(event: str, args: tuple) -> None:
        if event in OPERATIONS or (event == "open" and inside in str(args[0])):
            count[0] += 1
            if count[0] == fault.at:
                fault.strike(os.getpid(), folder)

    sys.addaudithook(hook)
    return count


def run(words: list[str]) -> int:
    if words[0] != "save_model":
        return command(words)
    try:
        repmlp.save_model(repmlp.load_model(words[1]), words[2], overwrite=True)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print("error:", error)
        return 2
    return 0
