"""What an exported file says about itself: one JSON object in every file, so that it needs no model folder."""

import json
from importlib.metadata import version
from typing import Any

from timm.data import resolve_data_config
from timm.models import FeatureDictNet, FeatureHookNet, get_model_input_config
from timm.models._features import FeatureGetterNet  # not public, unlike the others

from ..messages import shown
from ..model_config import PRETRAINED_KEYS, Keys, check_label_names, check_values, is_text, label_names_of, list_of
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
        "output": _map_names(model) if features else OUTPUT,
        "made_by": f"repmlp {version('repmlp')}",
    }


def _map_names(model: Any) -> list[str]:
    """Names of a backbone's maps, in the order of the network: as it returns them, whatever order was asked for."""
    names = model.feature_info.module_name()
    return [info["module"] for info in model.feature_info.info if info["module"] in names]


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
    for key in _KEYS:
        if metadata.get(key) is None and key != "label_names":
            raise ValueError(f"its metadata lacks {key}")
    check_values("its metadata", metadata, _KEYS)
    for key in ("mean", "std"):
        if len(metadata[key]) != metadata["input_size"][0]:
            raise ValueError(
                f"{key} in its metadata has {len(metadata[key])} numbers for {metadata['input_size'][0]} channels"
            )
    if metadata.get("label_names") is not None:
        check_label_names(metadata["label_names"], metadata["num_classes"])
    return metadata


_KEYS: Keys = {**PRETRAINED_KEYS, "output": (lambda v: is_text(v) or list_of(is_text)(v), "a name or a list of names")}
