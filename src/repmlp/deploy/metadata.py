"""What an exported file says about itself: one JSON object in every file, so that it needs no model folder."""

import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from timm.data import resolve_data_config
from timm.models import FeatureDictNet, FeatureHookNet, get_model_input_config
from timm.models._features import FeatureGetterNet  # not public, unlike the others

from ..messages import shown
from ..model_config import label_names_of
from .engines import INPUT, OUTPUT, Metadata


def export_metadata(model: Any) -> Metadata:
    """What an exported file says about itself, to be written as JSON.

    Returns:
        architecture, num_classes, label_names (if known); input_size, mean, std, interpolation, crop_pct, crop_mode, as
        timm names them; input, the name of the input; output, the name of the output, or a list of names for a
        ``features_only`` network; made_by.

    Raises:
        ValueError: if the model was not made by ``timm.create_model``.
    """
    if not hasattr(model, "pretrained_cfg"):
        raise ValueError(
            f"cannot tell which images {type(model).__name__} takes, since it has no pretrained_cfg: "
            f"pass a model made by timm.create_model"
        )
    features = isinstance(model, FeatureDictNet | FeatureHookNet | FeatureGetterNet)
    names = None if features else label_names_of(model)
    return {
        "architecture": model.pretrained_cfg.get("architecture"),
        "num_classes": 0 if features else model.num_classes,
        **({"label_names": names} if names else {}),
        **resolve_data_config(model=model),
        "input_size": get_model_input_config(model)["input_size"],
        "input": INPUT,
        "output": model.feature_info.module_name() if features else OUTPUT,
        "made_by": f"repmlp {version('repmlp')}",
    }


def parse_metadata(text: str) -> Metadata:
    """Read what :func:`export_metadata` wrote.

    Raises:
        ValueError: if it is something else; names the key.
    """
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its metadata is not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"its metadata is not an object but {shown(metadata)}")
    for key, (is_valid, wanted) in _KEYS.items():
        if key not in metadata:
            raise ValueError(f"its metadata lacks {key}")
        if not is_valid(metadata[key]):
            raise ValueError(f"{key} in its metadata is {shown(metadata[key])}: it must be {wanted}")
    for key in ("mean", "std"):
        if len(metadata[key]) != metadata["input_size"][0]:
            raise ValueError(
                f"{key} in its metadata has {len(metadata[key])} numbers for {metadata['input_size'][0]} channels"
            )
    labels = metadata.get("label_names")
    if labels is not None and not (_strings(labels) and len(labels) == metadata["num_classes"]):
        raise ValueError(f"label_names in its metadata must be {metadata['num_classes']} texts, one per class")
    return metadata


def _integer(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 2**31


def _number(value: object, above: float = -1e9) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < 1e9


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


#: The keys that reading a file takes: whether a value is right, and what is.
_KEYS: dict[str, tuple[Callable[[object], bool], str]] = {
    "input_size": (
        lambda v: isinstance(v, list) and len(v) == 3 and all(_integer(n, 1) for n in v),
        "three positive integers, [C, H, W]",
    ),
    "num_classes": (lambda v: _integer(v, 0), "an integer, 0 or more"),
    "output": (lambda v: isinstance(v, str) or (_strings(v) and bool(v)), "a name or a list of names"),
    "mean": (lambda v: isinstance(v, list) and all(map(_number, v)), "a list of numbers"),
    "std": (lambda v: isinstance(v, list) and all(_number(n, 0) for n in v), "a list of positive numbers"),
    "interpolation": (lambda v: isinstance(v, str), "a name"),
    "crop_pct": (lambda v: _number(v, 0), "a positive number"),
    "crop_mode": (lambda v: isinstance(v, str), "a name"),
}
