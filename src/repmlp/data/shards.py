"""``wds/PATH``: WebDataset shards, tar files of ``KEY.jpg`` and ``KEY.cls``, read by index.

The usual reader streams shards: it shuffles within a buffer, cannot resume mid-epoch, and assigns whole shards to
processes, so some images come twice or not at all if the shards do not divide evenly. But a tar file is not compressed:
once the offset of each image is known, any image takes one read, like a file in a folder. So these data sets are
map-style like all others here, with an exact shuffle, an exact position to resume from, and every image once over any
number of processes. The price: shards must be on a disk, not behind a URL.
"""

import json
import os
import tarfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..files import ensure_regular
from ..messages import shorten
from .cache import get_or_compute
from .decoding import EXTENSIONS, MAX_FILE_SIZE
from .images import EncodedImages
from .shard_splits import Split, read_splits
from .splits import MAX_CLASSES, Splits, class_names_of

#: File next to the shards with the offset, size and label of each image, written by this module.
INDEX = "repmlp-index.json"
#: Maximum size of a label file, in bytes.
MAX_LABEL_SIZE = 2**20

#: Of a shard, for each image: see :func:`index_shard`; as in the cache file.
Samples = list[list[Any]]


class ShardImages(EncodedImages):
    """Images in tar files. Each read opens its file: a thousand files are too many to keep open in each worker.

    Args:
        folder: of the shards.
        shards: paths relative to ``folder``.
        index: (member, offset, size, label) of each image by shard, as returned by :func:`index_shard`.
    """

    def __init__(self, folder: Path, shards: Sequence[str], index: dict[str, Samples]) -> None:
        rows = [(number, *row) for number, shard in enumerate(shards) for row in index[shard]]
        super().__init__(np.array([label for *_, label in rows]))
        self.folder, self.shards = folder, list(shards)
        # Arrays, not lists of a million strings: workers share the memory, and copying is cheap.
        self.members = np.array([os.fsencode(member) for _, member, _, _, _ in rows])
        self.offsets = np.array([(number, offset, size) for number, _, offset, size, _ in rows])

    def name(self, i: int) -> str:
        return f"{self.folder / self.shards[self.offsets[i][0]]}/{os.fsdecode(bytes(self.members[i]))}"

    def encoded(self, i: int) -> bytes:
        shard, offset, size = self.offsets[i].tolist()
        with (self.folder / self.shards[shard]).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def fingerprint(self, times: bool = True) -> str:
        """The fingerprint of the shards."""
        states = [(shard, *_state(self.folder / shard)[: 1 + times]) for shard in self.shards]
        return sha256(json.dumps([states, len(self)]).encode()).hexdigest()


def open_shards(folder: Path) -> Splits:
    """Find the shards in a folder, and the positions of the images in them.

    The splits are ``splits`` of an info file, or come from the words train, val, validation and test in the names of
    shards or subfolders. The class names are ``class_names`` of the info file, the lines of classes.txt, or numbers.
    The offsets of the images are kept in INDEX, if it can be written, and reused for a shard until its size or
    modification time changes.

    Raises:
        FileNotFoundError: if there is no such folder, or a split has no shards.
        ValueError: if a shard is truncated, an image has no label, or a label has no class.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: wds/PATH needs one that holds .tar files")
    splits, names, ignored = read_splits(folder)
    label_keys = {shard: split.label_key for split in splits.values() for shard in split.shards}
    index = get_or_compute(
        folder / INDEX,
        {shard: [*_state(folder / shard), label_key] for shard, label_key in label_keys.items()},
        lambda shard: index_shard(folder / shard, label_keys[shard]),
    )
    for split in splits.values():
        _check_lengths(folder, split, index)
    data = {kind: ShardImages(folder, split.shards, index) for kind, split in splits.items()}
    class_names = class_names_of(str(folder), [part.labels for part in data.values()], names)
    return Splits(data["train"], data.get("val"), data["test"], class_names, folder, ignored)


def index_shard(path: Path, label_key: str = "") -> Samples:
    """[member, offset, size, label] of each image in a tar file, in bytes.

    Files with the same path up to the first dot of their names belong together. The label is the number in KEY.cls, or
    else ``label`` in KEY.json.

    Args:
        label_key: if given, the label is this field of KEY.json, and images with a negative label are left out.

    Raises:
        ValueError: if the tar file is truncated, or a named pipe, socket or device; an image has no label or a label
            no image; a file is too large or sparse; or a label is not a class index.
    """
    ensure_regular(path)
    images: dict[str, dict[str, tarfile.TarInfo]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in filter(tarfile.TarInfo.isreg, tar):
                key, extension = _split_name(member.name)
                if extension in EXTENSIONS:
                    _check_member(path, member, MAX_FILE_SIZE)
                    if extension in images.setdefault(key, {}):
                        raise ValueError(f"{path} holds {member.name} twice: write it again with one of them")
                    images[key][extension] = member
                elif (extension == ".cls" and not label_key) or (extension == ".json" and key not in labels):
                    _check_member(path, member, MAX_LABEL_SIZE)
                    file: Any = tar.extractfile(member)
                    label = _label(file.read(), extension, label_key, f"{path}/{member.name}")
                    if label is not None:
                        labels[key] = label
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError, OverflowError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk or network error
            raise
        raise ValueError(f"{path} is cut off, or not a tar file ({error}): download or write it again") from error
    _check_pairs(path, images, labels, label_key)
    best = {key: min(files, key=EXTENSIONS.index) for key, files in images.items()}  # prefers KEY.jpg to KEY.png
    chosen = [(images[key][extension], labels[key]) for key, extension in best.items()]
    return [
        [image.name, image.offset_data, image.size, label] for image, label in chosen if label >= 0 or not label_key
    ]


def _check_member(path: Path, member: tarfile.TarInfo, most: int) -> None:
    if member.issparse():
        raise ValueError(f"{path}/{member.name} is stored as a sparse file: write the shard again without them")
    if member.size > most:
        raise ValueError(f"{path}/{member.name} has {member.size} bytes, more than the {most} allowed: leave it out")


def _check_pairs(path: Path, images: dict[str, Any], labels: dict[str, int], label_key: str) -> None:
    label_file = f"KEY.json with {label_key}" if label_key else "KEY.cls, or KEY.json with label"
    image_file = f"KEY with {', '.join(EXTENSIONS)}"
    for keys, others, what in ((list(images), set(labels), label_file), (list(labels), set(images), image_file)):
        if lone := [key for key in keys if key not in others]:
            raise ValueError(f"{path} lacks {what} for {len(lone)} keys: {shorten(lone)}")


def _split_name(member: str) -> tuple[str, str]:
    """Key and extension: the path up to the first dot of the file name, and the rest in lower case."""
    folder, slash, file = member.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{extension}".lower()


def _label(encoded: bytes, extension: str, label_key: str, where: str) -> int | None:
    """A class index below MAX_CLASSES, possibly negative with ``label_key``; None if there is no label."""
    try:
        value = json.loads(encoded).get(label_key or "label") if extension == ".json" else encoded.decode().strip()
        if value is None:
            return None
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise TypeError(value)
        if isinstance(value, str) and "_" in value:  # int would read 1_0 as 10
            raise ValueError(value)
        label = int(value)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where} holds {encoded[:80]!r}: it needs the index of a class") from error
    if label >= MAX_CLASSES or (label < 0 and not label_key):
        raise ValueError(f"{where} has the label {label}: labels are class indices, from 0 to {MAX_CLASSES - 1}")
    return label


def _check_end(path: Path, offset: int) -> None:
    """Raise unless the tar file ends with a block of zeros: tarfile accepts some damaged files without an error."""
    with path.open("rb") as file:
        file.seek(offset)
        end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"no end mark at byte {offset}")


def _state(file: Path) -> tuple[int, int]:
    """Size and modification time."""
    state = file.stat()
    return state.st_size, state.st_mtime_ns


def _check_lengths(folder: Path, split: Split, index: dict[str, Samples]) -> None:
    if not any(index[shard] for shard in split.shards):
        raise ValueError(f"there are no images in the shards {', '.join(split.shards)} of {folder}")
    if split.lengths and not split.label_key:
        for shard, stated in zip(split.shards, split.lengths, strict=False):
            if len(index[shard]) != stated:
                raise ValueError(
                    f"{folder / shard} holds {len(index[shard])} images, the info file states {stated}: "
                    f"download or write it again, or correct the info file"
                )
