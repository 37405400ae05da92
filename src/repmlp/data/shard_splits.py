"""Which WebDataset shards in a folder are of which split, and the class names: from an info file, or from names."""

import json
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ..messages import shorten
from .splits import TEST_SPLIT_NAMES, VAL_SPLIT_NAMES, choose_splits

#: Next to the shards, if their maker wrote it: what they are, in timm's terms; and the class names, one per line.
INFO = ("_info.json", "info.json", "_info.yaml", "info.yaml")
CLASS_NAMES = ("classes.txt", "classnames.txt")
#: Bytes of such a file, at most.
MAX_INFO_SIZE = 2**24


@dataclass(frozen=True)
class Split:
    """The shards of one split.

    Attributes:
        shards: paths, relative to their folder.
        lengths: the number of images in each, if the info file has it.
        label_key: if given, the label is this field of KEY.json, and an image with a negative one is left out.
    """

    shards: Sequence[str]
    lengths: Sequence[int] = ()
    label_key: str = ""


def read_splits(folder: Path) -> tuple[dict[str, Split], Sequence[str] | None, tuple[str, ...]]:
    """The splits by kind (train, val, test), the class names if they are known, and what is ignored.

    Raises:
        FileNotFoundError: if shards are missing.
        ValueError: if a file that describes them cannot be read or is wrong.
    """
    info = _read_info(folder)
    splits, ignored = _stated_splits(folder, info) if "splits" in info else _named_splits(folder)
    return splits, info.get("class_names") or _listed_names(folder), ignored


def _read_info(folder: Path) -> dict[str, Any]:
    """The fields of the info file; none if there is no such file."""
    file = next((folder / name for name in INFO if (folder / name).is_file()), None)
    if file is None:
        return {}
    try:
        text = _read_text(file)
        info = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read ({error}): correct it, or remove it") from error
    if not isinstance(info, dict):
        raise ValueError(f"{file} has no fields: it needs splits, class_names or both; correct it, or remove it")
    _check_info(file, info)
    return info


def _read_text(file: Path) -> str:
    if file.stat().st_size > MAX_INFO_SIZE:
        raise ValueError(f"{file} is larger than {MAX_INFO_SIZE // 2**20} MiB")
    return file.read_text(encoding="utf-8")


def _check_info(file: Path, info: dict[str, Any]) -> None:
    """Raise ValueError, naming the field, unless every field that is used has the type that timm gives it."""

    def check(field: str, value: Any, kind: Any, of: type | None = None) -> None:
        if not isinstance(value, kind) or (of and not all(type(item) is of for item in value)):
            wanted = f"{kind.__name__}{f' of {of.__name__}' if of else ''}"
            shown = value if isinstance(value, str) else reprlib.repr(value)  # YAML can nest without end
            raise ValueError(f"{file} has the {field} {shown:.80}: it needs a {wanted}")

    check("class_names", info.get("class_names") or [], list, str)
    check("splits", info.get("splits", {}), dict, str)
    for name, split in info.get("splits", {}).items():
        check(f"split {name}", split, dict)
        check(f"filenames of {name}", split.get("filenames", []), list, str)
        check(f"shard_lengths of {name}", split.get("shard_lengths", []), list, int)
        check(f"alt_label of {name}", split.get("alt_label", ""), str)
        for shard in split.get("filenames", []):
            if any(_leaves_folder(path) for path in (PurePosixPath(shard), PureWindowsPath(shard))):
                raise ValueError(f"{file} has the shard {shard}, which is outside of its folder: move it inside")


def _leaves_folder(path: PurePosixPath | PureWindowsPath) -> bool:
    return bool(path.anchor) or ".." in path.parts


def _stated_splits(folder: Path, info: dict[str, Any]) -> tuple[dict[str, Split], tuple[str, ...]]:
    stated = info["splits"]
    chosen = choose_splits(list(stated), f"the info file in {folder}")
    splits = {}
    for kind, name in chosen.items():
        about = stated[name]
        splits[kind] = Split(about.get("filenames", ()), about.get("shard_lengths", ()), about.get("alt_label", ""))
    missing = [shard for split in splits.values() for shard in split.shards if not (folder / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} shards of the info file are not in {folder}: {shorten(missing)}: download them again"
        )
    return splits, tuple(f"the split {name}" for name in stated if name not in chosen.values())


def _named_splits(folder: Path) -> tuple[dict[str, Split], tuple[str, ...]]:
    """By the last word in a path that is the name of a split."""
    kinds = ("train", *VAL_SPLIT_NAMES, *TEST_SPLIT_NAMES)
    by_kind: dict[str, list[str]] = {}
    unnamed = []
    paths = (path.relative_to(folder) for path in folder.rglob("*.tar"))
    shards = sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))
    for shard in shards:
        words = [word for word in re.split("[^a-z]+", shard.lower()) if word in kinds]
        if words:
            by_kind.setdefault(words[-1], []).append(shard)
        else:
            unnamed.append(shard)
    for names in (("train",), (*VAL_SPLIT_NAMES, *TEST_SPLIT_NAMES)):
        if not any(by_kind.get(name) for name in names):
            raise FileNotFoundError(
                f"of {len(shards)} .tar files in {folder} none has the word {' or '.join(names)} in its name: "
                f"name them {names[0]}-000000.tar and so on"
            )
    chosen = choose_splits(list(by_kind), str(folder))
    ignored = [f"the split {name}" for name in by_kind if name not in chosen.values()]
    if unnamed:
        ignored.append(f"{len(unnamed)} shards without the name of a split: {shorten(unnamed)}")
    return {kind: Split(by_kind[name]) for kind, name in chosen.items()}, tuple(ignored)


def _listed_names(folder: Path) -> list[str] | None:
    file = next((folder / name for name in CLASS_NAMES if (folder / name).is_file()), None)
    if file is None:
        return None
    try:
        return [line.strip() for line in _read_text(file).splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}): correct it, or remove it") from error
