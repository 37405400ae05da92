"""Load and save weights under the names of the authors' public code.

``load(model, state_dict)`` and ``state_dict(model)`` work on a block or a network, in whichever form (training or
deploy) it is. Wrappers such as DDP, ``torch.compile`` and EMA are taken off.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..conversion import unwrap_model
from ..layers import RepMLP, RepMLPv2
from ..messages import shorten
from ..models import RepMLPNet, RepMLPResNet
from .naming import Entry, block_entries, block_v2_entries
from .repmlpnet_naming import fold_like_, repmlpnet_entries, unfolded
from .resnet_naming import resnet_entries

__all__ = ["entries", "load", "state_dict"]


def entries(model: nn.Module) -> Iterator[Entry]:
    """The authors' name and shape for every tensor of a model, in its current form.

    For a RepMLPNet, our names are those of ``repmlpnet_naming.unfolded``.

    Raises:
        ValueError: if the authors' code has no such model.
    """
    model = unwrap_model(model)
    if isinstance(model, RepMLP):
        return block_entries(model)
    if isinstance(model, RepMLPv2):
        return block_v2_entries(model)
    if isinstance(model, RepMLPResNet):
        return resnet_entries(model)
    if isinstance(model, RepMLPNet):
        return repmlpnet_entries(unfolded(model))
    raise ValueError(f"the authors' code has no {type(model).__name__}: no names to map")


@torch.no_grad()
def load(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights named as in the authors' code into a model of the same form, strictly.

    Args:
        model: a block or network; build it with ``deploy=True`` for weights in deploy form.
        state_dict: weights with the authors' names and shapes.

    Raises:
        ValueError: names the keys that are missing, unexpected or of another shape; nothing is loaded then.
    """
    model = unwrap_model(model)
    target = _official_form(model)
    table = {entry.official: entry for entry in entries(target)}
    missing = [name for name in table if name not in state_dict]
    unexpected = [name for name in state_dict if name not in table]
    shapes = [
        f"{name}: {list(tensor.shape)} instead of {list(table[name].shape)}"
        for name, tensor in state_dict.items()
        if name in table and tuple(tensor.shape) != table[name].shape
    ]
    if missing or unexpected or shapes:
        problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        raise ValueError(
            "the weights do not fit the model: "
            + "; ".join(f"{len(names)} {what} ({shorten(names)})" for what, names in problems if names)
        )
    own = target.state_dict()
    for name, entry in table.items():
        own[entry.ours].copy_(state_dict[name].reshape(own[entry.ours].shape))
    if target is not model:
        model.load_state_dict(fold_like_(target, model).state_dict())


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights with the authors' names and shapes (views, as in ``Module.state_dict``)."""
    model = _official_form(unwrap_model(model))
    own = model.state_dict()
    return {entry.official: own[entry.ours].reshape(entry.shape) for entry in entries(model)}


def _official_form(model: nn.Module) -> nn.Module:
    """The model itself, or a copy with a BN wherever the authors' deploy form has one."""
    return unfolded(model) if isinstance(model, RepMLPNet) else model
