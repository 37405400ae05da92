"""``wds/PATH``: WebDataset shards, tar files of ``KEY.jpg`` and ``KEY.cls``, read by index.

The usual reader of such shards streams them: it shuffles within a buffer, cannot go on in the middle,
and gives each process whole shards, so that some images come twice or not at all where shards and
processes do not divide. A tar file is not compressed, though: once it is known where in it each image
lies, any image is one read away, like a file in a folder. So these are map-style as all data sets here:
an exact shuffle, an exact place to go on from, every image once over any number of processes. The
price: shards must lie on a disk, not behind a URL.
"""

import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torchvision.datasets.folder import IMG_EXTENSIONS

from .cache import remembered
from .images import EncodedImages
from .splits import HELD_OUT, Splits, class_names_of

#: Beside the shards, written by this module: where in them the images lie.
INDEX = "repmlp-index.json"
#: Beside the shards, if their maker wrote it: what they are, in timm's terms; and the class names, one a line.
INFO = ("_info.json", "info.json", "_info.yaml", "info.yaml")
CLASS_NAMES = ("classes.txt", "classnames.txt")


@dataclass(frozen=True)
class Split:
    """The shards of one split.

    Attributes:
        shards: paths, relative to their folder.
        lengths: number of images that each should hold, if that is stated.
        label_key: if given, the label is this field of KEY.json, and an image with a negative one is left out.
    """

    shards: Sequence[str]
    lengths: Sequence[int] = ()
    label_key: str = ""


class ShardImages(EncodedImages):
    """Images in tar files. A file is opened for each read: a thousand are too many to keep open in each worker.

    Args:
        folder: that holds the shards.
        shards: paths, relative to it.
        index: for each of them (member, offset, size, label) of each image, as :func:`index_shard` gives it.
    """

    def __init__(self, folder: Path, shards: Sequence[str], index: dict[str, list[list[Any]]]) -> None:
        rows = [(number, *row) for number, shard in enumerate(shards) for row in index[shard]]
        self.folder, self.shards = folder, list(shards)
        # Arrays, not lists of a million strings: workers share their memory, and a copy takes no time.
        self.members = np.array([os.fsencode(member) for _, member, _, _, _ in rows])
        self.places = np.array([(number, offset, size) for number, _, offset, size, _ in rows])
        self.labels = np.array([label for *_, label in rows])

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return f"{self.folder / self.shards[self.places[i][0]]}/{os.fsdecode(bytes(self.members[i]))}"

    def encoded(self, i: int) -> tuple[bytes, int]:
        shard, offset, size = self.places[i].tolist()
        with (self.folder / self.shards[shard]).open("rb") as file:
            file.seek(offset)
            return file.read(size), int(self.labels[i])

    def fingerprint(self, times: bool = True) -> str:
        """That of the shards."""
        states = [(shard, *_state(self.folder / shard)[: 1 + times]) for shard in self.shards]
        return sha256(json.dumps([states, len(self)]).encode()).hexdigest()


def open_shards(folder: Path) -> Splits:
    """Find shards, and where in them the images lie.

    Which shards are which is stated by ``splits`` in an info file, or else by the word train, val,
    validation or test in their names or sub-folders. The class names are ``class_names`` in the info
    file, or else the lines of classes.txt, or else the numbers. The places of the images are kept in
    INDEX, if that can be written, for each shard until its size or time of change is another.

    Raises:
        FileNotFoundError: if there is no such folder, or no shard for one of the two.
        ValueError: for a shard that is cut off, an image without a label, or labels without a class.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: wds/PATH needs one that holds .tar files")
    info = _info(folder)
    splits = _stated_splits(folder, info["splits"]) if "splits" in info else _named_splits(folder)
    label_keys = {shard: split.label_key for split in splits for shard in split.shards}
    index = remembered(
        folder / INDEX,
        {shard: [*_state(folder / shard), label_key] for shard, label_key in label_keys.items()},
        lambda shard: index_shard(folder / shard, label_keys[shard]),
    )
    for split in splits:
        _check_lengths(folder, split, index)
    train, test = (ShardImages(folder, split.shards, index) for split in splits)
    names = info.get("class_names") or _listed_names(folder)
    return Splits(train, test, class_names_of(str(folder), train.labels, test.labels, names), folder)


def index_shard(path: Path, label_key: str = "") -> list[list[Any]]:
    """[member, offset, size, label] of each image in a tar file, in bytes.

    Files whose paths are the same up to the first dot of their names belong together. The label is the
    number in KEY.cls, or else ``label`` in KEY.json.

    Args:
        label_key: if given, the label is this field of KEY.json, and an image with a negative one is left out.

    Raises:
        ValueError: for a tar file that is cut off, and for an image or a label without the other.
    """
    images: dict[str, dict[str, tarfile.TarInfo]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in filter(tarfile.TarInfo.isreg, tar):
                key, extension = _split_name(member.name)
                if extension in IMG_EXTENSIONS:
                    if extension in images.setdefault(key, {}):
                        raise ValueError(f"{path} holds {member.name} twice: write it again with one of them")
                    images[key][extension] = member
                elif (extension == ".cls" and not label_key) or (extension == ".json" and key not in labels):
                    file: Any = tar.extractfile(member)
                    label = _label(file.read(), extension, label_key, f"{path}/{member.name}")
                    if label is not None:
                        labels[key] = label
            _check_end(path, tar.offset)
    except tarfile.ReadError as error:
        raise ValueError(f"{path} is cut off, or no tar file ({error}): download or write it again") from error
    _check_pairs(path, images, labels, label_key)
    best = {key: min(files, key=IMG_EXTENSIONS.index) for key, files in images.items()}  # of KEY.jpg and KEY.png
    chosen = [(images[key][extension], labels[key]) for key, extension in best.items()]
    return [
        [image.name, image.offset_data, image.size, label] for image, label in chosen if label >= 0 or not label_key
    ]


def _check_pairs(path: Path, images: dict[str, Any], labels: dict[str, int], label_key: str) -> None:
    label_file = f"KEY.json with {label_key}" if label_key else "KEY.cls, or KEY.json with label"
    image_file = f"KEY with {', '.join(IMG_EXTENSIONS)}"
    for keys, others, what in ((list(images), set(labels), label_file), (list(labels), set(images), image_file)):
        if lone := [key for key in keys if key not in others]:
            raise ValueError(f"{path} lacks {what} for {len(lone)} keys: {', '.join(lone[:5])}")


def _split_name(member: str) -> tuple[str, str]:
    """Key and extension: what comes before the first dot of the file's name, and the rest in lower case."""
    folder, slash, file = member.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{extension}".lower()


def _label(encoded: bytes, extension: str, label_key: str, where: str) -> int | None:
    try:
        value = json.loads(encoded).get(label_key or "label") if extension == ".json" else encoded
        return None if value is None else int(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} holds {encoded[:80]!r}: wanted the index of a class") from error


def _check_end(path: Path, offset: int) -> None:
    """Where tarfile stops without an error there may be more: a tar file ends with a block of zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"no end mark at byte {offset}")


def _state(file: Path) -> tuple[int, int]:
    """Size and time of change."""
    state = file.stat()
    return state.st_size, state.st_mtime_ns


def _info(folder: Path) -> dict[str, Any]:
    """What the info file states; nothing if there is none."""
    file = next((folder / name for name in INFO if (folder / name).is_file()), None)
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8")
    try:
        info = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read ({error}): correct it, or remove it") from error
    if not isinstance(info, dict):
        raise ValueError(f"{file} holds no fields: wanted splits, class_names or both; correct it, or remove it")
    return info


def _stated_splits(folder: Path, stated: dict[str, Any]) -> tuple[Split, Split]:
    held_out = next((name for name in HELD_OUT if name in stated), None)
    if "train" not in stated or held_out is None:
        raise ValueError(
            f"the info file in {folder} states the splits {', '.join(stated)}: "
            f"it needs train, and {' or '.join(HELD_OUT)}"
        )
    train, test = (
        Split(split.get("filenames", ()), split.get("shard_lengths", ()), split.get("alt_label", ""))
        for split in (stated["train"], stated[held_out])
    )
    missing = [shard for shard in (*train.shards, *test.shards) if not (folder / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} shards that the info file states are not in {folder}: {', '.join(missing[:5])}"
        )
    return train, test


def _named_splits(folder: Path) -> tuple[Split, Split]:
    """By the last word in a path that is the name of a split; shards with none are not used."""
    kinds = {"train", *HELD_OUT}
    by_kind: dict[str, list[str]] = {kind: [] for kind in kinds}
    shards = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tar"))
    for shard in shards:
        words = [word for word in re.split("[^a-z]+", shard.lower()) if word in kinds]
        if words:
            by_kind[words[-1]].append(shard)
    train, test = by_kind["train"], next((by_kind[kind] for kind in HELD_OUT if by_kind[kind]), [])
    for found, names in ((train, ("train",)), (test, HELD_OUT)):
        if not found:
            raise FileNotFoundError(
                f"of {len(shards)} .tar files in {folder} none has the word {' or '.join(names)} in its name: "
                f"name them {names[0]}-000000.tar and so on"
            )
    return Split(train), Split(test)


def _check_lengths(folder: Path, split: Split, index: dict[str, list[list[Any]]]) -> None:
    if not any(index[shard] for shard in split.shards):
        raise ValueError(f"there are no images in the shards {', '.join(split.shards)} of {folder}")
    if split.lengths and not split.label_key:
        for shard, stated in zip(split.shards, split.lengths, strict=False):
            if len(index[shard]) != stated:
                raise ValueError(
                    f"{folder / shard} holds {len(index[shard])} images, the info file states {stated}: "
                    f"download or write it again, or correct the info file"
                )


def _listed_names(folder: Path) -> list[str] | None:
    file = next((folder / name for name in CLASS_NAMES if (folder / name).is_file()), None)
    if file is None:
        return None
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
