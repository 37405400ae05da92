"""Model folders: timm's own format, ``config.json`` and ``model.safetensors``. Self-describing, no pickle."""

import copy
import difflib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import save_for_hf

from .conversion import deploy_arguments
from .conversion.forms import describe_form, rebuild_form_
from .locality import inject_locality, injected_locality

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_model(
    model: Any,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    data_config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a timm model as a model folder, all of it or nothing.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` and :func:`load_model` read it; the
    config says whether the model is in deploy form. Of a model that :func:`repmlp.inject_locality`
    was called on, only the latter does until the convs are merged: the config says under ``locality``
    what to inject again.

    Args:
        model: made by ``timm.create_model``.
        folder: to write.
        label_names: names of the classes, in the order of the logits; by default those the model came with.
        data_config: preprocessing that the weights expect: mean, std, interpolation, crop_pct.
        overwrite: replace a model folder that exists.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is off, or it is no model folder.
        ValueError: if the model does not come from timm's registry.
        OSError: if it could not be written, with the folder as it was.
    """
    if not hasattr(model, "pretrained_cfg"):
        raise ValueError(f"{type(model).__name__} was not made by timm.create_model: no config can describe it")
    folder = Path(folder)
    check_free(folder, CONFIG, overwrite)
    names = list(label_names) if label_names else model.pretrained_cfg.get("label_names")
    locality = injected_locality(model)
    if not all(tensor.is_contiguous() for tensor in model.state_dict().values()):  # channels_last; safetensors refuses
        model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    partial = folder.with_name(f".{folder.name}.partial")
    remove(partial)
    try:
        save_for_hf(
            model,
            str(partial),
            model_config={"label_names": names, **({"locality": locality} if locality else {}), **describe_form(model)},
            model_args=deploy_arguments(model) or None,
            safe_serialization=True,
            data_config=dict(data_config) if data_config else None,
        )
        remove(folder)
        partial.rename(folder)
    except SafetensorError as error:  # it tells a full disk so
        raise OSError(f"the model could not be written to {folder} ({error}); what was there is kept") from error
    finally:
        remove(partial)
    return folder


def load_model(folder: str | Path) -> Any:
    """Read a model folder (or the ``model/`` of a run folder), in the form that it was written in, in eval mode.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no model folder, or its files are damaged or do not fit each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}")
    if not (folder / CONFIG).exists() and (folder / "model" / CONFIG).exists():
        folder = folder / "model"
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no model folder: it holds no {name} (repmlp train and convert write both)")
    try:
        config = json.loads((folder / CONFIG).read_text())
        architecture = config["architecture"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a timm model: {error!r}") from error
    check_architecture(architecture)
    try:
        model = timm.create_model(f"local-dir:{folder}")
        for arguments in config.get("locality", []):
            inject_locality(model, **arguments)
        weights = load_file(folder / WEIGHTS)
        rebuild_form_(model, config, weights)
        model.load_state_dict(weights)
        return model.eval()
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or was not written to its end: {error}") from error
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # keys, shapes or arguments that do not fit
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG}: {error}") from error


def check_architecture(name: str) -> None:
    """Raise a ValueError that names alternatives if timm knows no such network."""
    if not timm.is_model(name):
        names = timm.list_models()
        ours = [known for known in names if timm.model_entrypoint(known).__module__.startswith("repmlp.")]
        near = difflib.get_close_matches(name, names, n=3)
        raise ValueError(
            f"unknown model {name!r}"
            + (f", did you mean {' or '.join(near)}?" if near else "")
            + f" This package has {', '.join(ours)}."
            + " Any other model of timm works too (timm.list_models() lists them)."
        )


def check_free(folder: Path, marker: str, overwrite: bool) -> None:
    """Raise a FileExistsError unless ``folder`` may be written: it is new or empty, or one of ours to overwrite.

    Args:
        marker: a file that tells a folder of ours, so that ``overwrite`` never deletes anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another one, or pass --overwrite to replace it")
    if not (folder / marker).is_file():
        raise FileExistsError(f"{folder} holds no {marker}, so it is not ours to replace: choose another folder")


def remove(folder: Path) -> None:
    """Delete a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)
