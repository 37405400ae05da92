"""``folder:PATH``: images in PATH/train, PATH/val and PATH/test, one subfolder per class."""

import os
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..messages import shorten
from .decoding import EXTENSIONS, read_file
from .images import EncodedImages
from .splits import TEST_SPLIT_NAMES, VAL_SPLIT_NAMES, Splits, choose_splits


class FileImages(EncodedImages):
    """Image files in a folder.

    Args:
        folder: that holds all of them.
        samples: (path, class index) of each.
    """

    def __init__(self, folder: Path, samples: Sequence[tuple[str, int]]) -> None:
        super().__init__(np.array([label for _, label in samples]))
        prefix = os.path.join(folder, "")
        self.folder = folder
        # Arrays, not lists of a million strings: workers share their memory, and a copy takes no time.
        self.names = np.array([os.fsencode(path.removeprefix(prefix)) for path, _ in samples])

    def name(self, i: int) -> str:
        return os.path.join(self.folder, os.fsdecode(bytes(self.names[i])))

    def encoded(self, i: int) -> bytes:
        return read_file(self.name(i))

    def fingerprint(self, times: bool = True) -> str:
        digest = sha256()
        for i, name in enumerate(self.names.tolist()):
            digest.update(b"%s\0%s\0" % (name, file_state(self.name(i), times)))
        return digest.hexdigest()


def file_state(path: str | Path, times: bool) -> bytes:
    """Size of a file, and with ``times`` its time of change; nothing if it is not there."""
    try:
        state = os.stat(path)
    except OSError:
        return b""
    return b"%d %d" % (state.st_size, state.st_mtime_ns if times else 0)


def open_folder(path: Path) -> Splits:
    """Find the images of each split.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it or in one of its classes.
        ValueError: if the splits have different classes.
    """
    kinds = ("train", *VAL_SPLIT_NAMES, *TEST_SPLIT_NAMES)
    found = [name for name in kinds if (path / name).is_dir()]
    others = [name for name in _sub_folders(path) if name not in kinds]
    if "train" not in found or len(found) < 2:
        missing = path / ("train" if "train" not in found else VAL_SPLIT_NAMES[0])
        raise FileNotFoundError(
            f"there is no folder {missing}: folder:PATH needs PATH/train and PATH/val (or PATH/test, or both), "
            f"each with one subfolder per class" + (f"; PATH holds {shorten(others)}" if others else "")
        )
    chosen = choose_splits(found, str(path))
    ignored: Counter[str] = Counter()
    scans = {kind: _scan(path / name, ignored) for kind, name in chosen.items()}
    classes = scans["train"][1]
    for kind, (samples, names) in scans.items():
        folder = path / chosen[kind]
        if names != classes:
            only = {path / "train": set(classes) - set(names), folder: set(names) - set(classes)}
            where = "; ".join(f"{', '.join(sorted(names))} only in {split}" for split, names in only.items() if names)
            raise ValueError(f"the classes of {path / 'train'} and {folder} differ: {where}")
        filled = {label for _, label in samples}
        if empty := [name for label, name in enumerate(names) if label not in filled]:
            raise FileNotFoundError(
                f"no image in {', '.join(str(folder / name) for name in empty)}: add some, or remove the class "
                f"from all splits (image files are {', '.join(EXTENSIONS)})"
            )
    left_out = [f"{what}: {count}" for what, count in sorted(ignored.items()) if count]
    twin = chosen.get("val") or chosen["test"]
    left_out += [f"the folder {name}, since there is {twin}" for name in found if name not in chosen.values()]
    if unread := [name for name in others if _sub_folders(path / name)]:
        left_out.append(
            f"the folder{'s' if len(unread) > 1 else ''} {shorten(unread)}, since only {', '.join(kinds)} are read"
        )
    data = {kind: FileImages(path, samples) for kind, (samples, _) in scans.items()}
    return Splits(data["train"], data.get("val"), data["test"], tuple(classes), path, tuple(left_out))


def _sub_folders(path: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones; none if it does not exist or cannot be read."""
    _, names, _ = next(os.walk(path), ("", [], []))
    return sorted(name for name in names if not _is_hidden(name))


def _scan(folder: Path, ignored: Counter[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """(path, class index) of all images, in the order of their names, and the class names. Counts what it ignores."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    classes = [entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name)]
    if not classes:
        raise FileNotFoundError(f"{folder} has no subfolders: put the images of each class into one of its own")
    for entry in entries:
        if _is_hidden(entry.name):
            ignored["hidden files and folders"] += 1
        elif not entry.is_dir():
            ignored["files outside of the class folders"] += 1
    samples = []
    for label, name in enumerate(classes):
        for root, folders, files in sorted(os.walk(folder / name, followlinks=True)):
            if any(map(_is_hidden, Path(root).relative_to(folder).parts)):
                continue
            ignored["hidden files and folders"] += sum(map(_is_hidden, (*folders, *files)))
            for file in sorted(files):
                suffix = os.path.splitext(file)[1].lower()
                if _is_hidden(file):
                    continue
                if suffix in EXTENSIONS:
                    samples.append((os.path.join(root, file), label))
                else:
                    ignored[f"files that end in {suffix}" if suffix else "files without a suffix"] += 1
    return samples, classes


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
