"""Write files and folders whole or not at all, replace only what is ours, and let one process write at a time.

Whatever these functions leave next to a file or folder starts with ``.repmlp-``, the name of which it says:

    .repmlp-partial-XXXX     what a killed process had written so far; delete it
    .repmlp-replaced-NAME    the folder NAME that was being replaced; deleted when its replacement is in place
    .repmlp-lock-NAME        lets one process at a time write NAME; stays, and means nothing by itself
"""

import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

OURS = ".repmlp-"
PARTIAL, REPLACED, LOCK = f"{OURS}partial-", f"{OURS}replaced-", f"{OURS}lock-"
README = "README.md"  # replacing a folder keeps it, unless it is sealed: made by a command, and not edited since
SEAL = "\n<!-- repmlp "
MAX_NAME = 255 - len(REPLACED)  # bytes; common file systems allow 255


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to. When the block ends, that file replaces ``path``; if it raises, nothing changes.

    The yielded path has the same name, in a temporary folder next to ``path``. Other files written to that folder
    move along, before the file itself: the .bin of an OpenVINO .xml is there when the .xml is.

    Raises:
        OSError: if the file cannot be written, for example because the disk is full. It says what is kept.
    """
    path = _resolve(path)
    _ensure_not_special(path)
    with _scratch_folder(path) as scratch:
        yield scratch / path.name
        parts = sorted(scratch.iterdir(), key=lambda part: part.name == path.name)
        _flush(parts)
        for part in parts:
            part.replace(path.with_name(part.name))
        _flush([path.parent])


def atomic_write(path: str | Path, text: str) -> None:
    """Replace a text file, in UTF-8, as :func:`atomic_file` does."""
    with atomic_file(path) as new:
        new.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | Path, ours: Iterable[str] | None = None) -> Iterator[Path]:
    """Yield an empty folder to write into. When the block ends, it replaces ``folder``.

    What is not ``ours``, and a README.md that is not sealed, is copied to the new folder. By default everything is
    ours.

    The old folder is renamed aside, the new one is renamed into place, then the old one is deleted. If the process is
    killed between the renames, :func:`ensure_folder` and :func:`ensure_can_write` report the folder set aside; a caller
    that does not ask them replaces that one. If the block raises, nothing changes.

    Raises:
        OSError: if the folder cannot be written, for example because the disk is full. It says what is kept.
    """
    folder = _resolve(folder)
    aside = folder.with_name(f"{REPLACED}{folder.name}")
    with _scratch_folder(folder) as scratch:
        if found := set_aside(folder):
            found.rename(folder)
        new = scratch / folder.name
        new.mkdir()
        yield new
        _carry_over(folder, new, ours)
        _flush([*(path for path in new.rglob("*") if not path.is_symlink()), new])
        rmtree_if_exists(aside)  # left by a process killed after its folder was in place
        try:
            if folder.exists():
                folder.rename(aside)
            new.rename(folder)
            _flush([folder.parent])
        finally:  # after an error or Ctrl-C, too
            if not folder.exists() and aside.exists():
                aside.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)  # the new folder is in place: what cannot be deleted is litter


def ensure_can_write(path: str | Path, ours: Iterable[str] | None = None, overwrite: bool = False) -> None:
    """Raise unless ``path`` can be written, before any work is done for it. A link means what it points to.

    Args:
        path: a file, or a folder if ``ours`` is given.
        ours: names that the caller writes into the folder, relative to it, as :mod:`fnmatch` patterns, in which no
            wildcard matches a ``/``. Only a folder that holds nothing else is replaced. A README.md is kept unless it
            is sealed.
        overwrite: whether what exists may be replaced.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is False, or holds something that is not ours, or
            an interrupted command set it aside.
        OSError: if its parent folder cannot be written to, or is a file.
        ValueError: if its name is too long.
    """
    path = _resolve(path)
    if not path.name:
        raise FileExistsError(f"{path} is the root of the file system: choose a name in a folder")
    if len(os.fsencode(path.name)) > MAX_NAME:
        raise ValueError(f"the name {path.name[:20]}... is longer than {MAX_NAME} bytes: choose a shorter one")
    if found := set_aside(path):
        raise FileExistsError(
            f"a command that was interrupted while it replaced {path} set the old one aside as {found}: "
            f"rename that back to keep it, or delete it"
        )
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link to itself: delete it, or choose another name")
    if path.exists():
        _ensure_can_replace(path, ours, overwrite)
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {parent} is not a folder")
    try:
        with _temporary_folder(parent) as probe:
            (probe / path.name).write_bytes(b"x")
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror} ({parent})") from error


def _ensure_can_replace(path: Path, ours: Iterable[str] | None, overwrite: bool) -> None:
    _ensure_not_special(path)
    if ours is None and path.is_dir():
        raise FileExistsError(f"{path} is a folder: choose another name for the file")
    if ours is not None and not path.is_dir():
        raise FileExistsError(f"{path} is not a folder: choose another name for the folder")
    if ours is not None and os.path.ismount(path):
        raise FileExistsError(f"{path} is a mount point, which cannot be replaced: choose a folder inside it")
    if ours is not None and not any(path.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or pass overwrite=True to replace it")
    if names := foreign_names(path, ours) if ours is not None else ():
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise FileExistsError(
            f"{path} is not replaced, since it holds what was not written there by this package: {listed}. "
            f"Move it elsewhere, or choose another folder"
        )


def foreign_names(folder: Path, ours: Iterable[str]) -> list[str]:
    """Names of what is not ``ours`` in ``folder``: files, links and, with a ``/`` at the end, empty folders."""
    patterns = [*ours, README]
    names = []
    for root, subfolders, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        links = [name for name in subfolders if (Path(root) / name).is_symlink()]
        names += [(here / name).as_posix() for name in (*files, *links)]
        if not subfolders and not files and here.parts:
            names.append(f"{here.as_posix()}/")
    return sorted(
        name
        for name in names
        if not any(part.startswith(OURS) for part in Path(name).parts)
        and not any(_matches(name, pattern) for pattern in patterns)
        and not (Path(name).name == README and is_sealed(folder / name))
    )


def _matches(name: str, pattern: str) -> bool:
    """:func:`fnmatch.fnmatchcase` part by part, so that no wildcard matches a ``/``."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def seal(text: str) -> str:
    """Add a last line that shows that nobody has edited the text since: see :func:`is_sealed`."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text}{SEAL}{digest[:16]}: a command may replace this file as long as nobody edits it -->\n"


def is_sealed(file: Path) -> bool:
    """Whether a command wrote a text file, by :func:`seal`, and nobody has edited it. A link never is."""
    try:
        text = "" if file.is_symlink() else file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return SEAL in text and seal(text.rpartition(SEAL)[0]) == text


def _carry_over(folder: Path, new: Path, ours: Iterable[str] | None) -> None:
    """Copy what is not ours from a folder, if there is one, to its replacement."""
    foreign = [] if ours is None else foreign_names(folder, ours)
    readme = [README] if os.path.lexists(folder / README) and not is_sealed(folder / README) else []
    for name in [*foreign, *readme]:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (new / name).mkdir(exist_ok=True)
        elif not os.path.lexists(new / name):
            shutil.copy2(folder / name, new / name, follow_symlinks=False)


def ensure_folder(folder: str | Path, kind: str) -> None:
    """Raise FileNotFoundError if there is no such folder, naming the one that an interrupted command set aside."""
    if Path(folder).is_dir():
        return
    found = set_aside(_resolve(folder))
    raise FileNotFoundError(
        f"there is no {kind} {folder}"
        + (f", but a command that was interrupted set it aside as {found}: rename that back" if found else "")
    )


def is_json_with(file: Path, *keys: str) -> bool:
    """Whether a file holds a JSON object with these keys, as one that a command wrote earlier does."""
    try:
        values = json.loads("" if is_special(file) else file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.keys() >= set(keys)


def set_aside(folder: Path) -> Path | None:
    """Where an interrupted :func:`atomic_folder` left the old ``folder``, if there is no ``folder`` now."""
    aside = folder.with_name(f"{REPLACED}{folder.name}")
    return aside if not folder.exists() and len(os.fsencode(aside.name)) <= 255 and aside.is_dir() else None


def ensure_regular(path: str | Path) -> None:
    """Raise ValueError if ``path`` is a named pipe, a socket or a device: opening it could wait forever."""
    if is_special(path):
        raise ValueError(f"{path} is not a regular file but a named pipe, a socket or a device: remove it")


def is_special(path: str | Path) -> bool:
    """Whether there is something at ``path`` that is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _ensure_not_special(path: Path) -> None:
    if is_special(path):
        raise FileExistsError(f"{path} is a named pipe, a socket or a device, which is not replaced: choose a file")


def rmtree_if_exists(folder: Path) -> None:
    """Delete a folder and all that is in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def claim(path: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Be the only process that writes ``path`` until the block ends, or the process does, however it ends.

    Within a thread, claims of the same path nest.

    Args:
        path: file or folder; it need not exist.
        wait: seconds to wait for another process; -1 for as long as it takes.

    Raises:
        BlockingIOError: if another process has it; names that process.
        OSError: if its folder cannot be written to.
    """
    path = _resolve(path)
    file = _lock_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, is_singleton=True)  # so that a process may claim what it has already
        lock.acquire(timeout=wait)
    except Timeout:
        if not file.exists():
            raise PermissionError(f"{path} cannot be written: {path.parent} takes no files") from None
        holder = "another process"
        with suppress(OSError, UnicodeDecodeError):
            holder = file.read_text() or holder
        raise BlockingIOError(f"{path} is being written by {holder}: wait for it, or choose another name") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error}") from error
    try:
        with suppress(OSError):  # for the message above only; Windows does not let a locked file be written
            file.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        lock.release()


@contextmanager
def claim_to_write(
    path: str | Path, ours: Iterable[str] | None = None, overwrite: bool = False, owner: Path | None = None
) -> Iterator[None]:
    """Claim what may be written: :func:`ensure_can_write`, then :func:`claim`.

    Args:
        path, ours, overwrite: see :func:`ensure_can_write`.
        owner: what to claim instead of ``path``, if another path stands for it.
    """
    ensure_can_write(path, ours, overwrite)
    with claim(path if owner is None else owner):
        ensure_can_write(path, ours, overwrite)  # another process may have just written it
        yield


def is_claimed(path: str | Path) -> bool:
    """Whether another process claims ``path`` now."""
    file = _lock_file(_resolve(path))
    if not file.exists():
        return False
    try:
        with FileLock(file, is_singleton=True).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # in the folder of another user, where no process of this one writes
        return False


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{LOCK}{path.name}")


def _resolve(path: str | Path) -> Path:
    """The absolute path without links: a link to a folder stays, and what it points to is replaced."""
    return Path(os.path.realpath(path))


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that is deleted when the block ends, as far as that is permitted, and also if Ctrl-C comes meanwhile."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=PARTIAL))
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to ``path``, on the same file system; errors of writing say what became of ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(path.parent) as folder:
            yield folder
    except (OSError, SafetensorError, RuntimeError) as error:
        reason: object = error
        if isinstance(error, RuntimeError):
            if "inline_container" not in str(error):
                raise
            reason = "PyTorch could not write all of it: is the disk full?"  # all it says is "unexpected pos"
        kept = "what was there is kept" if os.path.lexists(path) else "nothing is left of it"
        if found := set_aside(path):  # the folder became read-only at the worst moment
            kept = f"what was there is now {found}: rename that back"
        raise OSError(f"{path} could not be written ({reason}); {kept}") from error


def _flush(paths: Iterable[Path]) -> None:
    """Have the operating system write files and folders to disk."""
    if os.name == "nt":  # it cannot flush what is opened for reading, nor folders
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
