"""Read the authors' checkpoint files without executing anything, and identify them by their keys."""

import pickle
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import build_network, read_weights

#: Entries that hold the state dict; the moving average comes first, as in timm.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
#: Prefixes of every name: of DDP and EMA, of torch.compile, of Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: A name by which the authors' weights are recognized, and what they are of.
NETWORKS = {
    "conv_embedding.conv.weight": "a RepMLPNet (v2)",
    "stage0.0.conv.weight": "a RepMLP-ResNet (v1)",
    "fc3.weight": "a RepMLP block (v1)",
}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth`` or ``.safetensors`` file, without wrappers and their prefixes.

    A pickle is read with ``weights_only=True``: one with anything but tensors, plain containers and the
    ``argparse.Namespace`` that timm's ``train.py`` adds is refused before any of its code runs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, would run code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals([Namespace]):
            content = (
                read_weights(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it holds something other than tensors, and reading that could run code "
            f"({_reason(error)}). Ask its owner for a file of tensors only, as torch.save(model.state_dict()) writes"
        ) from error
    except Exception as error:  # arbitrary bytes can fail in any way
        raise ValueError(f"{path} is damaged or not a checkpoint: {type(error).__name__}, {error}") from error
    return unwrap(content, path)


def unwrap(content: Any, path: str | Path = "checkpoint") -> dict[str, Tensor]:
    """The state dict in an entry of a checkpoint (see WRAPPERS), or the checkpoint itself, without PREFIXES.

    Raises:
        ValueError: if it does not map names to tensors.
    """
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        what = f"entries {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else type(content)
        raise ValueError(f"{path} holds no state dict (tensors by name), but {what}")
    tensors = {name: tensor for name, tensor in content.items() if name != "n_averaged"}  # of AveragedModel
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def identify_checkpoint(names: Mapping[str, Any]) -> str:
    """Describe the network and form of a state dict with the authors' names, judging by its keys."""
    network = next((network for name, network in NETWORKS.items() if name in names), None)
    if network is None:
        first = next(iter(names))
        return f"not the authors' weights (its first name is {first})"
    return f"{network} in {'deploy' if is_deploy(names) else 'training'} form"


def is_deploy(names: Mapping[str, Any]) -> bool:
    """Whether a state dict with the authors' names is in their deploy form: no BN follows an FC3."""
    return not any(name.endswith("fc3_bn.weight") for name in names)


def build_for(arch: str, state_dict: Mapping[str, Tensor], **model_args: Any) -> nn.Module:
    """Build the network ``arch`` in the form, and with the number of classes, of the authors' weights."""
    head = next((state_dict[name] for name in ("linear.weight", "head.weight") if name in state_dict), None)
    if head is not None:
        model_args.setdefault("num_classes", head.shape[0])
    return build_network(arch, deploy=is_deploy(state_dict), **model_args)


def _reason(error: Exception) -> str:
    """The part of PyTorch's long message that names the object."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "unsupported" in line.lower()), lines[0] if lines else repr(error))
    return line.partition(" was not an allowed global")[0]  # what follows is how to allow it
