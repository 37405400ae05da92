"""Rebuild a network for another image size (RepMLP v1, section 4.4)."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from timm.models import get_model_args, get_model_input_config
from torch import nn

from .conversion import deploy_arguments, timm_model

#: Entries of a timm config that depend on the image size; the new network has its own.
SIZES = ("input_size", "test_input_size", "min_input_size", "pool_size", "fixed_input_size")


@dataclass(frozen=True)
class Resized:
    """Result of :func:`resize`.

    Attributes:
        model: the network for the new size, in the form and mode of the old one.
        copied: names of the tensors copied from the old network.
        reinitialized: names of the re-initialized tensors: FC1 and FC2 where the number of partitions changed.
        dropped: names of the old network's tensors that the new one does not have.
    """

    model: nn.Module
    copied: tuple[str, ...]
    reinitialized: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{len(self.copied)} tensors copied, {len(self.reinitialized)} re-initialized"
        lines = [f"{counts}, {len(self.dropped)} dropped"]
        lines += [f"re-initialized: {name}" for name in self.reinitialized]
        lines += [f"dropped: {name}" for name in self.dropped]
        return "\n".join(lines)


@torch.no_grad()
def resize(model: Any, img_size: int | tuple[int, int], **changes: Any) -> Resized:
    """Rebuild a network for another image size, with the weights of the old one.

    An FC has a fixed size, but only the Global Perceptrons depend on the size of the feature map: FC1 and FC2 have
    ``C*P`` features. They are re-initialized where P changes, as in the paper; everything else, FC3 included, is
    copied. If anything was re-initialized, train the network before you use it.

    The new network keeps the preprocessing that the weights expect (mean, std, interpolation, crop) and the class
    names.

    Args:
        model: a network of this package, made by ``timm.create_model``; wrappers are removed.
        img_size: the new size, (H, W) or one number.
        changes: other arguments of the network to change as well, for example ``global_reduction``.

    Raises:
        ValueError: if the model does not come from timm's registry, or a tensor outside FC1 and FC2 would change
            shape.
    """
    model = timm_model(model)
    old = model.state_dict()
    arguments = {**get_model_args(model), "img_size": to_2tuple(img_size), **deploy_arguments(model), **changes}
    kept = {key: value for key, value in model.pretrained_cfg.items() if key not in SIZES}
    kept["input_size"] = (get_model_input_config(model)["input_size"][0], *arguments["img_size"])
    parameter = next(model.parameters())
    try:
        new = timm.create_model(model.pretrained_cfg["architecture"], pretrained_cfg_overlay=kept, **arguments)
    except TypeError as error:
        raise ValueError(f"this {type(model).__name__} cannot be built for another size: {error}") from error
    new = new.to(parameter.device, parameter.dtype).train(model.training)
    copied, reinitialized = [], []
    for name, tensor in new.state_dict().items():
        if name in old and old[name].shape == tensor.shape:
            tensor.copy_(old[name])
            copied.append(name)
        elif ".global_perceptron." in name:
            reinitialized.append(name)
        else:
            was = list(old[name].shape) if name in old else "nothing"
            raise ValueError(
                f"{name} would change from {was} to {list(tensor.shape)}: "
                f"only the image size and the Global Perceptrons may differ, got {changes}"
            )
    dropped = tuple(name for name in old if name not in new.state_dict())
    return Resized(new, tuple(copied), tuple(reinitialized), dropped)
