"""Model folders: timm's own format, ``config.json`` and ``model.safetensors``. Self-describing, no pickle."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import get_model_input_config
from timm.models._hub import save_config_for_hf
from torch import Tensor

from .conversion import deploy_arguments, timm_model
from .conversion.differences import what_differs
from .conversion.forms import describe_form, rebuild_form_
from .files import atomic_folder, claim_to_write, ensure_folder
from .locality import inject_locality, injected_locality
from .messages import did_you_mean
from .model_config import FORMAT, check_label_names, check_network, label_names_of, read_config

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_FILES = (CONFIG, WEIGHTS)
DIGEST = "repmlp.sha256"  # of the tensors, in the header of the weights


def save_model(
    model: Any,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    data_config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a timm model as a model folder, whole or not at all.

    Both :func:`load_model` and ``timm.create_model("local-dir:FOLDER", pretrained=True)`` read it, in the form that
    the model has now. Only :func:`load_model` reads a model with convs of :func:`repmlp.inject_locality` that are not
    merged yet: the config lists under ``locality`` what to inject again.

    Args:
        model: made by ``timm.create_model``; wrappers such as DDP, ``torch.compile`` and EMA are taken off.
        folder: to write.
        label_names: names of the classes, in the order of the logits; by default those that the model came with,
            unless it has another number of classes by now.
        data_config: preprocessing that the weights expect, where it differs from ``model.pretrained_cfg``: mean, std,
            interpolation, crop_pct.
        overwrite: replace the model folder if it exists. A README.md of yours in it is kept.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is False, or it holds other files too.
        BlockingIOError: if another process is writing the folder.
        ValueError: if the model does not come from timm's registry, if timm would build another network (a layer was
            replaced, a setting of a PyTorch layer changed, weights are computed from others), or if ``label_names``
            are not one for each class.
        OSError: if the folder could not be written; what was there is kept.
    """
    model = timm_model(model)
    with claim_model_folder(folder, overwrite):
        return write_model_folder(model, folder, label_names, data_config, check=True)


def claim_model_folder(folder: str | Path, overwrite: bool = False) -> AbstractContextManager[None]:
    """Claim a model folder that may be written; ``model/`` of a run belongs to the process that trains the run.

    Raises:
        ValueError: if another model would replace the one that a run trained.
    """
    target = Path(os.path.realpath(folder))
    run = target.parent
    is_of_run = target.name == "model" and (run / "config.yaml").exists()
    if is_of_run and overwrite and target.exists():
        raise ValueError(f"{folder} is the model that the run in {run} trained: choose another folder")
    return claim_to_write(folder, MODEL_FILES, overwrite, owner=run if is_of_run else None)


def write_model_folder(
    model: Any,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    data_config: Mapping[str, Any] | None = None,
    check: bool = False,
) -> Path:
    """As :func:`save_model`, replacing the model that is there; other files in the folder stay.

    Args:
        check: whether the folder describes this model: needless for one that was made from such a description.
    """
    if label_names is not None:
        check_label_names(label_names, model.num_classes)
    names = list(label_names) if label_names is not None else label_names_of(model)
    locality = injected_locality(model)
    own = tuple(get_model_input_config(model)["input_size"])
    size = {} if own == tuple(model.pretrained_cfg["input_size"]) else {"input_size": own}  # it was made for another
    with atomic_folder(folder, MODEL_FILES) as new:
        write_weights(model.state_dict(), new / WEIGHTS)
        save_config_for_hf(
            model,
            str(new / CONFIG),
            model_config={
                "repmlp_format": FORMAT,
                "pretrained_cfg": {"label_names": names},
                **({"label_names": names} if names else {}),
                **({"locality": locality} if locality else {}),
                **describe_form(model),
            },
            model_args=deploy_arguments(model) or None,
            data_config={**(data_config or {}), **size},
        )
        if check:
            _ensure_describes(new, model)
    return Path(folder)


def _ensure_describes(folder: Path, model: Any) -> None:
    """Raise ValueError if the config of a model folder describes another network than the model."""
    config, weights = read_config(folder / CONFIG), model.state_dict()
    refused = f"this {type(model).__name__} cannot be saved as a model folder, which timm.create_model has to rebuild: "
    try:
        try:
            with torch.device("meta"):
                made = _build(folder, config, weights)
        except RuntimeError as error:
            if "meta" not in str(error):
                raise
            with torch.random.fork_rng(devices=[]):  # training that saves a model goes on as if it had not
                made = _build(folder, config, weights)  # it reads values while it is built
    except Exception as error:
        raise ValueError(f"{refused}that fails with {type(error).__name__}, {error}") from error
    if what := what_differs(model, made):
        raise ValueError(
            f"{refused}{what}. If timm has an argument for that, make the network with it; or save the state_dict alone"
        )


def _build(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
    """The network that a config describes, in its form, for weights of these names."""
    model: Any = timm.create_model(f"local-dir:{folder}")
    for arguments in config.get("locality") or []:
        inject_locality(model, **arguments)
    rebuild_form_(model, config, weights)
    return model


def load_model(folder: str | Path) -> Any:
    """Read a model folder (or the ``model/`` of a run folder), in the form and dtype it was written in, in eval mode.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is not a model folder, its files are damaged, or they contradict each other or themselves.
    """
    folder = model_folder(folder)
    config = read_config(folder / CONFIG)
    try:
        check_architecture(config["architecture"])
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: architecture names no network that is installed: {error}") from None
    weights = read_weights(folder / WEIGHTS)
    try:
        _check_size(folder, weights)
        model = _build(folder, config, weights)
    except Exception as error:  # what the config asks for can fail anywhere in timm, PyTorch and the networks
        raise ValueError(
            f"{folder / CONFIG} does not describe a network that can be built: {type(error).__name__}, {error}"
        ) from error
    check_network(folder / CONFIG, config, model)
    dtypes: Counter[torch.dtype] = Counter()
    for tensor in weights.values():
        dtypes[tensor.dtype] += tensor.numel() if tensor.is_floating_point() else 0
    model.to(max(+dtypes, key=dtypes.__getitem__, default=torch.float32))  # buffers that are not saved take it too
    for name, tensor in model.state_dict(keep_vars=True).items():
        if len(+dtypes) > 1 and name in weights and tensor.is_floating_point():
            tensor.data = tensor.data.to(weights[name].dtype)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # names or shapes
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG}: {error}") from error
    return model.eval()


def model_folder(folder: str | Path) -> Path:
    """The model folder at a path that may be a run folder, which holds one in ``model/``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is neither.
    """
    folder = Path(folder)
    ensure_folder(folder, "model folder")
    if not (folder / CONFIG).exists() and any((folder / name).exists() for name in ("model", "config.yaml")):
        folder = folder / "model"
        ensure_folder(folder, "model folder")
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a model folder: {name} is missing (save_model writes both files)")
    return folder


def write_weights(state_dict: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors as a .safetensors file, with a digest of them in its header."""
    tensors: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().contiguous()  # the format knows neither strides nor shared memory
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    file.touch()
    mode = file.stat().st_mode  # what others may do; save_file lets nobody else read the file
    save_file(tensors, file, {DIGEST: digest(tensors)})  # two entries would come in any order: other bytes each time
    file.chmod(mode)


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file; if its header has a digest of them, they are checked.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            expected = (opened.metadata() or {}).get(DIGEST)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it has no __iter__
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged or was not written to its end: {error}") from error
    if expected not in (None, digest(tensors)):
        raise ValueError(f"{file} is damaged: its tensors are not those that were written, their SHA-256 differs")
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, whatever the order."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        total.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_architecture(name: str) -> None:
    """Raise a ValueError that suggests alternatives unless timm knows the network."""
    if not timm.is_model(name):
        names = timm.list_models()
        ours = [known for known in names if timm.model_entrypoint(known).__module__.startswith("repmlp.")]
        raise ValueError(
            f"unknown model {name!r}{did_you_mean(name, names) or ':'} This package has {', '.join(ours)}. "
            f"Any other model of timm works too (timm.list_models() lists them)."
        )


def build_network(name: str, **arguments: Any) -> Any:
    """``timm.create_model`` for a name and arguments that a user gave.

    Raises:
        ValueError: if timm does not know the network, or cannot build it with these arguments.
    """
    check_architecture(name)
    for key, least in (("in_chans", 1), ("num_classes", 0)):
        if isinstance(value := arguments.get(key), int) and value < least:
            raise ValueError(f"{name} cannot be built with {key}={value}: it has to be {least} or more")
    try:
        return timm.create_model(name, **arguments)
    except (OSError, ImportError):
        raise
    except Exception as error:  # timm and PyTorch raise AssertionError, TypeError, RuntimeError, ... for bad arguments
        shown = {key: value for key, value in arguments.items() if not key.startswith("pretrained")}  # timm added those
        given = ", ".join(f"{key}={value!r}" for key, value in shown.items()) or "no arguments"
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be built with {given}: {reason}") from error


def _check_size(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if the config describes a network far larger than its weights, before memory is taken for it.

    A network may be built in a form that has more values than its file, but not 20 times as many.
    """
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in timm.create_model(f"local-dir:{folder}").parameters())
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        return  # a network of timm that reads values while it is built, which the meta device does not have
    found = sum(tensor.numel() for tensor in weights.values())
    if size > 20 * found:
        raise ValueError(f"it has {size:,} parameters, and {WEIGHTS} holds {found:,} numbers")
