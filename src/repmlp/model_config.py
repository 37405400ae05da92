"""Read the config.json of a model folder, and refuse one whose parts have the wrong type or contradict each other.

The file is timm's. This package adds ``repmlp_format``, the version of what it adds, and what must be done to the
network before it takes the weights (``locality``, ``reparameterized``, ``folded_norms``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from timm.data.transforms import str_to_interp_mode
from timm.models import get_model_input_config

from .messages import shown

FORMAT = 1  # goes up when an older version of this package would misread the file
#: Arguments of timm.create_model that name files to load or do not describe the network.
NOT_MODEL_ARGS = {
    "model_name",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "device",
    "dtype",
}
CROP_MODES = ("center", "squash", "border")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9  # false for NaN


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_interpolation(value: Any) -> bool:
    try:
        return value == "random" or str_to_interp_mode(value) is not None
    except (KeyError, TypeError):  # an unknown name; a list or an object
        return False


#: By key: whether a value will do, and what is wanted. Keys that are absent or null are not checked.
Keys = Mapping[str, tuple[Callable[[Any], bool], str]]
CONFIG_KEYS: Keys = {
    "architecture": (is_text, "the name of a network"),
    "repmlp_format": (_is_count, "a number"),
    "num_classes": (_is_count, "a count"),
    "label_names": (list_of(is_text), "a list of names"),
    "model_args": (lambda value: isinstance(value, dict), "an object"),
    "pretrained_cfg": (lambda value: isinstance(value, dict), "an object"),
    "locality": (list_of(lambda value: isinstance(value, dict)), "a list of objects"),
    "reparameterized": (list_of(is_text), "a list of names"),
    "folded_norms": (list_of(is_text), "a list of names"),
}
PRETRAINED_KEYS: Keys = {
    "num_classes": (_is_count, "a count"),
    "label_names": (list_of(is_text), "a list of names"),
    "input_size": (lambda v: list_of(lambda n: _is_count(n, 1))(v) and len(v) == 3, "[channels, height, width]"),
    "mean": (list_of(_is_number), "a list of numbers"),
    "std": (list_of(lambda value: _is_number(value) and value > 0), "a list of positive numbers"),
    "crop_pct": (lambda value: _is_number(value) and value > 0, "a positive number"),
    "crop_mode": (lambda value: value in CROP_MODES, f"one of {', '.join(CROP_MODES)}"),
    "interpolation": (_is_interpolation, "the name of an interpolation, such as bicubic"),
}


def read_config(file: Path) -> dict[str, Any]:
    """What config.json holds, with every key that this package reads of the right type.

    Raises:
        ValueError: that names the file and the key.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8, not JSON, a number of too many digits
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{file} does not describe a timm model: {reason}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} does not describe a timm model: it holds {shown(config)} instead of an object")
    if config.get("architecture") is None:
        raise ValueError(f"{file} does not describe a timm model: it has no architecture")
    check_values(file, config, CONFIG_KEYS)
    version = config.get("repmlp_format") or 0
    if version > FORMAT:
        raise ValueError(
            f"{file} has format {version}, written by a newer version of repmlp: "
            f"this one reads up to {FORMAT}, update it"
        )
    check_values(file, config.get("pretrained_cfg") or config, PRETRAINED_KEYS)
    if wrong := sorted(NOT_MODEL_ARGS & set(config.get("model_args") or {})):
        raise ValueError(f"{file}: model_args has {', '.join(wrong)}, which does not describe a network: remove it")
    return config


def check_network(file: Path, config: Mapping[str, Any], model: Any) -> None:
    """Raise a ValueError that names the key unless the network is what its config.json says.

    Args:
        file: the config.json, for the message.
        config: what :func:`read_config` gave.
        model: the network that timm made of it.
    """
    stated = config.get("pretrained_cfg") or config
    for where, part in (("", config), ("pretrained_cfg.", stated)):
        if part.get("num_classes") not in (None, model.num_classes):
            raise ValueError(
                f"{file} contradicts itself: {where}num_classes is {part['num_classes']}, "
                f"but the network that it describes has {model.num_classes}"
            )
        names = part.get("label_names")
        if names is not None and len(names) != model.num_classes:
            raise ValueError(f"{file} names {len(names)} classes in {where}label_names, but has {model.num_classes}")
    takes = get_model_input_config(model)
    size, own = stated.get("input_size"), list(takes["input_size"])
    if size is not None and (size[0] != own[0] or (takes["fixed_input_size"] and size != own)):
        raise ValueError(
            f"{file} contradicts itself: input_size is {size}, but the network that it describes takes {own}"
        )
    for key in ("mean", "std"):
        if stated.get(key) is not None and len(stated[key]) not in (1, own[0]):
            raise ValueError(f"{file}: {key} has {len(stated[key])} numbers for images of {own[0]} channels")


def label_names_of(model: Any) -> list[str] | None:
    """The class names that a timm model came with, if they are as many as its classes; a new head has none."""
    names = model.pretrained_cfg.get("label_names")
    return list(names) if names and len(names) == model.num_classes else None


def check_label_names(names: Sequence[str], num_classes: int) -> None:
    """Raise a ValueError unless there is one name, a string, for each class."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"label_names must be a sequence of strings, but is {shown(names)}")
    if len(names) != num_classes:
        raise ValueError(f"label_names has {len(names)} names for {num_classes} classes: give one for each")


def check_values(where: object, values: Mapping[str, Any], keys: Keys) -> None:
    """Raise a ValueError that names ``where`` and the key unless each value that is there will do."""
    for key, (will_do, wanted) in keys.items():
        if values.get(key) is not None and not will_do(values[key]):
            raise ValueError(f"{where}: {key} is {shown(values[key])}, but must be {wanted}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
