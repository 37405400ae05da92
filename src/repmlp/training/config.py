"""config.yaml: the settings of a run, written when it starts and read to resume it."""

import os
import re
import reprlib
from collections.abc import Collection
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from repmlp_settings import Train

from ..data.sets import PATHS, SMALL, SOURCES
from ..messages import did_you_mean

#: A newer format is refused. The first line of the file has it, as a comment: all else in the file are settings.
FORMAT = 1
_HEADER = "# settings of a run of repmlp train, format "
#: Settings that may be given anew to a run that is resumed: where its data is, and how it is read.
MAY_CHANGE = ("data", "data_root", "download", "workers")


def absolute_paths(settings: Train) -> Train:
    """The same settings from any working directory, as config.yaml keeps them."""
    data, root = settings.data, settings.data_root
    for prefix in SOURCES:
        path = data.removeprefix(prefix)
        if path != data and (prefix in PATHS or os.path.isdir(path)):
            data = prefix + _absolute(path)
    if root is None and data.startswith("torch/"):
        root = "data"  # the default of load_data
    return replace(
        settings,
        data=data,
        data_root=None if root is None else _absolute(root),
        model_args=yaml.safe_load(yaml.safe_dump(settings.model_args)),  # tuples become lists
        weights=None if settings.weights is None else _absolute(settings.weights),
    )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def changed_settings(settings: Train) -> dict[str, Any]:
    """The settings that are not at their defaults, by name."""
    defaults = asdict(Train(output=""))
    return {name: value for name, value in asdict(settings).items() if value != defaults[name]}


def write_settings(path: Path, settings: Train) -> None:
    path.write_text(f"{_HEADER}{FORMAT}\n{yaml.safe_dump(asdict(settings), sort_keys=False)}", encoding="utf-8")


def read_settings(path: Path) -> Train:
    """Read a config.yaml.

    Raises:
        ValueError: unless it holds the settings of a run, in a format that is known; names the setting.
    """
    return Train(**_read(path))


def _read(path: Path) -> dict[str, Any]:
    """The settings that a config.yaml holds, by name; it may lack some."""
    try:
        text = path.read_text(encoding="utf-8")
        if (header := re.match(rf"{_HEADER}(\d+)$", text, re.MULTILINE)) and int(header[1]) > FORMAT:
            raise ValueError(f"its format is {header[1]}, and this version reads {FORMAT} or less: update repmlp")
        values = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as settings of a run: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {_kind(values)}, not the settings of a run by name")
    hints = get_type_hints(Train)
    if unknown := [key for key in values if key not in hints]:
        advice = did_you_mean(str(unknown[0]), hints) or ": remove it"
        raise ValueError(f"{path} holds {unknown[0]!r}, which is not a setting of a run{advice}")
    values.setdefault("output", str(path.parent))
    if values.get("val_fraction") != 0:  # runs from before this setting drew without regard to the classes
        values.setdefault("val_draw", "at-random")
    for key, value in values.items():
        if not _is_a(value, hints[key]):
            wanted = str(getattr(hints[key], "__name__", hints[key])).replace("typing.", "")
            raise ValueError(f"{path}: {key} is {_kind(value)}, {reprlib.repr(value):.60}, but has to be {wanted}")
    return values


def _is_a(value: object, hint: object) -> bool:
    """Whether a value from a YAML file is of the type that an annotation of :class:`repmlp_settings.Train` states."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is list:
        return isinstance(value, list) and all(_is_a(entry, arguments[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def stored_settings(settings: Train, given: Collection[str] = ()) -> Train:
    """The settings of the run that ``settings`` ask to resume.

    A setting counts as given if it is not the default, or if it is named in ``given``.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if it is finished, its config.yaml is damaged, or settings other than MAY_CHANGE are given that
            are not the run's own.
    """
    folder = Path(settings.output)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"there is no run to resume in {folder}: it holds no config.yaml")
    if (folder / "test.json").exists():
        raise ValueError(f"the run in {folder} is finished: there is nothing to resume")
    values = _read(folder / "config.yaml")
    # Runs from before these settings existed kept the small named sets in memory, and no others; and took classes by
    # index.
    values.setdefault("in_memory", "yes" if values.get("data", "digits") in ("digits", *SMALL) else "no")
    values.setdefault("labels", "by-index")
    own = Train(**values)
    absolute = absolute_paths(settings)
    changes: dict[str, Any] = {"output": settings.output}  # the folder may have been moved
    for field in fields(Train):
        value = getattr(absolute, field.name)
        is_default = getattr(settings, field.name) in (field.default, [], {}) and field.name not in given
        if field.name in ("output", "resume") or is_default:
            continue
        if field.name == "data_root" and changes.get("data", own.data).startswith(PATHS):
            raise ValueError(
                f"data_root does not apply to {own.data}: if its images have moved, pass data=NAME instead"
            )
        if field.name in MAY_CHANGE:
            changes[field.name] = value
        elif value != getattr(own, field.name):
            raise ValueError(
                f"a run is resumed with its own settings: {field.name} was {getattr(own, field.name)!r}, not "
                f"{value!r}. Leave it out, or start another run"
            )
    return replace(own, **changes)
